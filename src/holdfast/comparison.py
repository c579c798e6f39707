"""The paper's Table 1 from the user's own runs, in constants that each mean something, beside the paper's own."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from holdfast.fits import HUBER
from holdfast.forms import Forms
from holdfast.formulas import LINE, PAPER
from holdfast.laws import Fit, Laws, fit_law
from holdfast.presets import PUBLISHED, published

CONSTANTS = PAPER.parameters
"""Of the joint law, in the order they are printed."""

HARD = "hard_cross_entropy"
"""The measure of forgetting that the paper fitted."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Laws of the paper's own form, ours and theirs, by whose they are; and the lines from loss to forgetting."""

    joint: dict[str, dict[str, Fit]]
    """By quantity, then by whose: "this study", then the names of the published laws."""
    lines: dict[str, Fit]
    """Of the hard forgetting loss, by whose."""


def beside_the_paper(points: pd.DataFrame, laws: Laws, forms: Forms) -> Compared | None:
    """The paper's form fitted to the target loss and its own measure of forgetting, beside what the paper found.

    The paper prints a, b and c, of which only two are told apart by data; here all are in the identified constants of
    `formulas.PAPER`. Each is about the middle of its own study (`Fit.reference`), which is not the same for all. None
    where one number of parameters was run, or too few points for six constants.

    Of `points`, those of the laws' own runs.

    Source: Kalajdzievski 2024, arXiv 2401.05605, table 1.
    """
    learned = forms.fits["target_nll"].get(PAPER.name)
    if learned is None:
        return None
    theirs = {name: published(name) for name in PUBLISHED}
    ours = {"target_nll": learned, HARD: fit_law(PAPER, points[points["run"].isin(laws.runs)], HARD, huber=HUBER)}
    return Compared(
        joint={
            quantity: {"this study": fit} | {name: law.joint[quantity] for name, law in theirs.items()}
            for quantity, fit in ours.items()
        },
        lines={"this study": laws.lines[HARD]} | {name: law.lines[HARD] for name, law in theirs.items()},
    )


def frame(compared: Compared) -> pd.DataFrame:
    """Table 1 as a table: a row per quantity and whose law, each constant with its standard error."""
    rows: list[dict[str, Any]] = [
        {"quantity": quantity, "law": "joint", "of": of} | _constants(fit)
        for quantity, fits in compared.joint.items()
        for of, fit in fits.items()
    ]
    rows += [{"quantity": HARD, "law": LINE.name, "of": of} | _constants(fit) for of, fit in compared.lines.items()]
    return pd.DataFrame(rows)


def identified(fit: Fit, name: str) -> float:
    """A constant, with or without an interval, or nan where the data leave it open; a published one as it is."""
    estimate, at = fit.parameters[name], list(fit.parameters).index(name)
    open_ = math.isnan(estimate.stderr) and math.isfinite(fit.covariance[at][at])
    return math.nan if open_ and fit.n_points else estimate.value


def _constants(fit: Fit) -> dict[str, Any]:
    values = {name: identified(fit, name) for name in fit.parameters}
    errors = {f"{name}_stderr": estimate.stderr for name, estimate in fit.parameters.items()}
    return values | errors | {"r2": fit.r2, "runs": fit.n_runs}
