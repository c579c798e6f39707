"""Where a run in progress will be: the law of the other runs, corrected by what the run itself has shown so far.

    value at checkpoint j of run i = law(P_i, N_ij) + level_i + slope_i · ln(N_ij / N0) + e_ij

Levels and slopes differ from run to run; e fades from one checkpoint to the next. How large each is comes from finished
runs' residuals. The run's own first points say how much of its level and slope to believe, and how far to move the law
itself (partial pooling): a run that has shown nothing is forecast by the law, a long one mostly by itself.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast.errors import ConfigError
from holdfast.laws import FORGETTING, SKIP_FRACTION, STEPS, Fit, Laws, fit, fit_law, foreign, points
from holdfast.stats import FloatArray, Prediction, as_dict, rounded, satterthwaite_dof

LEVEL = 0.9
"""Of the interval in a sentence and in a score."""

ROUNDING = 1e-9
"""Noise below which residuals are rounding, as a share of the values."""

VARIANCE_RATIOS = (1e-4, 1e8)
"""Of levels, and of slopes, to single checkpoints: what is searched."""

MEMORIES = (0.0, 0.95)
PENALTIES = np.array([0.5, 0.25])
"""Powers of the variances of level and slope that multiply the likelihood."""

REFINEMENTS = 8
"""Grids of the search, each after the first half as wide, about the best point so far."""

FOLLOWED = 1e3
"""Levels, over noise, where unknown: the run is then followed wherever it went."""


@dataclass(frozen=True, kw_only=True)
class RunScatter:
    """How checkpoints lie about a law; standard deviations where it is at the reference of its `stats.Scatter`."""

    level: float
    """Of whole runs, at `reference` steps; nan where the runs are too few to tell."""
    slope: float
    """Of whole runs, for each factor e of steps."""
    noise: float
    """Of single checkpoints about their own run's curve."""
    memory: float
    """Correlation of neighbouring checkpoints' noise."""
    reference: float
    """N0 of the slope."""
    runs_dof: int
    """Runs, less the constants of the law that only differences between runs tell."""
    noise_dof: float
    """Independent pieces of noise behind `noise`."""

    def between(self, steps: FloatArray) -> FloatArray:
        """Covariance (n, n) of a run's own curve about the law at these steps."""
        logs = np.log(steps / self.reference)
        return self.level**2 + self.slope**2 * np.outer(logs, logs)

    def within(self, checkpoints: int) -> FloatArray:
        """Covariance (n, n) of successive checkpoints about their run's curve."""
        apart = np.abs(np.subtract.outer(np.arange(checkpoints), np.arange(checkpoints)))
        return np.asarray(self.noise**2 * self.memory**apart)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Where one run will be, in nats per scored token, with the two answers it lies between. See `forecast`."""

    run: str
    quantity: str
    corpus: str
    steps: npt.NDArray[np.int64]
    """(m,) what was asked for."""
    prediction: Prediction
    """(m,) stderr is of the run's own curve; scatter, of single checkpoints, comes on top of it."""
    law: Prediction
    """(m,) what the other runs say alone."""
    alone: FloatArray
    """(m,) what the run's own points say alone: a line in ln N; nan for fewer than two."""
    n_points: int
    """Own measurements used, those of its first steps left out as in the laws."""
    last_step: int
    n_runs: int
    """Finished runs behind the law."""
    warnings: tuple[str, ...]

    def interval(self, level: float = LEVEL) -> tuple[FloatArray, FloatArray]:
        """Where the run's measurements will be, (m,) each; nan where nothing says how runs differ."""
        tail = (1 - level) / 2
        return np.asarray(self.prediction.run_quantile(tail)), np.asarray(self.prediction.run_quantile(1 - tail))

    def probability_above(self, limit: float) -> FloatArray:
        """The probability (m,) that this run measures more than `limit` nats at each of the steps."""
        return np.asarray(self.prediction.probability_above(limit))

    def __str__(self) -> str:
        """A sentence for the last of the steps."""
        mean, law = float(np.asarray(self.prediction.mean)[-1]), float(np.asarray(self.law.mean)[-1])
        error = float(np.hypot(self.prediction.stderr, self.prediction.scatter)[-1])
        verb = {"kl_base_tuned": "forget", "target_nll": "reach a loss of"}.get(self.quantity, f"reach {self.quantity}")
        unit = "on" if self.quantity == "target_nll" else "nats per token on"
        low, high = (rounded(max(float(end[-1]), 0.0), error) for end in self.interval())
        sure = "no interval" if math.isnan(error) else f"{100 * LEVEL:.0f} % {low} to {high}"
        said = f"its first {self.last_step} steps" if self.n_points else "nothing yet past the steps left out"
        return (
            f"At step {self.steps[-1]} run {self.run} should {verb} {rounded(mean, error)} {unit} {self.corpus} "
            f"({sure}); the law alone says {rounded(law, error)}. The run has shown {said}."
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def forecast(
    laws: Laws, table: pd.DataFrame, run: str, *, steps: npt.ArrayLike, quantity: str = "kl_base_tuned"
) -> Forecast:
    """Where a run in progress will be at `steps`, from its own measurements and the law of the finished runs.

    Given the law's parameters β̂ with covariance Σ and the scatter of the runs (`run_scatter`), the run's curve is
    normal beforehand with mean law(β̂) and covariance K = J Σ Jᵀ + levels and slopes; its own measurements, with
    noise R, condition that once, so neither the law's uncertainty nor the runs' difference is counted twice:

        mean = law + G (own − law)        G = K_future,own (K_own,own + R)⁻¹

    The variance splits exactly into what is left unknown of the law, of the run, and its noise; the degrees of freedom
    of Student's t are Satterthwaite's of those three. Noise at future steps is taken as new.

    With one finished run nothing says how runs differ: its own level is believed, without an interval.

    Raises:
        ConfigError: no such run in progress, a quantity without a law, or steps that are not after the run's last.
        FitError: the run has no measurement yet, or as `laws.points`.
    """
    if quantity not in laws.joint:
        raise ConfigError(f"got quantity {quantity!r}, expected one of {', '.join(laws.joint)}, at the forecast")
    measured = run_points(laws, table, run)
    wanted, last = np.atleast_1d(np.asarray(steps)).astype(np.int64), int(measured["steps"].max())
    if wanted.ndim != 1 or not len(wanted) or (wanted <= last).any():
        raise ConfigError(f"got steps {wanted.tolist()}, expected some after {last}, the last measured, at run {run}")
    law = laws.joint[quantity]
    finished = points(table[table["run"].isin(laws.runs)], corpus=laws.corpus, skip_fraction=laws.skip_fraction)
    own = measured[~measured["skipped"]]
    scatter = run_scatter(law, finished)
    params = int(measured["trainable_params"].iloc[0])
    prediction = _conditioned(
        law, scatter, params=params, own=own["steps"].to_numpy(np.float64), values=own[quantity].to_numpy(np.float64),
        steps=wanted.astype(np.float64),
    )  # fmt: skip
    return Forecast(
        run=run, quantity=quantity, corpus=laws.target if quantity == "target_nll" else laws.corpus, steps=wanted,
        prediction=prediction, law=law.predict(trainable_params=params, steps=wanted),
        alone=line_alone(own, quantity, wanted), n_points=len(own), last_step=last, n_runs=law.n_runs,
        warnings=tuple(dict.fromkeys(_doubts(laws, table, run, prediction, law))),
    )  # fmt: skip


def run_points(laws: Laws, table: pd.DataFrame, run: str) -> pd.DataFrame:
    """What a run in progress has measured, as `laws.points` pairs it; `skipped` marks the steps no law is fitted to.

    Raises:
        ConfigError: no such run in progress, or it is of another model or target than the laws.
        FitError: it has measured nothing after step 0.
    """
    rows = table[table["run"] == run]
    state = "no such run" if rows.empty else str(rows["state"].iloc[0])
    if state != "in progress":
        known = ", ".join(sorted(set(table.loc[table["state"] == "in progress", "run"]))) or "none"
        raise ConfigError(f"got run {run!r} ({state}), expected one in progress ({known}), at the forecast")
    if other := {"model", "target"}.intersection(foreign(laws, table, run)):
        raise ConfigError(f"got run {run!r}, whose {' and '.join(sorted(other))} no finished run has, at the forecast")
    measured = points(rows.assign(state="done"), corpus=laws.corpus, skip_fraction=0.0)
    return measured.assign(skipped=measured["steps"] <= laws.skip_fraction * float(rows["total_steps"].iloc[0]))


def law_jacobian(law: Fit, *, trainable_params: npt.ArrayLike, steps: npt.ArrayLike) -> FloatArray:
    """Derivative (n, p) of a joint law by its parameters, by central differences, so that every law has one."""
    columns = []
    for name, estimate in law.parameters.items():
        move = 1e-6 * max(abs(estimate.value), 1e-3)
        moved = (replace(estimate, value=estimate.value + side) for side in (-move, move))
        ends = (replace(law, parameters=law.parameters | {name: end}) for end in moved)
        low, high = (np.asarray(end.predict(trainable_params=trainable_params, steps=steps).mean) for end in ends)
        columns.append((high - low) / (2 * move))
    return np.stack(columns, axis=-1)


def run_scatter(law: Fit, finished: pd.DataFrame) -> RunScatter:
    """How the runs behind a law lie about it, by restricted maximum likelihood on the linearised law.

    Restricted, as a law of p constants fitted to few runs takes up much of what they differ by. The likelihood is
    multiplied by the level's standard deviation and the root of the slope's: among few runs its maximum is often at no
    difference at all, and an interval built on that is too narrow. The memory may be 0.

    Source: Chung, Rabe-Hesketh, Dorie, Gelman, Liu 2013, "A nondegenerate penalized likelihood estimator for variance
    parameters in multilevel models".
    """
    inputs = {name: finished[name].to_numpy(np.float64) for name in ("trainable_params", "steps")}
    fitted = np.asarray(law.predict(**inputs).mean)
    scale = law.scatter.relative(fitted)
    residuals = (finished[law.quantity].to_numpy(np.float64) - fitted) / scale
    reference = float(np.exp(np.log(inputs["steps"]).mean()))
    jacobian = law_jacobian(law, **inputs) / scale[:, None]
    lengths = np.maximum(np.linalg.norm(jacobian, axis=0), np.finfo(float).tiny)
    left, singular, _ = np.linalg.svd(jacobian / lengths, full_matrices=False)
    design = left[:, singular > ROUNDING * singular[0]]
    runs, n, p = finished["run"].to_numpy(), len(finished), design.shape[1]
    several = finished["trainable_params"].nunique() > 1
    runs_dof = len(set(runs)) - (2 if several and "x" in law.parameters else 1)
    size, known = float(np.sqrt(np.mean(residuals**2))), runs_dof > 0
    level = slope = memory = noise = 0.0
    if size > ROUNDING * float(np.abs(finished[law.quantity]).max()) and n > p:
        columns = np.column_stack([design, np.ones(n), np.log(inputs["steps"] / reference), residuals / size])
        level, slope, memory, noise = _most_likely([columns[runs == run] for run in dict.fromkeys(runs)])
    return RunScatter(
        level=size * noise * math.sqrt(level) if known else math.nan,
        slope=size * noise * math.sqrt(slope) if known else 0.0,
        noise=size * noise, memory=memory, reference=reference, runs_dof=runs_dof,
        noise_dof=max((n - p - len(set(runs))) * (1 - memory) / (1 + memory), 1.0),
    )  # fmt: skip


def line_alone(own: pd.DataFrame, quantity: str, steps: npt.ArrayLike) -> FloatArray:
    """A run's own points extrapolated: least squares, a line in ln N; nan for fewer than two."""
    wanted = np.log(np.asarray(steps, dtype=np.float64))
    if len(own) < 2:
        return np.full(wanted.shape, np.nan)
    measured = own[["steps", quantity]].to_numpy(np.float64)
    return np.asarray(np.polynomial.Polynomial.fit(np.log(measured[:, 0]), measured[:, 1], 1)(wanted))


def power_alone(own: pd.DataFrame, quantity: str, steps: npt.ArrayLike) -> FloatArray:
    """The same by `STEPS`; the line for too few points."""
    if len(own) <= len(STEPS.parameters):
        return line_alone(own, quantity, steps)
    params = own["trainable_params"].iloc[0]
    return np.asarray(fit_law(STEPS, own, quantity).predict(trainable_params=params, steps=steps).mean)


def score_forecasts(
    table: pd.DataFrame, *, after: float = 0.3, quantities: Sequence[str] = ("target_nll", *FORGETTING),
    corpus: str | None = None, skip_fraction: float = SKIP_FRACTION,
) -> pd.DataFrame:  # fmt: skip
    """Every finished run forecast in turn, from its first `after` of steps and the laws of all the others.

    A row per run and quantity, over the measured steps that come after, nats per token: `rmse` of the forecast, of the
    law alone (`rmse_law`), and of the run alone by a line in ln N (`rmse_line`) and a power law (`rmse_power`) from the
    steps that laws use, and a power law from all its steps (`rmse_power_all`); `covered`, the share of them inside the
    forecast's 90 % interval, and its mean `width`.

    Raises:
        ConfigError: `after` is not between 0 and 1.
        FitError: as `laws.fit`, when the others carry no law.
    """
    if not 0 < after < 1:
        raise ConfigError(f"got after {after}, expected a share between 0 and 1, at the score of forecasts")
    rows: list[dict[str, Any]] = []
    done = table[table["run"].isin(fit(table, corpus=corpus, skip_fraction=skip_fraction).runs)]
    for run, whole in done.groupby("run"):
        hidden = done[(done["run"] != run) | (done["step"] <= after * done["total_steps"])]
        hidden = hidden.assign(state=hidden["state"].where(hidden["run"] != run, "in progress"))
        laws = fit(hidden, corpus=corpus, skip_fraction=skip_fraction)
        truth = points(whole, corpus=laws.corpus, skip_fraction=after)
        every = run_points(laws, hidden, str(run))
        for quantity in quantities:
            made = forecast(laws, hidden, str(run), steps=truth["steps"], quantity=quantity)
            about = {"run": run, "r": int(truth["r"].iloc[0]), "quantity": quantity, "after": after}
            rows.append(about | _scored(made, truth[quantity].to_numpy(np.float64), every))
    return pd.DataFrame(rows)


def score_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of `score_forecasts` by quantity and cut: runs, root mean squares over them, mean coverage and width.

    `rmse_alone` is that of whichever way of extrapolating the run alone did best over all of them.
    """
    errors = [str(name) for name in scores if str(name).startswith("rmse")]
    squares = scores.copy()
    squares[errors] **= 2
    by = squares.groupby(["quantity", "after"])
    summary = by[[*errors, "covered", "width"]].mean().assign(runs=by["run"].nunique())
    summary[errors] = np.sqrt(summary[errors])
    summary["rmse_alone"] = summary[errors[2:]].min(axis=1)
    return summary[["runs", "rmse", "rmse_law", "rmse_alone", "covered", "width"]].reset_index()


def _scored(made: Forecast, truth: FloatArray, every: pd.DataFrame) -> dict[str, Any]:
    own = every[~every["skipped"]]
    answers = {
        "rmse": np.asarray(made.prediction.mean),
        "rmse_law": np.asarray(made.law.mean),
        "rmse_line": made.alone,
        "rmse_power": power_alone(own, made.quantity, made.steps),
        "rmse_power_all": power_alone(every, made.quantity, made.steps),
    }
    low, high = made.interval()
    return {
        "n_points": made.n_points,
        **{name: float(np.sqrt(np.mean((answer - truth) ** 2))) for name, answer in answers.items()},
        "covered": float(np.mean((low <= truth) & (truth <= high))) if np.isfinite(low).all() else math.nan,
        "width": float(np.mean(high - low)),
    }


def _conditioned(
    law: Fit, scatter: RunScatter, *, params: int, own: FloatArray, values: FloatArray, steps: FloatArray
) -> Prediction:
    """The law at `steps` given the run's own values; see `forecast`."""
    places, n, m = np.concatenate([own, steps]), len(own), len(steps)
    at = law.predict(trainable_params=params, steps=places)
    expected = np.asarray(at.mean)
    jacobian = law_jacobian(law, trainable_params=params, steps=places)
    uncertain = np.array(law.covariance)
    known = scatter.runs_dof > 0 and bool(np.isfinite(uncertain).all())
    if math.isnan(scatter.level):
        scatter = replace(scatter, level=FOLLOWED * max(scatter.noise, ROUNDING))
    scale, shared = law.scatter.relative(expected), jacobian @ np.nan_to_num(uncertain) @ jacobian.T
    between = np.outer(scale, scale) * scatter.between(places)
    prior, noise = shared + between, np.outer(scale[:n], scale[:n]) * scatter.within(n)
    # A noise of rounding keeps the solve defined where nothing else is uncertain.
    floor = (ROUNDING * float(np.abs(expected).max())) ** 2 * np.eye(n)
    gain = np.linalg.solve(prior[:n, :n] + noise + floor, prior[:n, n:]).T
    errors = np.concatenate([-gain, np.eye(m)], axis=1)
    splits = ((errors, shared), (errors, between), (gain, noise))
    parts = np.stack([np.einsum("ij,jk,ik->i", by, covariance, by) for by, covariance in splits])
    stderr = np.sqrt(parts.sum(axis=0)) if known else np.full(m, np.nan)
    dofs = np.stack(np.broadcast_arrays(at.dof, scatter.runs_dof, scatter.noise_dof, places)[:3])[:, n:]
    return Prediction(
        mean=expected[n:] + gain @ (values - expected[:n]), stderr=stderr, scatter=scatter.noise * scale[n:],
        dof=satterthwaite_dof(*zip(parts, np.maximum(dofs, 1), strict=True)) if known else np.zeros(m),
        scatter_dof=scatter.noise_dof,
        extrapolates=np.broadcast_to(at.extrapolates, places.shape)[n:],
    )  # fmt: skip


def _doubts(laws: Laws, table: pd.DataFrame, run: str, prediction: Prediction, law: Fit) -> list[str]:
    """What a reader of the forecast must know."""
    own = table[table["run"] == run].iloc[0]
    doubts = [
        f"run {run} has {column} {own[column]}, which no run of the laws has: the law may not hold for it"
        for column in foreign(laws, table, run)
    ]
    if np.isnan(prediction.stderr).any():
        doubts.append(f"no interval: {law.n_runs} finished runs do not tell how runs differ about this law")
    if np.any(prediction.extrapolates):
        low, high = law.domain["steps"]
        doubts.append(f"the law was fitted to {low:g} to {high:g} steps of the ranks run, and is used beyond")
    return [*doubts, *law.warnings]


def _most_likely(runs: list[FloatArray]) -> tuple[float, float, float, float]:
    """Variance ratios of level and slope to noise, memory, and noise, where the penalised likelihood is highest.

    Each run is (n_i, p + 3): design, ones, logs, residuals. A grid in all three, then finer ones about its best.
    """
    low, high = np.log10(VARIANCE_RATIOS)
    axes = [np.arange(low, high + 1), np.arange(low, high + 1), np.linspace(*MEMORIES, 8)]
    reach, best = np.array([0.5, 0.5, 0.07]), (-math.inf, 0.0, 0.0, 0.0, 0.0)
    for _ in range(REFINEMENTS):
        ratios = np.array(list(itertools.product(*axes[:2])))
        for memory in axes[2].tolist():
            likelihood, variance = _likelihood(runs, 10**ratios, memory)
            i = int(np.argmax(likelihood))
            best = max(best, (float(likelihood[i]), float(variance[i]), *ratios[i].tolist(), memory))
        centres, ends = np.array(best[2:])[:, None], np.array([(low, high), (low, high), MEMORIES]).T[:, :, None]
        axes = list(np.clip(centres + reach[:, None] * np.array([-1, 0, 1]), *ends))
        reach = reach / 2
    return 10 ** best[2], 10 ** best[3], best[4], math.sqrt(best[1])


def _likelihood(runs: list[FloatArray], ratios: FloatArray, memory: float) -> tuple[FloatArray, FloatArray]:
    """Log likelihood (g,), restricted and penalised, at variance ratios (g, 2), and the noise's variance there.

    V⁻¹ = W − W Z (Λ⁻¹ + Zᵀ W Z)⁻¹ Zᵀ W for each run, written with √Λ; W is the inverse of fading noise, whose root
    takes differences of successive checkpoints. Everything is in the products of the columns within each run.
    """
    fresh, p, n = math.sqrt(1 - memory**2), runs[0].shape[1] - 3, sum(map(len, runs))
    white = [np.concatenate([run[:1], (run[1:] - memory * run[:-1]) / fresh]) for run in runs]
    products = np.stack([run.T @ run for run in white])
    kept, curves = [*range(p), p + 2], products[:, p : p + 2, p : p + 2]
    cross, roots = products[:, p : p + 2][:, :, kept], np.sqrt(ratios)[:, None, :]
    inner = np.eye(2) + roots[..., :, None] * curves * roots[..., None, :]
    scaled = roots[..., None] * cross
    taken = np.einsum("grkp,grkq->gpq", scaled, np.linalg.solve(inner, scaled))
    left = products.sum(axis=0)[np.ix_(kept, kept)] - taken
    design, pull = left[:, :p, :p], left[:, :p, p]
    squares = left[:, p, p] - np.einsum("gp,gp->g", pull, np.linalg.solve(design, pull[..., None])[..., 0])
    variance = np.maximum(squares, np.finfo(float).tiny) / (n - p)
    logs = np.log(np.linalg.det(inner)).sum(axis=1) + (n - len(runs)) * 2 * math.log(fresh)
    likelihood = -0.5 * (logs + np.linalg.slogdet(design)[1] + (n - p) * np.log(variance))
    return likelihood + np.log(ratios) @ PENALTIES, variance
