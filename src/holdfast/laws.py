"""Every law of a study, from its table of runs: `fit`.

A law says how a quantity of a fine-tuned model follows from others: forgetting from the loss on what is learned, either
of them from the number of trainable parameters P and of update steps N. Forms are in `formulas`, one law fitted to one
quantity in `fits`.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd

from holdfast import stats
from holdfast.display import html_table
from holdfast.fits import Fit, fit_law, fit_orthogonal_line, resample
from holdfast.formulas import GROWTH, GROWTH_IN_STEPS, LAWS, LINE, MULTIPLICATIVE, STEPS, Law
from holdfast.points import SKIP_FRACTION, names_of, points
from holdfast.stats import Prediction
from holdfast.store import QUANTITIES

__all__ = [
    "FORGETTING", "GROWTH", "GROWTH_IN_STEPS", "LAWS", "LINE", "MULTIPLICATIVE", "QUANTITIES", "SKIP_FRACTION",
    "STEPS", "Fit", "Law", "Laws", "Prediction", "fit", "fit_law", "fit_orthogonal_line", "points", "resample",
]  # fmt: skip

FORGETTING = ("kl_base_tuned", "hard_cross_entropy")
"""The measures of forgetting that are fitted: ours, and the one to compare with the paper."""

POOLED = (
    "method", "adapter", "learning_rate", "optimizer", "schedule", "batch_tokens", "lora_alpha", "use_rslora", "dtype",
)  # fmt: skip
"""Settings a law does not know of; runs that differ in one are pooled with a warning."""


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Every law of one study: one model, one target, one retained corpus."""

    model: str
    target: str
    corpus: str
    method: str
    lines: dict[str, Fit]
    """`LINE` per measure of forgetting, by ordinary least squares, as in the paper."""
    orthogonal: dict[str, Fit]
    """The same by orthogonal least squares, for there is noise on both axes."""
    joint: dict[str, Fit]
    """For "target_nll" and each measure of forgetting: `MULTIPLICATIVE` or `GROWTH`, `STEPS` or `GROWTH_IN_STEPS`."""
    params_per_rank: float | None
    """None when it differs between runs, or a method has no rank."""
    ranks: tuple[int, ...]
    """That were run; 0 alone where no method has one."""
    tokens_per_step: float | None
    """None when it differs between runs."""
    base_params: float | None
    """Frozen parameters that multiply, of which `costs` makes operations; None when it differs, or is not known."""
    skip_fraction: float
    n_runs: int
    warnings: tuple[str, ...]
    """Of the study; each fit has its own."""

    def _repr_html_(self) -> str:
        rows = []
        for fit in (*self.lines.values(), *self.joint.values()):
            constants = "; ".join(f"{name} {value}" for name, value in fit.parameters.items())
            rows.append((fit.quantity, fit.law, constants, f"{fit.r2:.3f}"))
        return html_table(("Quantity", "Law", "Constants", "R²"), rows, self.warnings)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, at full precision; nan becomes None."""
        return stats.as_dict(self)

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        fits = {
            group: {quantity: Fit.from_dict(value) for quantity, value in held[group].items()}
            for group in ("lines", "orthogonal", "joint")
        }
        return cls(**{**held, **fits, "ranks": tuple(held["ranks"]), "warnings": tuple(held["warnings"])})


def fit(table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION) -> Laws:
    """Fit every law of a study to its table of runs (see `points` for which rows count).

    Runs that differ in method, learning rate or another setting are pooled with a warning: at equal target loss a
    larger learning rate forgets more, and the line fits other methods badly (the paper's appendix B). Forgetting that
    has not begun to flatten, so that the law with an asymptote runs to its bound, is fitted by one that grows.

    Raises:
        FitError: see `points` and `fit_law`.
    """
    measured = points(table, corpus=corpus, skip_fraction=skip_fraction)
    used = table[table["run"].isin(measured["run"])].drop_duplicates("run")
    several = measured["trainable_params"].nunique() > 1
    flattening, growing = (MULTIPLICATIVE, GROWTH) if several else (STEPS, GROWTH_IN_STEPS)
    joint = {quantity: fit_law(flattening, measured, quantity) for quantity in ("target_nll", *FORGETTING)}
    endless = [name for name in FORGETTING if joint[name].parameters["y"].value <= flattening.bounds[-1][0]]
    joint |= {quantity: fit_law(growing, measured, quantity) for quantity in endless}
    first = measured.iloc[0]
    return Laws(
        model=str(first["model"]),
        target=str(first["target"]),
        corpus=str(first["corpus"]),
        method=", ".join(sorted(measured["method"].unique())),
        lines={quantity: fit_law(LINE, measured, quantity, huber=math.inf) for quantity in FORGETTING},
        orthogonal={quantity: fit_orthogonal_line(measured, quantity) for quantity in FORGETTING},
        joint=joint,
        params_per_rank=_constant(used["trainable_params"] / used["r"]) if used["r"].notna().all() else None,
        ranks=tuple(sorted(set(measured["r"].tolist()) - {0})) or (0,),
        tokens_per_step=_constant(used["batch_tokens"]),
        base_params=_constant(used["base_params"]),
        skip_fraction=skip_fraction,
        n_runs=len(used),
        warnings=(
            *_study_warnings(table, used),
            *(
                f"{name} has not begun to flatten: trust no forecast far beyond the steps that were run"
                for name in endless
            ),
        ),
    )


def _study_warnings(table: pd.DataFrame, used: pd.DataFrame) -> tuple[str, ...]:
    """What a reader of the laws must know of the runs behind them."""
    warnings = []
    unused = table[~table["run"].isin(used["run"])].drop_duplicates("run")
    if len(unused):
        listed = ", ".join(f"{run} ({state})" for run, state in zip(unused["run"], unused["state"], strict=True))
        warnings.append(f"not in any fit: {listed}")
    for column in (name for name in POOLED if name in used):  # tables of earlier versions lack some
        if used[column].nunique() > 1:
            warnings.append(f"runs that differ in {column} are pooled: {names_of(used[column])}")
    if set(used["schedule"]) != {"constant"}:
        warnings.append("the learning rate is not constant: a checkpoint at N steps is not a run of N steps")
    if used["trainable_params"].nunique() == 1:
        one = f"r = {names_of(used['r'])}" if used["r"].notna().all() else "one number of parameters"
        warnings.append(f"only {one} was run: the joint laws are in steps alone, and rank is unknown")
    return tuple(warnings)


def _constant(values: "pd.Series[float]") -> float | None:
    return float(values.iloc[0]) if values.nunique() == 1 else None


def foreign(table: pd.DataFrame, run: str) -> list[str]:
    """Columns in which a run has what no finished run of the table has: its model or target, or how it is trained."""
    own, finished = table[table["run"] == run], table[table["state"] == "done"]
    return [name for name in ("model", "target", *POOLED) if name in own and not own[name].isin(finished[name]).all()]
