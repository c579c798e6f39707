"""Every law of a study, from its table of runs: `fit`.

A law says how a quantity of a fine-tuned model follows from others: forgetting from the loss on what is learned, either
of them from the number of trainable parameters P and of update steps N. Forms are in `formulas`, one law fitted to one
quantity in `fits`.
"""

import math
import re
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
    "STEPS", "WAYS", "Fit", "Law", "Laws", "Prediction", "by_size", "commonest", "fit", "fit_law",
    "fit_orthogonal_line", "foreign", "points", "resample", "ways",
]  # fmt: skip

FORGETTING = ("kl_base_tuned", "hard_cross_entropy")
"""The measures of forgetting that are fitted: ours, and the one to compare with the paper."""

WAYS = ("method", "adapter", "learning_rate", "optimizer", "schedule", "batch_tokens", "lora_alpha", "use_rslora")
"""Columns that a way of training is told by: a law is of one."""

BETWEEN = " | "
"""Settings, in the key of a way."""

POOLED = (*WAYS, "dtype")
"""Settings a law does not know of; where runs that one law is of differ in one, that is said."""


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Every law of one study: one model, one target, one retained corpus, one way of training."""

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
    runs: tuple[str, ...]
    """Names of the runs it was fitted to; none are known of a published law."""
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
        return cls(**{**held, **fits, **{name: tuple(held[name]) for name in ("ranks", "runs", "warnings")}})


def fit(table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION) -> Laws:
    """Fit every law of a study to its table of runs (see `points` for which rows count).

    Of runs trained in several `ways` the laws are of the one with the most runs, and say what they leave out: at equal
    target loss a larger learning rate forgets more, and the line fits other methods badly (the paper's appendix B).
    Forgetting that has not begun to flatten, so that the law with an asymptote runs to its bound, is fitted by one that
    grows.

    Raises:
        FitError: see `points` and `fit_law`.
    """
    measured = points(table, corpus=corpus, skip_fraction=skip_fraction)
    found = table[table["run"].isin(measured["run"])].drop_duplicates("run")
    used = commonest(found)
    measured = measured[measured["run"].isin(used["run"])].reset_index(drop=True)
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
        runs=tuple(sorted(used["run"])),
        warnings=(
            *_study_warnings(table, used, found),
            *(
                f"{name} has not begun to flatten: trust no forecast far beyond the steps that were run"
                for name in endless
            ),
        ),
    )


def ways(runs: pd.DataFrame) -> "pd.Series[str]":
    """How each run was trained, one row a run: a key, alike for runs that one law may describe.

    Ranks, seeds, layers, lengths and precision differ within a way. An alpha that goes with the rank is one way of
    scaling, and numbers inside a PEFT config that change how many parameters are trained are its size, not another way.
    """
    known = pd.DataFrame({column: runs[column].map(_setting) for column in WAYS if column in runs}, index=runs.index)
    if "adapter" in known:
        known["adapter"] = known["adapter"].map(lambda held: re.sub(r"(?<=:)-?[\d.]+(?:e-?\d+)?", "#", held))
    several = "lora_alpha" in known and runs["lora_alpha"].nunique() > 1
    if several and runs.groupby("r")["lora_alpha"].nunique().max() == 1:
        known["lora_alpha"] = "goes with r"
    return known.agg(BETWEEN.join, axis="columns")


def commonest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of those runs that were trained as most are; see `by_size`."""
    runs = table.drop_duplicates("run").set_index("run")
    way = ways(runs)
    return table[table["run"].isin(way.index[way == by_size(way)[0]])]


def by_size(ways: "pd.Series[str]") -> list[str]:
    """The ways that runs were trained in, one row a run, the commonest first; of as common ones LoRA's."""
    counts = ways.value_counts()
    return sorted(counts.index, key=lambda way: (-counts[way], not way.startswith(f"lora{BETWEEN}"), way))


def _setting(held: object) -> str:
    """In words, alike for every way of saying that there is none."""
    return "" if pd.isna(held) or held == "{}" else str(held)  # type: ignore[call-overload]


def _study_warnings(table: pd.DataFrame, used: pd.DataFrame, found: pd.DataFrame) -> tuple[str, ...]:
    """What a reader of the laws must know of the runs behind them, out of all that were found."""
    warnings = []
    if other := len(found) - len(used):
        differ = (name for name in WAYS if name in found and found[name].map(_setting).nunique() > 1)
        own = ", ".join(f"{name} {names_of(used[name].map(_setting)) or 'none'}" for name in differ)
        count = f"{other} of {len(found)} finished runs are" if other > 1 else f"1 of {len(found)} finished runs is"
        warnings.append(f"{count} trained in another way and in no law (these are of {own}): choose by --only")
    unused = table[~table["run"].isin(found["run"])].drop_duplicates("run")
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


def foreign(laws: Laws, table: pd.DataFrame, run: str) -> list[str]:
    """Columns in which a run has what none of the laws' has: its model or target, or how it is trained."""
    own, finished = table[table["run"] == run], table[table["run"].isin(laws.runs)]
    return [name for name in ("model", "target", *POOLED) if name in own and not own[name].isin(finished[name]).all()]
