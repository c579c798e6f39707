"""The price of learning examined: pooled, orthogonal and within runs, and whether it is one price at all.

The line forgetting = intercept − slope · target loss is fitted to all runs at once only when its slope is the same for
all. Here each run gets its own slope, and the runs are the samples: how slopes differ between runs of one kind says how
much they may differ between kinds by chance. How a run's checkpoints scatter about its own line says nothing of that.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import fdtrc

from holdfast import stats
from holdfast.errors import FitError
from holdfast.formulas import LINE
from holdfast.laws import fit_law, fit_orthogonal_line
from holdfast.points import only
from holdfast.stats import Estimate, FloatArray, clustered_covariance, rounded, t_quantile

LEVEL = 0.9
"""Of every interval here."""

SIGNIFICANT = 0.05
"""p-value below which slopes are said to differ."""

WORDS = {"r": "rank", "learning_rate": "learning rate", "target": "what is learned"}

ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Prices:
    """The price of learning by three estimators, nats forgotten per nat learned; n counts runs."""

    quantity: str
    corpus: str
    ordinary: Estimate
    """All points pooled, least squares, as in the paper: noise in the target loss makes it too small."""
    orthogonal: Estimate
    """All points pooled, equal noise on both axes."""
    within_run: Estimate
    """Points centred by run, so that only what happens along a run counts, not how runs differ at equal loss."""
    difference: Estimate
    """`within_run` less `ordinary`: 0 but for chance when a run moves along the line that all runs lie on."""
    n_points: int
    n_runs: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"The price of learning, nats of {self.quantity} on {self.corpus} per nat learned: {self.ordinary} by "
            f"ordinary and {self.orthogonal} by orthogonal least squares, {self.within_run} within a run "
            f"({self.n_points} points of {self.n_runs} runs)."
        ]
        return "\n".join([*lines, *(f"Note: {warning}." for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return stats.as_dict(self)


@dataclass(frozen=True, kw_only=True)
class LevelSlope:
    """The price at one level of a column: the mean of its runs' slopes, with a 90 % interval (nan where untestable)."""

    level: str | float
    slope: float
    low: float
    high: float
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class SlopeTest:
    """Whether the price of learning is the same at all levels of a column; the runs are the samples."""

    quantity: str
    by: str
    levels: tuple[LevelSlope, ...]
    """In order of level; the intervals rest on the same variances as the test."""
    how: str
    """How it was tested, or why it could not be, in words."""
    statistic: float
    """F of a one-way test, t of a trend; nan where untestable."""
    dof: tuple[float, ...]
    """Of F above and below, of t one; empty where untestable."""
    p: float
    """Two-sided probability of a statistic this far out if all levels have one price; nan where untestable."""
    n_runs: int
    warnings: tuple[str, ...]

    @property
    def testable(self) -> bool:
        """The runs say how much slopes differ by chance."""
        return bool(self.dof)

    @property
    def differs(self) -> bool:
        """Shown to differ. Its opposite is not shown to be equal: a few runs see only large differences."""
        return self.p < SIGNIFICANT

    def __str__(self) -> str:
        word = _word(self.by)
        if not self.testable:
            return f"Whether the price differs by {word} is not testable: {self.how}."
        lowest, highest = (pick(self.levels, key=lambda level: level.slope) for pick in (min, max))
        error = (lowest.high - lowest.low) / 4
        low, high = rounded(lowest.slope, error), rounded(highest.slope, error)
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.1g}" if self.p < 0.1 else f"p = {self.p:.2f}"
        if not self.differs:
            return f"The price does not differ by {word} as far as {self.n_runs} runs can tell ({p}): {low} to {high}."
        ends = f"{low} at {_level(self.by, lowest.level)} to {high} at {_level(self.by, highest.level)}"
        return f"The price differs by {word} ({p}, {self.n_runs} runs): {ends}."

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return stats.as_dict(self)


def slope_table(points: pd.DataFrame, quantity: str) -> dict[str, Estimate]:
    """The price of learning of each run by itself: minus the least-squares slope of `quantity` on `target_nll`.

    The stderr is that of a textbook line through the run's checkpoints, as if they were independent, and n one less
    than their number, for a line takes two: it says how straight the run is. Checkpoints are alike, so how sure a price
    is must be read from how runs differ. A run whose target loss does not vary has a slope of nan.

    Raises:
        FitError: a value that is not finite, or several corpora.
    """
    slopes = _run_slopes(points, quantity)
    return {
        run: Estimate(value=value, stderr=stderr, n=int(count) - 1)
        for run, value, stderr, count in zip(
            slopes.runs, slopes.slope.tolist(), slopes.stderr.tolist(), slopes.count, strict=True
        )
    }


def prices(points: pd.DataFrame, quantity: str) -> Prices:
    """The price of learning pooled over runs (ordinary, orthogonal) and within runs, each clustered by run.

    Where runs differ at equal target loss, the pooled line mixes what learning costs along a run with how runs differ,
    and the within-run slope is the price a longer run will pay; a warning says so when the two differ by more than
    their 90 % interval allows. Both come from the same runs, so the error of their difference is taken jointly.

    Raises:
        FitError: fewer than three points, a value that is not finite, several corpora, or no run whose loss varies.
    """
    slopes = _run_slopes(points, quantity)
    if not (slopes.squares > 0).any():
        raise FitError(f"got no run whose target_nll varies, expected at least one, at the price of {quantity}")
    ordinary = fit_law(LINE, points, quantity, huber=math.inf)
    orthogonal = fit_orthogonal_line(points, quantity)
    within = float(np.sum(slopes.squares * np.nan_to_num(slopes.slope)) / slopes.squares.sum())

    slope, intercept = (ordinary.parameters[name].value for name in ("slope", "intercept"))
    jacobians = [np.stack([-slopes.x, np.ones_like(slopes.x)], axis=1), -slopes.dx[:, None]]
    residuals = [slopes.y - intercept + slope * slopes.x, slopes.dy + within * slopes.dx]
    curvatures = np.zeros((len(slopes.x), 3, 3))
    curvatures[:, :2, :2] = jacobians[0][:, :, None] * jacobians[0][:, None, :]
    curvatures[:, 2, 2] = slopes.dx**2
    scores = np.concatenate([j * e[:, None] for j, e in zip(jacobians, residuals, strict=True)], axis=1)
    covariance = clustered_covariance(scores=scores, curvatures=curvatures, clusters=slopes.member)
    n_runs = len(slopes.runs)
    contrast = np.array([-1.0, 0.0, 1.0])
    difference = Estimate(value=within - slope, stderr=math.sqrt(float(contrast @ covariance @ contrast)), n=n_runs)
    within_run = Estimate(value=within, stderr=math.sqrt(float(covariance[2, 2])), n=n_runs)
    warnings = [warning for warning in ordinary.warnings if "interval" in warning]
    low, high = difference.interval(LEVEL)
    if low > 0 or high < 0:
        warnings.append(
            f"runs differ at equal loss: within a run a nat learned costs {within_run}, over all runs "
            f"{ordinary.parameters['slope']}"
        )
    return Prices(
        quantity=quantity,
        corpus=ordinary.corpus,
        ordinary=ordinary.parameters["slope"],
        orthogonal=orthogonal.parameters["slope"],
        within_run=within_run,
        difference=difference,
        n_points=len(points),
        n_runs=n_runs,
        warnings=tuple(warnings),
    )


def slope_equality(points: pd.DataFrame, quantity: str, *, by: str) -> SlopeTest:
    """Test that the price of learning is the same at every level of a column of `laws.points`, such as `r`.

    Each run counts as one sample, its own slope (see `slope_table`). With L levels and G runs:

    * levels with equal numbers of runs, two or more, or some level with one: the one-way F test of the runs' slopes,
      L − 1 and G − L degrees of freedom.
    * unequal numbers, two or more at every level: Brown and Forsythe's form of it, each level with its own variance,
      L − 1 and Satterthwaite's degrees of freedom; for two levels that is Welch's t.
    * one run at each of at least three levels, all positive numbers: Student's t of a trend of the slopes in
      log(level), G − 2 degrees of freedom. It sees a price that rises or falls, not one that goes up and down.
    * else untestable, and `how` says why.

    Chosen by how often each rejects equal prices at a nominal 5 %, simulated with 6, 12 and 18 runs in
    `tests/test_slopes.py`: where runs of every level scatter alike, 4 to 6 % of the time. Where some scatter three
    times as much, F stays at 6 % with equal numbers, but goes to 30 % when it is the levels with few runs that do;
    Brown and Forsythe's then to 8 %. With a single run among unequal numbers F is all there is, and a warning says so.
    Welch's test of several levels needs more runs at each than a study has: 11 % at six levels of two. Other settings
    that differ between the runs widen the scatter within levels, and hide differences.

    Raises:
        FitError: no such column, a run with several levels of it, or as `slope_table`.

    Source: Brown, Forsythe 1974, "The small sample behavior of some statistics which test the equality of several
    means", Technometrics 16.
    """
    slopes = _run_slopes(points, quantity)
    values = _levels(points, slopes, by)
    known = np.isfinite(slopes.slope)
    lost = [run for run, kept in zip(slopes.runs, known.tolist(), strict=True) if not kept]
    warnings = [f"no slope, for the target loss does not vary: {', '.join(lost)}"] if lost else []
    names, member = np.unique(values[known], return_inverse=True)
    y, counts = slopes.slope[known], np.bincount(member, minlength=len(names))
    means = np.bincount(member, weights=y, minlength=len(names)) / np.maximum(counts, 1)
    reason = _untestable(by, names, counts)
    if reason:
        result = _Result(reason, math.nan, (), math.nan, np.full(len(names), math.nan))
    elif counts.max() == 1:
        result = _trend(np.log(names.astype(np.float64)), means, by=by)
    else:
        result = _one_way(y, member, means, counts)
        if counts.min() == 1:
            warnings.append(
                "with unequal numbers of runs, one among them, slopes are taken to scatter alike at every level: where "
                "the levels with few runs scatter more, equal prices are too often said to differ"
            )
    return SlopeTest(
        quantity=quantity,
        by=by,
        levels=tuple(
            LevelSlope(level=level, slope=mean, low=mean - margin, high=mean + margin, n_runs=int(count))
            for level, mean, margin, count in zip(
                names.tolist(), means.tolist(), result.margins.tolist(), counts, strict=True
            )
        ),
        how=result.how,
        statistic=result.statistic,
        dof=result.dof,
        p=result.p,
        n_runs=len(y),
        warnings=tuple(warnings),
    )


class _Result(NamedTuple):
    """What a test says: how, the statistic, its degrees of freedom, p, and each level's half interval (L,)."""

    how: str
    statistic: float
    dof: tuple[float, ...]
    p: float
    margins: FloatArray


def _untestable(by: str, names: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> str | None:
    """Why nothing says how much slopes differ by chance; None when something does."""
    if len(names) < 2:
        return f"all runs have {_level(by, names.tolist()[0])}" if len(names) else "no run has a slope"
    if counts.max() > 1:
        return None
    if not np.issubdtype(names.dtype, np.number):
        return f"one run for each {_word(by)} does not say how runs alike in it differ: add a seed"
    if names.min() <= 0:
        return f"one run for each {_word(by)}, and no trend in the logarithm of {names.min():g}: add a seed"
    if len(names) < 3:
        return "a trend fits two runs always: add a third level or a seed"
    return None


def _one_way(y: FloatArray, member: npt.NDArray[np.int64], means: FloatArray, counts: npt.NDArray[np.int64]) -> _Result:
    """F, or where numbers differ and each level has a variance Brown and Forsythe's."""
    squares = np.bincount(member, weights=(y - means[member]) ** 2)
    between, above = float(counts @ (means - y.mean()) ** 2), len(means) - 1
    if counts.min() == 1 or counts.min() == counts.max():
        how, below = "one-way F test of the runs' slopes", float(len(y) - len(means))
        variance = float(squares.sum()) / below
        noise = variance * above
        margins = t_quantile((1 + LEVEL) / 2, below) * np.sqrt(variance / counts)
    else:
        how = "one-way test of the runs' slopes, each level with its own variance (Brown and Forsythe)"
        spare, parts = counts - 1, (1 - counts / len(y)) * squares / (counts - 1)
        noise = float(parts.sum())
        below = noise**2 / float(np.sum(parts**2 / spare)) if noise > 0 else float(spare.sum())
        quantiles = np.array([t_quantile((1 + LEVEL) / 2, int(dof)) for dof in spare])
        margins = quantiles * np.sqrt(squares / spare / counts)
    statistic = _ratio(between, noise, float(y @ y))
    return _Result(how, statistic, (above, below), float(fdtrc(above, below, statistic)), margins)


def _trend(x: FloatArray, y: FloatArray, *, by: str) -> _Result:
    """Student's t of the least-squares slope of y on x; the intervals are of its scatter about that line."""
    dx, dy, dof = x - x.mean(), y - y.mean(), len(y) - 2
    slope = float(dx @ dy) / float(dx @ dx)
    residuals = dy - slope * dx
    variance = float(residuals @ residuals) / dof
    squared = _ratio(slope**2 * float(dx @ dx), variance, float(y @ y))
    margins = np.full(len(y), t_quantile((1 + LEVEL) / 2, dof) * math.sqrt(variance))
    how = f"t test of a trend of the runs' slopes in log {by}"
    return _Result(how, math.copysign(math.sqrt(squared), slope), (dof,), float(fdtrc(1, dof, squared)), margins)


def _ratio(effect: float, noise: float, size: float) -> float:
    """Effect over noise, both squares; differences that are only rounding beside `size` are none."""
    if effect <= ROUNDING**2 * size:
        return 0.0
    return effect / noise if noise > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class _RunSlopes:
    """Each run's own line. Points (n,): x, y, centred by run as dx, dy, and which run; runs (G,): the rest."""

    runs: list[str]
    member: npt.NDArray[np.int64]
    x: FloatArray
    y: FloatArray
    dx: FloatArray
    dy: FloatArray
    squares: FloatArray
    """Σ dx², exactly 0 where only rounding."""
    slope: FloatArray
    stderr: FloatArray
    count: npt.NDArray[np.int64]


def _run_slopes(points: pd.DataFrame, quantity: str) -> _RunSlopes:
    only(points["corpus"], "corpus in the points")
    values = points[["target_nll", quantity]].to_numpy(dtype=np.float64)
    for row, column in np.argwhere(~np.isfinite(values))[:1]:
        where = f"run {points['run'].iloc[row]}, step {points['steps'].iloc[row]}"
        name = ("target_nll", quantity)[column]
        raise FitError(f"got {name} {values[row, column]}, expected a finite number, at {where}")
    member, runs = pd.factorize(points["run"], sort=True)
    count = np.bincount(member)
    x, y = values.T
    dx, dy = (v - (np.bincount(member, weights=v) / count)[member] for v in (x, y))
    spread, size = (np.bincount(member, weights=v**2) for v in (dx, x))
    squares: FloatArray = np.where(spread > ROUNDING**2 * size, spread, 0.0)
    divisor = np.where(squares > 0, squares, math.nan)
    slope = -np.bincount(member, weights=dx * dy) / divisor
    residuals = dy + slope[member] * dx
    spare = np.where(count > 2, count - 2, math.nan)
    stderr = np.sqrt(np.bincount(member, weights=residuals**2) / spare / divisor)
    return _RunSlopes(
        runs=runs.tolist(), member=member, x=x, y=y, dx=dx, dy=dy, squares=squares, slope=slope, stderr=stderr,
        count=count,
    )  # fmt: skip


def _levels(points: pd.DataFrame, slopes: _RunSlopes, by: str) -> npt.NDArray[Any]:
    """The one level of each run."""
    if by not in points.columns:
        raise FitError(f"got by={by!r}, expected a column, one of {', '.join(points.columns)}, at the points")
    column = points[by]
    every = column.to_numpy() if pd.api.types.is_numeric_dtype(column) else column.astype(str).to_numpy()
    first = np.unique(slopes.member, return_index=True)[1]
    values: npt.NDArray[Any] = every[first]
    for row in np.flatnonzero(every != values[slopes.member])[:1]:
        run = slopes.runs[slopes.member[row]]
        raise FitError(
            f"got {by} {values[slopes.member[row]]} and {every[row]} in run {run}, expected one for each run"
        )
    return values


def _word(by: str) -> str:
    return WORDS.get(by, by.replace("_", " "))


def _level(by: str, level: str | float) -> str:
    named = f"{level:g}" if isinstance(level, float) else str(level)
    return {"r": f"r = {named}", "target": f"“{named}”"}.get(by, f"{_word(by)} {named}")
