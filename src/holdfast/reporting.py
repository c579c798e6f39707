"""A study as one HTML page: tables, fits and figures, every number of them from the rows or the fits given."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from holdfast import figures
from holdfast.display import visible
from holdfast.errors import FitError
from holdfast.forms import Forms
from holdfast.laws import LAWS, Fit, Laws, points
from holdfast.page import Cell, Grid, figure_entries, heads, interval, render
from holdfast.plan_figures import frontier_figure, held_out_figure
from holdfast.planning import Plan, price_in_words
from holdfast.stats import Estimate, Prediction, rounded
from holdfast.validation import Validation

LEVEL = 0.9
"""Of every interval on the page."""

NAMES = {
    "target_nll": "Target loss",
    "kl_base_tuned": "Forgetting, KL",
    "hard_cross_entropy": "Hard forgetting loss",
}

CAPTIONS = {
    "loss-against-forgetting": (
        "One mark per measurement; learning runs to the left. The paper's Figure 2: if all ranks share one line, the "
        "price does not depend on rank. A band is the line's 90 % interval."
    ),
    "trajectories-target": "The paper's Figure 3, for what is learned: the joint law and its 90 % bands.",
    "trajectories-forgetting": "The paper's Figure 3, for what is forgotten: the joint law and its 90 % bands.",
    "frontier": (
        "Each mark is a rank and a number of steps that no other beats in both. Through it the laws' 90 % intervals; "
        "dashed, what was asked for."
    ),
    "held-out-forgetting": (
        "Each mark is a measurement that the law had not seen when it predicted it. On the dashed line a prediction is "
        "right; bars are where nine runs in ten were expected."
    ),
    "held-out-target": "The same for what is learned.",
}


NEAREST = "nearest"

READING_ORDER = (
    "frontier", "loss-against-forgetting", "trajectories-target", "trajectories-forgetting", "held-out-forgetting",
    "held-out-target",
)  # fmt: skip


def report(
    table: pd.DataFrame,
    laws: Laws | None,
    plan: Plan | None,
    *,
    validation: Validation | None = None,
    forms: Forms | None = None,
    title: str,
    commands: Sequence[str],
    provenance: Mapping[str, Any],
    why_no_laws: str | None = None,
) -> str:
    """A study as one self-contained HTML page: what learning costs, what to run, and the evidence for both.

    `table` is that of `store.table`, failed and diverged runs included; `laws`, `plan`, `validation` and `forms` were
    made from it.
    `commands` are what a reader types to make the page again; `provenance` is whatever says where the numbers come
    from, nested as it likes. Without `laws` the page shows the measurements, and `why_no_laws` in place of the laws.

    The page makes no request and runs one script, which its content security policy names by its hash. The same
    arguments give the same page, byte for byte.
    """
    shown, why_no_figures = _points(table, laws)
    drawn = {} if shown is None else charts(shown, laws, plan, validation)
    return render(
        "report.html.j2",
        style="page.css",
        title=title,
        drawings=figure_entries(drawn, CAPTIONS),
        commands=commands,
        provenance=provenance,
        content={
            "headline": price_in_words(laws) if laws else "No law was fitted, so the price of learning is not known.",
            "why_no_laws": None if laws else why_no_laws or "No reason was given.",
            "laws": None if laws is None else _laws(laws),
            "plan": None if plan is None else _plan(plan),
            "held_out": None if validation is None else _held_out(validation),
            "forms": None if forms is None else _forms(forms),
            "why_no_figures": why_no_figures,
            "numbers": {
                name: number for number, name in enumerate([name for name in READING_ORDER if name in drawn], 1)
            },
            "runs": _runs(table),
            "unfinished": _unfinished(table),
            "finished": table.loc[table["state"] == "done", "run"].nunique(),
        },
    )


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


def charts(
    shown: pd.DataFrame, laws: Laws | None, plan: Plan | None, validation: Validation | None
) -> dict[str, figures.Chart]:
    """Every figure of a study by name: `shown` are its points; what is None has none."""
    drawn = {
        "loss-against-forgetting": figures.loss_against_forgetting(shown, laws),
        "trajectories-target": figures.trajectories(shown, laws, "target_nll"),
        "trajectories-forgetting": figures.trajectories(shown, laws, "kl_base_tuned"),
    }
    if plan is not None and plan.frontier:
        drawn["frontier"] = frontier_figure(plan)
    predictions = None if validation is None else validation.predictions()
    for name, quantity in (("held-out-forgetting", "kl_base_tuned"), ("held-out-target", "target_nll")):
        if predictions is not None and (predictions["quantity"] == quantity).any():
            drawn[name] = held_out_figure(predictions, quantity)
    return drawn


def _held_out(validation: Validation) -> dict[str, Any]:
    """How far the laws were off on what they had not seen."""
    columns = ("Held out", "Quantity", "Law", "Error", "A constant", "A line in log N", "R²", "In 90 % interval")
    rows = [
        [
            Cell(held.split, kind="text"),
            Cell(NAMES[held.quantity], kind="text"),
            Cell(held.law, kind="text"),
            Cell(f"{held.rmse:.2g}"),
            Cell(f"{held.rmse_constant:.2g}"),
            Cell(f"{held.rmse_log_steps:.2g}"),
            Cell(f"{held.r2:.2f}"),
            Cell("no interval" if held.inside is None else f"{held.inside} of {held.n_points}"),
        ]
        for held in validation.held_out
        if held.quantity in NAMES
    ]
    told = [held for held in validation.held_out if held.quantity == "kl_base_tuned" and held.law != "line"]
    return {
        "sentences": [str(held) for held in told],
        "grid": Grid("Held out, then predicted", heads(columns, texts=3), rows) if rows else None,
        "skipped": [f"{skipped.split}: {skipped.reason}" for skipped in validation.skipped],
        "warnings": [warning for warning in validation.warnings if "nearer" in warning or "chosen" in warning],
    }


def _forms(forms: Forms) -> Grid:
    """What every form would have been off by on the same parts; the nearest of each is named below its number."""
    parts = forms.parts()
    rows = []
    for quantity in forms.fits:
        nearest = forms.nearest(quantity)
        for score in (each for each in forms.scores() if each.quantity == quantity):
            errors = [
                Cell(
                    "–" if part not in score.errors else f"{score.errors[part]:.2g}",
                    NEAREST * (nearest.get(part) == score.form),
                )
                for part in parts
            ]
            name = [Cell(NAMES[quantity], kind="text"), Cell(score.form, kind="text")]
            rows.append([*name, *errors, Cell(f"{score.r2:.4f}"), Cell(str(score.constants))])
    columns = ("Quantity", "Form", *parts, "R² in sample", "Constants")
    return Grid("Every form, held to the same parts", heads(columns, texts=2), rows)


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


def _lines(laws: Laws) -> Grid:
    columns = ("Quantity", "Slope", "Intercept", "R²", "Residual", "Runs", "Points")
    rows = [
        [
            Cell(NAMES[name], fit.estimator, kind="text"),
            _parameter(fit, "slope"),
            _parameter(fit, "intercept"),
            *_evidence(fit),
        ]
        for name in laws.lines
        for fit in (laws.lines[name], laws.orthogonal[name])
    ]
    return Grid("Lines", heads(columns, texts=1), rows)


def _joint(laws: Laws) -> Grid:
    columns = ("Quantity", "Asymptote or start", "K", "x, parameters", "y, steps", "R²", "Residual", "Runs", "Points")
    rows = [
        [
            Cell(NAMES[name], fit.law, kind="text"),
            *(_parameter(fit, parameter) for parameter in (LAWS[fit.law].linear[0], "K", "x", "y")),
            *_evidence(fit),
        ]
        for name, fit in laws.joint.items()
    ]
    return Grid("Joint laws", heads(columns, texts=1), rows)


def _parameter(fit: Fit, name: str) -> Cell:
    """A parameter with its interval; no number where the data do not tell it from others that fit as well."""
    if name not in fit.parameters:
        return Cell("–", "one rank only")
    estimate = fit.parameters[name]
    if math.isfinite(estimate.stderr):
        return Cell(rounded(estimate.value, estimate.stderr), interval(*estimate.interval(LEVEL), estimate.stderr))
    at = list(fit.parameters).index(name)
    return (
        Cell("not identified")
        if math.isfinite(fit.covariance[at][at])
        else Cell(f"{estimate.value:.3g}", "no interval")
    )


def _evidence(fit: Fit) -> list[Cell]:
    return [Cell(f"{fit.r2:.4f}"), Cell(f"{fit.rmse:.2g}"), Cell(str(fit.n_runs)), Cell(str(fit.n_points))]


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


def _prediction(prediction: Prediction) -> Cell:
    mean, error = float(prediction.mean), float(prediction.stderr)
    if not math.isfinite(error):
        return Cell(f"{mean:.3g}", "no interval")
    return Cell(rounded(mean, error), interval(*prediction.interval(LEVEL), error))


def _runs(table: pd.DataFrame) -> Grid | None:
    """What each finished run measured last, a line per retained text; None when no run finished."""
    done = table[table["state"] == "done"]
    retained = done[done["role"] == "retain"].sort_values("step")
    if retained.empty:
        return None
    learned = dict(_rows(done[done["role"] == "target"], "run", "step"))
    untuned = dict(_rows(retained[retained["step"] == 0], "run", "corpus"))
    last = retained.drop_duplicates(["run", "corpus"], keep="last").sort_values([*ORDER, "run", "corpus"])
    varied = [name for name in SETTINGS if last[name].nunique() > 1]
    columns = ["Rank", "Steps", "Target loss before", "after", "KL", "Hard loss", "Agreement", "Documents"]
    rows = [
        [
            Cell(row["run"], kind="name"),
            *(Cell(str(row[name]), kind="text") for name in varied),
            Cell(str(int(row["r"]))),
            Cell(f"{row['step']:,.0f}"),
            _measured(learned.get((run, row["step"])), "base_nll"),
            _measured(learned.get((run, row["step"])), "nll"),
            _measured(row, "kl_base_tuned"),
            _measured(row, "hard_cross_entropy", before=untuned.get((run, corpus))),
            _measured(row, "agreement"),
            Cell(f"{row['documents']:,.0f}"),
        ]
        for (run, corpus), row in _rows(last, "run", "corpus")
    ]
    names = [SETTINGS[name] for name in varied]
    return Grid("Measurements", heads(["Run", *names, *columns], texts=1 + len(names)), rows)


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


def _measured(row: Mapping[Any, Any] | None, quantity: str, *, before: Mapping[Any, Any] | None = None) -> Cell:
    """A measurement with its error, and what it was of the untouched base where that is not 0."""
    if row is None or pd.isna(row[quantity]):
        return Cell("not measured")
    note = "" if before is None else f"base {_estimate(before, quantity)}"
    return Cell(str(_estimate(row, quantity)), note)


def _estimate(row: Mapping[Any, Any], quantity: str) -> Estimate:
    return Estimate(value=row[quantity], stderr=row[f"{quantity}_stderr"], n=int(row["documents"]))


def _unfinished(table: pd.DataFrame) -> Grid | None:
    """Every run without a result, with how far it came and why; None when there is none."""
    ended = table[table["state"] != "done"].sort_values("step").drop_duplicates("run", keep="last")
    if ended.empty:
        return None
    rows = [
        [
            Cell(row["run"], kind="name"),
            Cell(row["state"], kind="text"),
            Cell("–" if pd.isna(row["r"]) else str(int(row["r"]))),
            Cell("none" if pd.isna(row["step"]) else f"{row['step']:,.0f}"),
            Cell("–" if pd.isna(row["reason"]) else row["reason"], kind="words"),
        ]
        for row in ended.sort_values([*ORDER, "run"]).to_dict("records")
    ]
    columns = heads(("Run", "State", "Rank", "Last step measured"), texts=2)
    return Grid("Runs without a result", [*columns, Cell("Reason", kind="words")], rows)
