"""A study as one HTML page: tables, fits and figures, every number of them from the rows or the fits given."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from holdfast.afterwards import Afterwards
from holdfast.comparison import CONSTANTS, HARD, Compared
from holdfast.display import visible
from holdfast.errors import FitError
from holdfast.forms import Forms
from holdfast.groups import QUANTITY, Group
from holdfast.laws import LAWS, Fit, Laws
from holdfast.page import Cell, Grid, figure_entries, heads, interval, render, rows_file, unbroken
from holdfast.planning import Plan, percent, price_in_words
from holdfast.run_grids import TERMS, runs_grid, unfinished_grid
from holdfast.stats import Prediction, rounded
from holdfast.study_answers import answers, passages
from holdfast.study_figures import captions, charts, last_measured, with_series
from holdfast.validation import Validation

LEVEL = 0.9
"""Of every interval on the page."""

NAMES = {
    "target_nll": "Target loss",
    "kl_base_tuned": "Forgetting, KL",
    "hard_cross_entropy": "Hard forgetting loss",
}

NEAREST = "nearest"


def report(
    table: pd.DataFrame,
    laws: Laws | None,
    plan: Plan | None,
    *,
    validation: Validation | None = None,
    forms: Forms | None = None,
    compared: Compared | None = None,
    groups: Sequence[Group] = (),
    after: Afterwards | None = None,
    title: str,
    commands: Sequence[str],
    provenance: Mapping[str, Any],
    why_no_laws: str | None = None,
    why_no_plan: str | None = None,
    corpus: str | None = None,
    reload_s: int | None = None,
) -> str:
    """A study as one self-contained HTML page: what learning costs, what to run, and the evidence for both.

    `table` is that of `archive.table`, failed and diverged runs included; `laws`, `plan`, `validation`, `forms`,
    `compared` and `groups` were made from it; `after` is what was probed and measured of its runs. With `reload_s` a
    browser reads the file again after so many seconds.
    `commands` are what a reader types to make the page again; `provenance` is whatever says where the numbers come
    from, nested as it likes. Without `laws` the page shows the measurements, and `why_no_laws` in place of the laws,
    of the retained text `corpus`; `why_no_plan` is why there is none of a budget that was given.

    The page makes no request and runs one script, which its content security policy names by its hash. The same
    arguments give the same page, byte for byte.
    """
    probed = None if after is None else after.probed
    done = table.loc[table["state"] == "done", "run"]
    try:
        drawn, why_no_figures = charts(table, laws, plan, validation, probed, corpus=corpus), None
    except FitError as error:
        drawn, why_no_figures = {}, str(error)
    numbers = {name: number for number, name in enumerate(drawn, 1)}
    entries = figure_entries(drawn, captions(drawn, probed))
    drawings = {entry["name"]: entry | {"number": numbers[entry["name"]]} for entry in entries}
    return render(
        "report.html.j2",
        style="report.css",
        title=title,
        drawings=entries,
        commands=commands,
        provenance=provenance,
        reload_s=reload_s,
        content={
            "headline": unbroken(_headline(table, laws)),
            "price": None if laws is None else unbroken(price_in_words(laws)),
            "why_no_laws": None if laws else why_no_laws or "No reason was given.",
            "laws": None if laws is None else _laws(laws, others=not done.isin(laws.runs).all()),
            "plan": None if plan is None else _plan(plan),
            "why_no_plan": why_no_plan,
            "held_out": None if validation is None else _held_out(validation),
            "forms": None if forms is None else _forms(forms),
            "compared": None
            if compared is None
            else {"joint": _compared(compared), "lines": _lines_compared(compared)},
            "groups": groups_grid(groups) if len(groups) > 1 else None,
            "why_no_figures": why_no_figures,
            "numbers": numbers,
            "answers": None if after is None else answers(after, drawings),
            "passages": [] if after is None else passages(after.forgotten),
            "series": list(with_series(table)["series"].cat.categories) if drawn else [],
            "runs": runs_grid(table),
            "unfinished": unfinished_grid(table),
            "finished": done.nunique(),
            "rows": rows_file(table.sort_values(["run", "step", "role", "corpus"])),
        },
    )


def _headline(table: pd.DataFrame, laws: Laws | None) -> str:
    """What was forgotten, and what it bought: the two numbers a reader came for."""
    last = last_measured(table)
    if laws is None:
        return "No law was fitted, so the price of learning is not known."
    ends = last[last["corpus"] == laws.corpus].sort_values("kl_base_tuned")
    low, high = (rounded(row["kl_base_tuned"], row["kl_base_tuned_stderr"]) for _, row in ends.iloc[[0, -1]].iterrows())
    forgot = f"{high}" if low == high else f"{low} to {high}"
    one = len(ends) == 1
    return (
        f"{'The run' if one else f'{len(ends)} runs'} forgot {forgot} nats per token of {laws.corpus}. "
        f"{price_in_words(laws)}"
    )


def _held_out(validation: Validation) -> dict[str, Any]:
    """How far the laws were off on what they had not seen."""
    columns = ("Held out", "Quantity", "Law", "Error", "A constant", "A line in log N", "R²", "In 90 % interval")
    rows = [
        [
            Cell(held.split, kind="text"),
            Cell(NAMES[held.quantity], kind="text", link=TERMS[held.quantity]),
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
        "sentences": [unbroken(str(held)) for held in told],
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
            name = [Cell(NAMES[quantity], kind="text", link=TERMS[quantity]), Cell(score.form, kind="text")]
            rows.append([*name, *errors, Cell(f"{score.r2:.4f}"), Cell(str(score.constants))])
    columns = ("Quantity", "Form", *parts, "R² in sample", "Constants")
    return Grid("Every form, held to the same parts", heads(columns, texts=2), rows)


def _laws(laws: Laws, *, others: bool) -> dict[str, Any]:
    """Everything the page says of the laws; `others` is whether there are finished runs that they are not of."""
    fits = (*laws.lines.values(), *laws.orthogonal.values(), *laws.joint.values())
    line = laws.lines["kl_base_tuned"]
    return {
        "model": laws.model,
        "target": laws.target,
        "corpus": laws.corpus,
        "method": laws.method,
        "ranks": ", ".join(str(r) for r in laws.ranks if r),
        "n_runs": laws.n_runs,
        "others": others,
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
            Cell(NAMES[name], fit.estimator, kind="text", link=TERMS[name]),
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
            Cell(NAMES[name], fit.law, kind="text", link=TERMS[name]),
            *(_parameter(fit, constant) for constant in (LAWS[fit.law].linear[0], "K", "x", "y")),
            *_evidence(fit),
        ]
        for name, fit in laws.joint.items()
    ]
    return Grid("Joint laws", heads(columns, texts=1), rows)


def groups_grid(groups: Sequence[Group]) -> Grid:
    """A row for each group: its price, its exponents, and how far the law of its target's largest group was off."""
    columns = [
        *heads(("Runs that share",), texts=1), Cell("Runs"), Cell("Price", link="term-price"),
        Cell("Target loss, x"), Cell("y"), Cell("Forgetting, x"), Cell("y"), Cell("Largest group's line off by"),
    ]  # fmt: skip
    rows = [
        [
            Cell(visible(group.name), visible(group.why_no_laws or ""), kind="words"),
            Cell(str(group.n_runs), f"{group.n_points} points"),
            _price(group),
            *_exponents(group),
            _missed(group),
        ]
        for group in groups
    ]
    return Grid("By what was learned and how", columns, rows)


def _price(group: Group) -> Cell:
    price = group.price
    if not math.isfinite(price.stderr):
        return Cell(f"{price.value:.3g}", "no interval")
    return Cell(rounded(price.value, price.stderr), interval(*price.interval(LEVEL), price.stderr))


def _exponents(group: Group) -> list[Cell]:
    if group.laws is None:
        return [Cell("–")] * 4
    joint = group.laws.joint
    return [_parameter(joint[quantity], name) for quantity in ("target_nll", QUANTITY) for name in ("x", "y")]


def _missed(group: Group) -> Cell:
    if not group.missed:
        return Cell("–", "itself") if group.missed is None else Cell("–", "no law of the largest")
    line = group.missed[0]
    return Cell(f"{line.rmse:.2g}", f"mean {line.bias:+.2g}")


def _compared(compared: Compared) -> Grid:
    """The joint laws in the paper's form, ours and theirs."""
    rows = [
        [
            Cell(NAMES[quantity], kind="text", link=TERMS[quantity]),
            Cell(of, kind="text"),
            *(_published_or_ours(fit, name) for name in CONSTANTS),
            Cell("not published" if math.isnan(fit.r2) else f"{fit.r2:.4f}"),
            Cell(f"{fit.reference['trainable_params']:.2g}, {fit.reference['steps']:.3g}"),
        ]
        for quantity, fits in compared.joint.items()
        for of, fit in fits.items()
    ]
    columns = ("Quantity", "Of", *CONSTANTS, "R²", "P₀, N₀")
    return Grid("The paper's law, here and there", heads(columns, texts=2), rows)


def _lines_compared(compared: Compared) -> Grid:
    """Equation 4, ours and theirs."""
    rows = [
        [
            Cell(NAMES[HARD], kind="text", link=TERMS[HARD]),
            Cell(of, kind="text"),
            _published_or_ours(fit, "slope"),
            _published_or_ours(fit, "intercept"),
            Cell(f"{fit.r2:.4f}"),
        ]
        for of, fit in compared.lines.items()
    ]
    return Grid(
        "The paper's line, here and there", heads(("Quantity", "Of", "Slope", "Intercept", "R²"), texts=2), rows
    )


def _published_or_ours(fit: Fit, name: str) -> Cell:
    """A parameter; of a published law, whose points are not known, without the remark that it has no interval."""
    return _parameter(fit, name) if fit.n_points else Cell(f"{fit.parameters[name].value:.3g}")


def _parameter(fit: Fit, name: str) -> Cell:
    """A parameter with its interval; no number where the data do not tell it from others that fit as well."""
    if name not in fit.parameters:
        return Cell("–", "one size only")
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
        "over": None if over is None else "unknown" if math.isnan(over) else percent(over),
        "extrapolates": plan.extrapolates,
        "reasons": list(map(unbroken, plan.reasons)),
        "warnings": plan.warnings,
    }


def _prediction(prediction: Prediction) -> Cell:
    """Of one run, as the plan says it in words: a loss or a KL, which are never below 0."""
    mean, error = max(float(prediction.mean), 0.0), math.hypot(float(prediction.stderr), float(prediction.scatter))
    low, high = (float(prediction.run_quantile(tail)) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    if math.isnan(low):
        return Cell(f"{mean:.3g}", "no interval")
    low, high = max(low, 0.0), max(high, 0.0)
    return Cell(rounded(mean, error), f"{percent(LEVEL)} of runs {interval(low, high, error)}")
