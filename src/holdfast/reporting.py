"""Tables, fits and figures as one HTML page that needs nothing else: no network, no server, no other file.

A report is believed and passed on, and it shows text that models, data sets and strangers wrote. So every number comes
from the rows or the fits given, every text is escaped and kept apart from ours, and the page's own policy forbids any
script but the one bundled here, any evaluation of text as code, and any request.
"""

import base64
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert

from holdfast import figures
from holdfast.display import visible
from holdfast.errors import FitError
from holdfast.laws import LAWS, Fit, Laws, points
from holdfast.planning import Plan, price_in_words
from holdfast.stats import Estimate, Prediction, rounded

LEVEL = 0.9
"""Of every interval on the page."""

NAMES = {
    "target_nll": "Target loss",
    "kl_base_tuned": "Forgetting, KL",
    "hard_cross_entropy": "Hard forgetting loss",
}

DRAW = """
for (const place of document.querySelectorAll(".chart")) {
  const specification = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const options = {
    mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
  };
  vegaEmbed(place, specification, options).catch((error) => {
    place.textContent = "This figure could not be drawn: " + error.message;
    console.error(error);
  });
}
"""
"""Draws each figure by Vega's expression interpreter, which needs no right to evaluate text as code."""


CAPTIONS = {
    "loss-against-forgetting": (
        "One mark per measurement; learning runs to the left. The paper's Figure 2: if all ranks share one line, the "
        "price does not depend on rank. A band is the line's 90 % interval."
    ),
    "trajectories-target": "The paper's Figure 3, for what is learned, with the joint law of parameters and steps.",
    "trajectories-forgetting": "The paper's Figure 3, for what is forgotten, with the joint law.",
}


class _Cell(NamedTuple):
    value: str
    note: str = ""
    kind: str = "num"
    """Of the cell in the style sheet: num, name, text that stays on one line, words that wrap."""


class _Grid(NamedTuple):
    label: str
    columns: Sequence[_Cell]
    rows: Sequence[Sequence[_Cell]]


def report(
    table: pd.DataFrame,
    laws: Laws | None,
    plan: Plan | None,
    *,
    title: str,
    commands: Sequence[str],
    provenance: Mapping[str, Any],
    why_no_laws: str | None = None,
) -> str:
    """A study as one self-contained HTML page: what learning costs, what to run, and the evidence for both.

    `table` is that of `store.table`, failed and diverged runs included; `laws` and `plan` were made from it.
    `commands` are what a reader types to make the page again; `provenance` is whatever says where the numbers come
    from, nested as it likes. Without `laws` the page shows the measurements, and `why_no_laws` in place of the laws.

    The page makes no request and runs one script, which its content security policy names by its hash. The same
    arguments give the same page, byte for byte.
    """
    environment = _environment()
    style = environment.get_template("report.css").render(
        light=_variables(figures.LIGHT), dark=_variables(figures.DARK)
    )
    script = _script()
    shown, why_no_figures = _points(table, laws)
    return environment.get_template("report.html.j2").render(
        title=title,
        policy=_policy(style=style, script=script),
        style=style,
        script=script,
        headline=price_in_words(laws) if laws else "No law was fitted, so the price of learning is not known.",
        why_no_laws=None if laws else why_no_laws or "No reason was given.",
        laws=None if laws is None else _laws(laws),
        plan=None if plan is None else _plan(plan),
        figures=[] if shown is None else _figures(shown, laws),
        why_no_figures=why_no_figures,
        runs=_runs(table),
        unfinished=_unfinished(table),
        finished=table.loc[table["state"] == "done", "run"].nunique(),
        commands=commands,
        provenance=list(_flat(provenance)),
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("holdfast"), autoescape=True, finalize=visible, undefined=jinja2.StrictUndefined
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


@functools.cache
def _script() -> str:
    """Vega, Vega-Lite, Vega-Embed and the lines that draw, as one script that can stand inside a page."""
    bundle = str(vl_convert.javascript_bundle(DRAW, vl_version=figures.vega_lite_version()))
    return bundle.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(*, style: str, script: str) -> str:
    """Nothing may load, nothing may run but what has these hashes."""
    return (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(content: Any) -> str:
    """JSON that can stand inside a script element: ASCII, and nothing that HTML reads as markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _points(table: pd.DataFrame, laws: Laws | None) -> tuple[pd.DataFrame | None, str | None]:
    """Every measurement the figures show, saying which the fits used; or None and why there is nothing to show."""
    try:
        shown = points(table, corpus=laws.corpus if laws else None, skip_fraction=0)
    except FitError as error:
        return None, str(error)
    if laws is not None:
        used = points(table, corpus=laws.corpus, skip_fraction=laws.skip_fraction).set_index(["run", "steps"]).index
        shown["in_fit"] = shown.set_index(["run", "steps"]).index.isin(used)
    shown["run"] = shown["run"].map(visible)
    return shown, None


def _figures(shown: pd.DataFrame, laws: Laws | None) -> list[dict[str, Any]]:
    charts = {
        "loss-against-forgetting": figures.loss_against_forgetting(shown, laws),
        "trajectories-target": figures.trajectories(shown, laws, "target_nll"),
        "trajectories-forgetting": figures.trajectories(shown, laws, "kl_base_tuned"),
    }
    drawn = {name: figures.svg(chart) for name, chart in charts.items()}
    small = sum(map(len, drawn.values())) <= FALLBACK_BYTES
    return [
        {
            "name": name,
            "title": figures.title(chart),
            "caption": CAPTIONS[name],
            "specification": _json(figures.page(chart)),
            "svg": drawn[name] if small else None,
        }
        for name, chart in charts.items()
    ]


FALLBACK_BYTES = 400_000
"""Of all still figures together, for readers without scripts: past this they would be most of the page."""


def _laws(laws: Laws) -> dict[str, Any]:
    """Everything the page says of the laws."""
    fits = (*laws.lines.values(), *laws.orthogonal.values(), *laws.joint.values())
    line = laws.lines["kl_base_tuned"]
    return {
        "model": laws.model,
        "target": laws.target,
        "corpus": laws.corpus,
        "method": laws.method,
        "ranks": ", ".join(map(str, laws.ranks)),
        "n_runs": laws.n_runs,
        "n_points": line.n_points,
        "left_out": f"{100 * laws.skip_fraction:.2g} %",
        "prices": {name: _parameter(fit, "slope") for name, fit in laws.lines.items()},
        "domain": {name: [f"{end:.3f}" for end in ends] for name, ends in line.domain.items()},
        "lines": _lines(laws),
        "joint": _joint(laws),
        "formulas": {fit.law: LAWS[fit.law].formula for fit in laws.joint.values()},
        "reference": {name: f"{value:,.0f}" for name, value in laws.joint["target_nll"].reference.items()},
        "warnings": list(dict.fromkeys([*laws.warnings, *(warning for fit in fits for warning in fit.warnings)])),
    }


def _lines(laws: Laws) -> _Grid:
    columns = ("Quantity", "Slope", "Intercept", "R²", "Residual", "Runs", "Points")
    rows = [
        [
            _Cell(NAMES[name], fit.estimator, kind="text"),
            _parameter(fit, "slope"),
            _parameter(fit, "intercept"),
            *_evidence(fit),
        ]
        for name in laws.lines
        for fit in (laws.lines[name], laws.orthogonal[name])
    ]
    return _Grid("Lines", _heads(columns, texts=1), rows)


def _joint(laws: Laws) -> _Grid:
    columns = ("Quantity", "Asymptote or start", "K", "x, parameters", "y, steps", "R²", "Residual", "Runs", "Points")
    rows = [
        [
            _Cell(NAMES[name], fit.law, kind="text"),
            *(_parameter(fit, parameter) for parameter in (LAWS[fit.law].linear[0], "K", "x", "y")),
            *_evidence(fit),
        ]
        for name, fit in laws.joint.items()
    ]
    return _Grid("Joint laws", _heads(columns, texts=1), rows)


def _parameter(fit: Fit, name: str) -> _Cell:
    """A parameter with its interval; no number where the data do not tell it from others that fit as well."""
    if name not in fit.parameters:
        return _Cell("–", "one rank only")
    estimate = fit.parameters[name]
    if math.isfinite(estimate.stderr):
        return _Cell(rounded(estimate.value, estimate.stderr), _interval(*estimate.interval(LEVEL), estimate.stderr))
    at = list(fit.parameters).index(name)
    return (
        _Cell("not identified")
        if math.isfinite(fit.covariance[at][at])
        else _Cell(f"{estimate.value:.3g}", "no interval")
    )


def _interval(low: Any, high: Any, error: Any) -> str:
    return f"{rounded(float(low), float(error))} to {rounded(float(high), float(error))}"


def _evidence(fit: Fit) -> list[_Cell]:
    return [_Cell(f"{fit.r2:.4f}"), _Cell(f"{fit.rmse:.2g}"), _Cell(str(fit.n_runs)), _Cell(str(fit.n_points))]


def _heads(names: Iterable[str], *, texts: int) -> list[_Cell]:
    """Column heads: the first `texts` of them stand over text, the rest over numbers."""
    return [_Cell(name, kind="text" if i < texts else "num") for i, name in enumerate(names)]


def _plan(plan: Plan) -> dict[str, Any]:
    over = plan.probability_over_budget
    return {
        "feasible": plan.feasible,
        "r": str(plan.r),
        "steps": f"{plan.steps:,}",
        "params": f"{plan.trainable_params:,}",
        "forgetting": _prediction(plan.forgetting),
        "target_nll": _prediction(plan.target_nll),
        "max_forgetting": None if plan.max_forgetting is None else f"{plan.max_forgetting:g}",
        "target_loss": None if plan.target_loss is None else f"{plan.target_loss:g}",
        "over": None if over is None else "unknown" if math.isnan(over) else f"{100 * over:.2g} %",
        "extrapolates": plan.extrapolates,
        "reasons": plan.reasons,
        "warnings": plan.warnings,
    }


def _prediction(prediction: Prediction) -> _Cell:
    mean, error = float(prediction.mean), float(prediction.stderr)
    if not math.isfinite(error):
        return _Cell(f"{mean:.3g}", "no interval")
    return _Cell(rounded(mean, error), _interval(*prediction.interval(LEVEL), error))


def _runs(table: pd.DataFrame) -> _Grid | None:
    """What each finished run measured last, a line per retained text; None when no run finished."""
    done = table[table["state"] == "done"]
    retained = done[done["role"] == "retain"].sort_values("step")
    if retained.empty:
        return None
    learned = dict(_rows(done[done["role"] == "target"], "run", "step"))
    untuned = dict(_rows(retained[retained["step"] == 0], "run", "corpus"))
    last = retained.drop_duplicates(["run", "corpus"], keep="last").sort_values([*ORDER, "run", "corpus"])
    varied = [name for name in SETTINGS if last[name].nunique() > 1]
    heads = ["Rank", "Steps", "Target loss before", "after", "KL", "Hard loss", "Agreement", "Documents"]
    rows = [
        [
            _Cell(row["run"], kind="name"),
            *(_Cell(str(row[name]), kind="text") for name in varied),
            _Cell(str(int(row["r"]))),
            _Cell(f"{row['step']:,.0f}"),
            _measured(learned.get((run, row["step"])), "base_nll"),
            _measured(learned.get((run, row["step"])), "nll"),
            _measured(row, "kl_base_tuned"),
            _measured(row, "hard_cross_entropy", before=untuned.get((run, corpus))),
            _measured(row, "agreement"),
            _Cell(f"{row['documents']:,.0f}"),
        ]
        for (run, corpus), row in _rows(last, "run", "corpus")
    ]
    names = [SETTINGS[name] for name in varied]
    return _Grid("Measurements", _heads(["Run", *names, *heads], texts=1 + len(names)), rows)


ORDER = ["r", "learning_rate", "seed"]
SETTINGS = {
    "model": "Model",
    "target": "Target",
    "corpus": "Retained text",
    "method": "Method",
    "learning_rate": "Learning rate",
    "seed": "Seed",
}
"""What is shown of a run beside its rank, where runs differ in it."""


def _rows(table: pd.DataFrame, *key: str) -> Iterable[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    return ((tuple(row[name] for name in key), row) for row in table.to_dict("records"))


def _measured(row: Mapping[Any, Any] | None, quantity: str, *, before: Mapping[Any, Any] | None = None) -> _Cell:
    """A measurement with its error, and what it was of the untouched base where that is not 0."""
    if row is None or pd.isna(row[quantity]):
        return _Cell("not measured")
    note = "" if before is None else f"base {_estimate(before, quantity)}"
    return _Cell(str(_estimate(row, quantity)), note)


def _estimate(row: Mapping[Any, Any], quantity: str) -> Estimate:
    return Estimate(value=row[quantity], stderr=row[f"{quantity}_stderr"], n=int(row["documents"]))


def _unfinished(table: pd.DataFrame) -> _Grid | None:
    """Every run without a result, with how far it came and why; None when there is none."""
    ended = table[table["state"] != "done"].sort_values("step").drop_duplicates("run", keep="last")
    if ended.empty:
        return None
    rows = [
        [
            _Cell(row["run"], kind="name"),
            _Cell(row["state"], kind="text"),
            _Cell("–" if pd.isna(row["r"]) else str(int(row["r"]))),
            _Cell("none" if pd.isna(row["step"]) else f"{row['step']:,.0f}"),
            _Cell("–" if pd.isna(row["reason"]) else row["reason"], kind="words"),
        ]
        for row in ended.sort_values([*ORDER, "run"]).to_dict("records")
    ]
    columns = _heads(("Run", "State", "Rank", "Last step measured"), texts=2)
    return _Grid("Runs without a result", [*columns, _Cell("Reason", kind="words")], rows)


def _flat(provenance: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as lines: the path to each, and its value."""
    for name, value in provenance.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path} / ")
        else:
            yield path, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
