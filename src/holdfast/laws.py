"""Laws as data, one way to fit them, and intervals that cover.

A law says how a quantity of a fine-tuned model follows from others: forgetting from the loss on what is learned, either
of them from the number of trainable parameters P and of update steps N. `fit` reads a table of runs and returns every
law of the study; each `Fit` predicts with an interval, and carries inside itself what it does not know.

Uncertainty is clustered by run: the checkpoints of one run are one sample. Noise that all runs share (the choice of
held-out texts, one order of batches) is in no interval here.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast import stats
from holdfast.errors import ConfigError, FitError
from holdfast.fitting import Solution, identification, orthogonal_line, separable_fit
from holdfast.formulas import GROWTH, GROWTH_IN_STEPS, LAWS, LINE, MULTIPLICATIVE, STEPS, Law
from holdfast.stats import Estimate, FloatArray, Prediction, clustered_covariance, number
from holdfast.store import QUANTITIES

__all__ = [
    "FORGETTING", "GROWTH", "GROWTH_IN_STEPS", "LAWS", "LINE", "MULTIPLICATIVE", "QUANTITIES", "SKIP_FRACTION",
    "STEPS", "Fit", "Law", "Laws", "Prediction", "fit", "fit_law", "fit_orthogonal_line", "points",
]  # fmt: skip

SKIP_FRACTION = 50 / 260
"""Share of a run's steps left out of the fits: the paper leaves out the first 50 of 260."""

HUBER = 1.345
"""Residual, in robust standard deviations, beyond which a point pulls no harder: 95 % efficient under normal noise."""

FORGETTING = ("kl_base_tuned", "hard_cross_entropy")
"""The measures of forgetting that are fitted: ours, and the one to compare with the paper."""

IDENTITY = (
    "run", "model", "target", "method", "r", "learning_rate", "seed", "trainable_params", "steps", "tokens", "corpus",
)  # fmt: skip
"""What says which measurement a row of `points` is."""

POOLED = ("method", "learning_rate", "optimizer", "schedule", "batch_tokens", "use_rslora", "dtype")
"""Settings a law does not know of; runs that differ in one are pooled with a warning."""

FEW_RUNS = 6
FEW_STARTS = 0.1
POOR = 0.15
"""Share of the variation left by a line above which one price is doubtful."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law and the evidence for it: `predict` is what to use, parameters second, R² last."""

    law: str
    """Name in `LAWS`."""
    estimator: str
    """How it was fitted, in words."""
    quantity: str
    corpus: str
    parameters: dict[str, Estimate]
    """n counts runs. A parameter the data do not identify has a stderr of nan, and a warning."""
    covariance: tuple[tuple[float, ...], ...]
    """Of all parameters in order, withheld stderrs included: a prediction can be sure where a parameter is not."""
    dof: int
    condition: float
    """Of the Jacobian with columns scaled to length 1; nan when a column vanishes."""
    starts_agreeing: float
    """Share of the starts that reached this optimum."""
    r2: float
    """In sample: says little about forecasts."""
    rmse: float
    n_points: int
    n_runs: int
    reference: dict[str, float]
    """What each input is divided by: P0, N0."""
    domain: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]

    def predict(self, **inputs: npt.ArrayLike) -> Prediction:
        """The law's value and its uncertainty at `inputs`, named as the law's, which broadcast against each other.

        Raises:
            ConfigError: other names than the law's inputs, or an input that is not positive where the law needs it.
        """
        law = LAWS[self.law]
        if set(inputs) != set(law.inputs):
            raise ConfigError(f"got inputs {sorted(inputs)}, expected {sorted(law.inputs)}, at the {law.name} law")
        values = np.broadcast_arrays(*(np.asarray(inputs[name], dtype=np.float64) for name in law.inputs))
        if law.relative and not all((value > 0).all() for value in values):
            raise ConfigError(f"got an input that is not positive, expected all above 0, at the {law.name} law")
        scaled = np.stack(
            [value.ravel() / self.reference[name] for name, value in zip(law.inputs, values, strict=True)], axis=-1
        )
        linear = np.array([self.parameters[name].value for name in law.linear])
        columns, slopes = law.columns(scaled, np.array([self.parameters[name].value for name in law.nonlinear]))
        jacobian = np.concatenate([columns, (slopes @ linear).T], axis=1)
        variance = np.einsum("ni,ij,nj->n", jacobian, np.array(self.covariance), jacobian)
        limits = [self.domain[name] for name in law.inputs]
        outside = [(value < low) | (value > high) for value, (low, high) in zip(values, limits, strict=True)]
        shape = values[0].shape
        return Prediction(
            mean=stats.unwrapped((columns @ linear).reshape(shape)),
            stderr=stats.unwrapped(np.sqrt(np.maximum(variance, 0)).reshape(shape)),
            scatter=self.rmse * math.sqrt(self.n_points / (self.n_points - len(self.parameters))),
            dof=self.dof,
            extrapolates=stats.unwrapped(np.any(outside, axis=0)),
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, at full precision; nan becomes None."""
        return stats.as_dict(self)

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            **{
                **held,
                "parameters": {name: Estimate.from_dict(value) for name, value in held["parameters"].items()},
                "covariance": tuple(tuple(number(value) for value in row) for row in held["covariance"]),
                "domain": {name: (low, high) for name, (low, high) in held["domain"].items()},
                "condition": number(held["condition"]),
                "r2": number(held["r2"]),
                "warnings": tuple(held["warnings"]),
            }
        )


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
    """None when it differs between runs."""
    ranks: tuple[int, ...]
    tokens_per_step: float | None
    """None when it differs between runs."""
    skip_fraction: float
    n_runs: int
    warnings: tuple[str, ...]
    """Of the study; each fit has its own."""

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
        params_per_rank=_constant(used["trainable_params"] / used["r"]),
        ranks=tuple(sorted(set(measured["r"].tolist()))),
        tokens_per_step=_constant(used["batch_tokens"]),
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


def points(table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION) -> pd.DataFrame:
    """What the laws are fitted to: one row per finished run and step, target and retained corpus side by side.

    `target` is the name of what is learned, `target_nll` the loss on its held-out part, `steps` the updates N; the
    other quantities are the retained corpus's, which need not be named when there is one. Left out are rows of runs
    that failed, diverged or are in progress, the first `skip_fraction` of each run's steps, step 0 always, and steps at
    which only one of the two was measured. The order of the table's rows does not matter.

    Raises:
        ConfigError: `skip_fraction` is not at least 0 and below 1.
        FitError: no such row, runs of several models or targets, or not exactly one target and one retained corpus.
    """
    if not 0 <= skip_fraction < 1:
        raise ConfigError(f"got skip_fraction {skip_fraction}, expected at least 0 and below 1, at the points to fit")
    done = table[table["state"] == "done"]
    if done.empty:
        raise FitError(f"got no finished run among {table['run'].nunique()}, expected at least one, at the run table")
    for column in ("model", "target"):
        _only(done[column], f"{column} in the table: a law holds for one, so split the table")
    retained, learned = done[done["role"] == "retain"], done[done["role"] == "target"]
    target = _only(learned["corpus"], "corpus of role target")
    if corpus is None:
        corpus = _only(retained["corpus"], "corpus of role retain, or `corpus=` naming one")
    elif corpus not in set(retained["corpus"]):
        raise FitError(f"got corpus {corpus!r}, expected one of {_names(retained['corpus'])}, at the retained corpora")
    retained = retained[(retained["corpus"] == corpus) & (retained["step"] > skip_fraction * retained["total_steps"])]
    loss = learned[["run", "step", "nll", "nll_stderr"]]
    loss = loss.rename(columns={"nll": "target_nll", "nll_stderr": "target_nll_stderr"})
    paired = retained.merge(loss, on=["run", "step"], validate="one_to_one").sort_values(["run", "step"])
    if paired.empty:
        raise FitError(f"got no step past the first {skip_fraction:.0%} with both losses, expected some, at {corpus!r}")
    paired = paired.astype({"step": int, "r": int, "trainable_params": int}).assign(target=target)
    paired = paired.rename(columns={"step": "steps"})
    quantities = [name for quantity in ("target_nll", *QUANTITIES) for name in (quantity, f"{quantity}_stderr")]
    return paired[[*IDENTITY, *quantities]].reset_index(drop=True)


def fit_law(law: Law, points: pd.DataFrame, quantity: str, *, huber: float = HUBER) -> Fit:
    """Fit one law to one quantity of a table of `points`, with intervals clustered by run.

    `huber` is where a point stops pulling harder, in robust standard deviations; math.inf is ordinary least squares.

    Raises:
        FitError: too few points, several corpora, or a value the law cannot take.
    """
    inputs, y = _data(law, points, quantity)
    reference = _geometric_means(inputs) if law.relative else np.ones(inputs.shape[1])
    columns = partial(law.columns, inputs / reference)
    solution = separable_fit(columns, y, starts=law.starts, bounds=law.bounds, huber=huber)
    estimator = f"Huber at {huber:g} robust standard deviations" if math.isfinite(huber) else "ordinary least squares"
    return _evidence(law, points, quantity, solution, estimator=estimator, reference=reference)


def fit_orthogonal_line(points: pd.DataFrame, quantity: str) -> Fit:
    """Fit `LINE` with noise on both axes, equal in nats, and intervals clustered by run.

    Raises:
        FitError: as `fit_law`.
    """
    inputs, y = _data(LINE, points, quantity)
    solution = orthogonal_line(inputs[:, 0], y)
    return _evidence(LINE, points, quantity, solution, estimator="orthogonal least squares", reference=np.ones(1))


def _geometric_means(inputs: FloatArray) -> FloatArray:
    # As multiples of the first row: an input that never varies is then exactly 1, and its logarithm exactly 0.
    means: FloatArray = inputs[0] * np.exp(np.log(inputs / inputs[0]).mean(axis=0))
    return means


def _data(law: Law, points: pd.DataFrame, quantity: str) -> tuple[FloatArray, FloatArray]:
    """Inputs (n, d) and values (n,), every one of which the law can take."""
    names = [*law.inputs, quantity]
    needed = len(law.parameters) + 1
    if len(points) < needed:
        raise FitError(f"got {len(points)} points, expected at least {needed}, at the {law.name} law of {quantity}")
    values = points[names].to_numpy(dtype=np.float64)
    usable = np.isfinite(values)
    if law.relative:
        usable[:, :-1] &= values[:, :-1] > 0
    for row, column in np.argwhere(~usable)[:1]:
        where = f"run {points['run'].iloc[row]}, step {points['steps'].iloc[row]}"
        raise FitError(f"got {names[column]} {values[row, column]}, the {law.name} law cannot use it, at {where}")
    return values[:, :-1], values[:, -1]


def _evidence(
    law: Law, points: pd.DataFrame, quantity: str, solution: Solution, *, estimator: str, reference: FloatArray
) -> Fit:
    """A solution with its uncertainty by run, and every doubt about it in words."""
    y, inputs = points[quantity].to_numpy(dtype=np.float64), points[[*law.inputs]]
    runs, squares = points["run"].to_numpy(), float(solution.residuals @ solution.residuals)
    n_runs, variation = len(set(runs)), float(np.sum((y - y.mean()) ** 2))
    covariance = clustered_covariance(scores=solution.scores, curvatures=solution.curvatures, clusters=runs)
    stderr = dict(zip(law.parameters, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    condition, unidentified = identification(law, solution, stderr, dof=n_runs - 1)
    warnings = [f"{quantity}: {name} is not identified: {why}" for name, why in unidentified.items()]
    if n_runs < 2:
        warnings.append("one run gives no interval: add a rank or a seed")
    elif np.isnan(covariance).any():
        warnings.append(
            f"{quantity}: no interval, as one run fewer leaves the {law.name} law open: add a rank or a seed"
        )
    elif n_runs < FEW_RUNS:
        warnings.append(f"intervals rest on {n_runs} runs only")
    if not solution.settled:
        warnings.append(f"{quantity}: the search for the {law.name} law stopped before it settled")
    if law is LINE and squares > POOR * variation:
        apart = stats.between_share(solution.residuals, clusters=runs) > 0.5
        why = "runs differ at equal loss" if apart else "points bend away from the line"
        warnings.append(f"{quantity}: {why}, so the price is an average (R² {1 - squares / variation:.2f})")
    if solution.starts_agreeing < FEW_STARTS:
        warnings.append(f"{quantity}: only {solution.starts_agreeing:.0%} of the starts reached this {law.name} law")
    return Fit(
        law=law.name,
        estimator=estimator,
        quantity=quantity,
        corpus=_only(points["corpus"], "corpus in the points"),
        parameters={
            name: Estimate(value=value, stderr=math.nan if name in unidentified else stderr[name], n=n_runs)
            for name, value in zip(law.parameters, solution.parameters.tolist(), strict=True)
        },
        covariance=tuple(map(tuple, covariance.tolist())),
        dof=n_runs - 1,
        condition=condition,
        starts_agreeing=solution.starts_agreeing,
        r2=1 - squares / variation if variation > 0 else math.nan,
        rmse=math.sqrt(squares / len(y)),
        n_points=len(y),
        n_runs=n_runs,
        reference=dict(zip(law.inputs, reference.tolist(), strict=True)),
        domain={name: (float(inputs[name].min()), float(inputs[name].max())) for name in law.inputs},
        warnings=tuple(warnings),
    )


def _study_warnings(table: pd.DataFrame, used: pd.DataFrame) -> tuple[str, ...]:
    """What a reader of the laws must know of the runs behind them."""
    warnings = []
    unused = table[~table["run"].isin(used["run"])].drop_duplicates("run")
    if len(unused):
        listed = ", ".join(f"{run} ({state})" for run, state in zip(unused["run"], unused["state"], strict=True))
        warnings.append(f"not in any fit: {listed}")
    for column in POOLED:
        if used[column].nunique() > 1:
            warnings.append(f"runs that differ in {column} are pooled: {_names(used[column])}")
    if set(used["schedule"]) != {"constant"}:
        warnings.append("the learning rate is not constant: a checkpoint at N steps is not a run of N steps")
    if used["trainable_params"].nunique() == 1:
        warnings.append(f"only r = {_names(used['r'])} was run: the joint laws are in steps alone, and rank is unknown")
    return tuple(warnings)


def _constant(values: "pd.Series[float]") -> float | None:
    return float(values.iloc[0]) if values.nunique() == 1 else None


def _names(values: "pd.Series[Any]") -> str:
    return ", ".join(sorted({str(value) for value in values}))


def _only(values: "pd.Series[Any]", what: str) -> str:
    """The one value of a column.

    Raises:
        FitError: there are several, or none.
    """
    if values.nunique() != 1:
        raise FitError(f"got {_names(values) or 'none'}, expected exactly one {what}")
    return str(values.iloc[0])
