"""One law fitted to one quantity, and what its evidence is worth: `Fit`.

Uncertainty is clustered by run: the checkpoints of one run are one sample. Noise that all runs share (the choice of
held-out texts, one order of batches) is in no interval here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast import stats
from holdfast.display import html_table
from holdfast.errors import ConfigError, FitError
from holdfast.fitting import Loss, Solution, identification, orthogonal_line, resampled_fits, separable_fit
from holdfast.formulas import LAWS, LINE, Law
from holdfast.points import only
from holdfast.stats import (
    Estimate,
    FloatArray,
    Prediction,
    Scatter,
    clustered_covariance,
    common_share,
    number,
    scatter_about,
)

HUBER = 1.345
"""Residual, in robust standard deviations, beyond which a point pulls no harder: 95 % efficient under normal noise."""

BY_RANK = 2
"""Constants of a joint law that only differences between numbers of parameters tell."""

BY_STEP = 3
"""Those that only differences between steps tell."""

ALIKE = 0.01
"""p-value below which runs with the same parameters, or at the same step, miss a law alike by more than chance."""

ROUNDING = 1e-9
"""Residuals below this share of the values are rounding."""

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
    influence: tuple[tuple[float, ...], ...]
    """(runs, parameters): how the parameters follow when all of one run's points move by 1. Empty when not known."""
    dof: int
    """Of a parameter's interval, runs − 1; `predict` counts its own."""
    condition: float
    """Of the Jacobian with columns scaled to length 1; nan when a column vanishes."""
    starts_agreeing: float
    """Share of the starts that reached this optimum."""
    r2: float
    """In sample: says little about forecasts."""
    rmse: float
    scatter: Scatter
    """Of one new run's measurement about the law."""
    n_points: int
    n_runs: int
    reference: dict[str, float]
    """What each input is divided by, or less: P0, N0."""
    domain: dict[str, tuple[float, float]]
    """Of each input, in the law's order."""
    warnings: tuple[str, ...]

    def predict(self, **inputs: npt.ArrayLike) -> Prediction:
        """The law's value and its uncertainty at `inputs`, named as the law's, which broadcast against each other.

        Raises:
            ConfigError: other names than the law's inputs, or an input that is not positive where the law needs it.
        """
        law, names = LAWS[self.law], tuple(self.domain)
        if set(inputs) != set(names):
            raise ConfigError(f"got inputs {sorted(inputs)}, expected {sorted(names)}, at the {law.name} law")
        values = np.broadcast_arrays(*(np.asarray(inputs[name], dtype=np.float64) for name in names))
        if law.scaling == "ratio" and not all((value > 0).all() for value in values):
            raise ConfigError(f"got an input that is not positive, expected all above 0, at the {law.name} law")
        reference = np.array([self.reference[name] for name in names])
        scaled = law.scaled(np.stack([value.ravel() for value in values], axis=-1), reference)
        linear = np.array([self.parameters[name].value for name in law.linear])
        columns, slopes = law.columns(scaled, np.array([self.parameters[name].value for name in law.nonlinear]))
        jacobian = np.concatenate([columns, (slopes @ linear).T], axis=1)
        variance = np.einsum("ni,ij,nj->n", jacobian, np.array(self.covariance), jacobian)
        limits = list(self.domain.values())
        outside = [(value < low) | (value > high) for value, (low, high) in zip(values, limits, strict=True)]
        variance, dof, mean = np.maximum(variance, 0), self._dof(jacobian), columns @ linear
        numbers = {"mean": mean, "stderr": np.sqrt(variance), "scatter": self.scatter.at(mean), "dof": dof}
        return Prediction(
            **{name: stats.unwrapped(each.reshape(values[0].shape)) for name, each in numbers.items()},
            scatter_dof=self.scatter.dof,
            extrapolates=stats.unwrapped(np.any(outside, axis=0)),
        )

    def _repr_html_(self) -> str:
        rows = []
        for name, estimate in self.parameters.items():
            low, high = (stats.rounded(end, estimate.stderr) for end in estimate.interval(0.9))
            known = math.isfinite(estimate.stderr)
            rows.append((name, estimate, f"{low} to {high}" if known else "none"))
        notes = (
            f"{self.law}: {self.quantity} = {LAWS[self.law].formula}",
            f"{self.n_points} points of {self.n_runs} runs on {self.corpus}",
            f"R² {self.r2:.3f}, residual {self.rmse:.2g}",
            *self.warnings,
        )
        return html_table(("Constant", "Value", "90 % interval"), rows, notes)

    def _dof(self, jacobian: FloatArray) -> FloatArray:
        """Satterthwaite's degrees of freedom of predictions with this Jacobian (n, p), if runs differ as a whole.

        A prediction moves by w_g when run g does: (Σ w²)² / Σ w⁴ runs carry it, G when all weigh alike.
        Source: after Bell, McCaffrey 2002, and Imbens, Kolesár 2016, "Robust standard errors in small samples".
        """
        if not self.influence:
            return np.full(len(jacobian), float(self.dof))
        weights = (jacobian @ np.array(self.influence).T) ** 2
        runs = weights.sum(axis=1) ** 2 / (weights**2).sum(axis=1)
        dof: FloatArray = np.maximum(runs * self.dof / (self.dof + 1), min(self.dof, 1))
        return dof

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
                **{
                    name: tuple(tuple(number(value) for value in row) for row in held[name])
                    for name in ("covariance", "influence")
                },
                "domain": {name: (low, high) for name, (low, high) in held["domain"].items()},
                **{name: number(held[name]) for name in ("condition", "starts_agreeing", "r2", "rmse")},
                "scatter": Scatter.from_dict(held["scatter"]),
                "warnings": tuple(held["warnings"]),
            }
        )


def fit_law(
    law: Law,
    points: pd.DataFrame,
    quantity: str,
    *,
    huber: float = HUBER,
    logarithmic: bool = False,
    inputs: Sequence[str] | None = None,
) -> Fit:
    """Fit one law to one quantity of a table of `points`, with intervals clustered by run.

    `huber` is where a point stops pulling harder, in robust standard deviations, or with `logarithmic` a difference of
    logarithms; math.inf is least squares. `inputs` are the columns that the law's inputs are in, in its order, where
    they have other names.

    Raises:
        FitError: too few points, several corpora, or a value the law cannot take.
    """
    names = tuple(inputs or law.inputs)
    if len(names) != len(law.inputs):
        raise FitError(f"got inputs {', '.join(names)}, expected {len(law.inputs)}, at the {law.name} law")
    values, y = _data(law, points, quantity, names, positive=logarithmic)
    reference, loss = law.reference(values), Loss(limit=huber, logarithmic=logarithmic)
    columns = partial(law.columns, law.scaled(values, reference))
    solution = separable_fit(columns, y, starts=law.grid(), bounds=law.bounds, loss=loss)
    return evidence(
        law,
        points,
        quantity,
        solution,
        estimator=str(loss),
        reference=dict(zip(names, reference.tolist(), strict=True)),
    )


def resample(
    law: Law, points: pd.DataFrame, quantity: str, *, huber: float = HUBER, logarithmic: bool = False,
    inputs: Sequence[str] | None = None, draws: int = 1000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The law's parameters, refitted to so many draws of as many runs with replacement: the cluster bootstrap.

    Its percentiles are too narrow with few runs (theory.md, section 5), so no interval of ours rests on them: they show
    shapes that a standard error cannot, such as a constant that runs to infinity. Arguments as of `fit_law`.

    Raises:
        FitError: as `fit_law`.
    """
    names = tuple(inputs or law.inputs)
    values, y = _data(law, points, quantity, names, positive=logarithmic)
    columns = partial(law.columns, law.scaled(values, law.reference(values)))
    loss = Loss(limit=huber, logarithmic=logarithmic)
    solution = separable_fit(columns, y, starts=law.grid(), bounds=law.bounds, loss=loss)
    runs, member = np.unique(points["run"].to_numpy(dtype=str), return_inverse=True)
    even = np.full(len(runs), 1 / len(runs))
    drawn = np.random.default_rng(seed).multinomial(len(runs), even, size=draws).astype(np.float64)
    counts = drawn[:, member]
    found = resampled_fits(columns, y, solution, counts=counts, bounds=law.bounds, logarithmic=logarithmic)
    return pd.DataFrame(found, columns=list(law.parameters))


def fit_orthogonal_line(points: pd.DataFrame, quantity: str) -> Fit:
    """Fit `LINE` with noise on both axes, equal in nats, and intervals clustered by run.

    Raises:
        FitError: as `fit_law`.
    """
    inputs, y = _data(LINE, points, quantity, LINE.inputs)
    solution = orthogonal_line(inputs[:, 0], y)
    return evidence(
        LINE, points, quantity, solution, estimator="orthogonal least squares", reference={LINE.inputs[0]: 1.0}
    )


def _data(
    law: Law, points: pd.DataFrame, quantity: str, inputs: Sequence[str], *, positive: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Inputs (n, d) and values (n,), every one of which the law can take, values above 0 if `positive`."""
    names = [*inputs, quantity]
    needed = len(law.parameters) + 1
    if len(points) < needed:
        raise FitError(f"got {len(points)} points, expected at least {needed}, at the {law.name} law of {quantity}")
    values = points[names].to_numpy(dtype=np.float64)
    usable = np.isfinite(values)
    if law.scaling == "ratio":
        usable[:, :-1] &= values[:, :-1] > 0
    if positive:
        usable[:, -1] &= values[:, -1] > 0
    for row, column in np.argwhere(~usable)[:1]:
        where = f"run {points['run'].iloc[row]}"
        where += f", step {points['steps'].iloc[row]}" if "steps" in points else ""
        raise FitError(f"got {names[column]} {values[row, column]}, the {law.name} law cannot use it, at {where}")
    return values[:, :-1], values[:, -1]


def evidence(
    law: Law, points: pd.DataFrame, quantity: str, solution: Solution, *, estimator: str, reference: dict[str, float],
    covariance: FloatArray | None = None,
) -> Fit:  # fmt: skip
    """A solution with its uncertainty by run, unless given, and every doubt about it in words.

    `reference` names the columns of the inputs.
    """
    y = points[quantity].to_numpy(dtype=np.float64)
    runs, squares = points["run"].to_numpy(), float(solution.residuals @ solution.residuals)
    n_runs, variation = len(set(runs)), float(np.sum((y - y.mean()) ** 2))
    if covariance is None:
        covariance = clustered_covariance(scores=solution.scores, curvatures=solution.curvatures, clusters=runs)
    stderr = dict(zip(law.parameters, np.sqrt(np.diag(covariance)).tolist(), strict=True))
    condition, unidentified = identification(law, solution, stderr, largest=float(np.abs(y).max()), dof=n_runs - 1)
    warnings = [f"{quantity}: {name} is not identified: {why}" for name, why in unidentified.items()]
    if n_runs < 2:
        warnings.append("one run gives no interval: add a rank or a seed")
    elif np.isnan(covariance).any():
        warnings.append(
            f"{quantity}: no interval, as one run fewer leaves the {law.name} law open: add a rank or a seed"
        )
    elif n_runs < FEW_RUNS:
        warnings.append(f"intervals rest on {n_runs} runs only")
    noisy = squares > len(y) * (ROUNDING * float(np.abs(y).max())) ** 2
    if noisy and "trainable_params" in reference and _miss_alike(points, solution.residuals):
        warnings.append(
            f"{quantity}: runs of one rank miss the {law.name} law alike, and its interval counts runs: too narrow"
        )
    if noisy and "steps" in reference and _miss_alike_at_steps(points, solution.residuals):
        warnings.append(
            f"{quantity}: runs miss the {law.name} law alike at the same steps, as they do that share batches, and its "
            "interval counts runs: too narrow"
        )
    if not solution.settled:
        warnings.append(f"{quantity}: the search for the {law.name} law stopped before it settled")
    if law is LINE and noisy and variation > 0 and squares > POOR * variation:
        apart = stats.between_share(solution.residuals, clusters=runs) > 0.5
        why = "runs differ at equal loss" if apart else "points bend away from the line"
        warnings.append(f"{quantity}: {why}, so the price is an average (R² {1 - squares / variation:.2f})")
    if solution.starts_agreeing < FEW_STARTS:
        warnings.append(f"{quantity}: only {solution.starts_agreeing:.0%} of the starts reached this {law.name} law")
    return Fit(
        law=law.name,
        estimator=estimator,
        quantity=quantity,
        corpus=only(points["corpus"], "corpus in the points"),
        parameters={
            name: Estimate(value=value, stderr=math.nan if name in unidentified else stderr[name], n=n_runs)
            for name, value in zip(law.parameters, solution.parameters.tolist(), strict=True)
        },
        covariance=tuple(map(tuple, covariance.tolist())),
        influence=_influence(solution.jacobian, runs),
        dof=n_runs - 1,
        condition=condition,
        starts_agreeing=solution.starts_agreeing,
        r2=1 - squares / variation if variation > 0 else math.nan,
        rmse=math.sqrt(squares / len(y)),
        scatter=scatter_about(
            solution.residuals, fitted=y - solution.residuals, jacobian=solution.jacobian, clusters=runs
        ),
        n_points=len(y),
        n_runs=n_runs,
        reference=reference,
        domain={name: (float(points[name].min()), float(points[name].max())) for name in reference},
        warnings=tuple(warnings),
    )


def _miss_alike(points: pd.DataFrame, residuals: FloatArray) -> bool:
    """Whether runs with the same parameters are off by the same, so that there are fewer samples than runs."""
    means = points.assign(missed=residuals).groupby("run").agg({"missed": "mean", "trainable_params": "first"})
    _, chance = common_share(means["missed"].to_numpy(), groups=means["trainable_params"], constants=BY_RANK)
    return chance < ALIKE


def _miss_alike_at_steps(points: pd.DataFrame, residuals: FloatArray) -> bool:
    """Whether measurements at the same step are off by the same; conservative, as those of one run are alike too."""
    _, chance = common_share(residuals, groups=points["steps"], constants=BY_STEP)
    return chance < ALIKE


def _influence(jacobian: FloatArray, runs: npt.NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    """How least squares' parameters (p,) follow when all points of a run move by 1, a row for each run."""
    names, member = np.unique(runs.astype(str), return_inverse=True)
    moved, lengths = np.zeros((len(names), jacobian.shape[1])), np.linalg.norm(jacobian, axis=0)
    lengths[lengths == 0] = 1
    np.add.at(moved, member, jacobian / lengths)
    scaled = jacobian / lengths
    return tuple(map(tuple, (moved @ np.linalg.pinv(scaled.T @ scaled) / lengths).tolist()))
