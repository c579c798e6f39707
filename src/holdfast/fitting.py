"""The numeric engine of `laws`: separable robust least squares, and the orthogonal line, on plain arrays.

Most constants of a law enter linearly: once the exponents are known, one small linear solve gives them. So only the
exponents are searched, each candidate judged with its own best linear constants (variable projection). On the
Chinchilla law this takes the condition number from 3.5e11 to 11 (arXiv 2603.22339), and all starts of a multistart, or
all resamples of a bootstrap, share every matrix operation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from holdfast.formulas import Law
from holdfast.stats import FloatArray, t_quantile

Columns = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Exponents (..., m) to what the k linear constants multiply, (..., n, k), and its slopes (..., m, n, k)."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal law over its median absolute deviation."""

SEARCH_STEPS = 100
REWEIGHTINGS = 300
PATIENCE = 40
"""Reweightings that may end on `SEARCH_STEPS`: what has not settled then lies in a flat valley, and is said not to."""
ROUNDING = 1e-12
SEARCHED = 1e-9
"""Share of the loss that a step must still promise while the best of many starts is looked for."""
POLISHED = ROUNDING**1.2
"""The same where the best of them is followed to its end."""
RESAMPLED = 1e-7
"""The same for one of many resamples: a hundredth of a standard error with some hundred points."""
LEAST_DAMPING = 1e-9
"""Keeps a step finite where two exponents do the same."""

SAME_OPTIMUM = 1e-6
"""Two starts agree when their losses differ by less than this share."""

FLAT = 1e-4
"""Singular value of the scaled Jacobian, relative to the largest, below which the data do not see a direction."""
INVOLVED = 0.1
"""Share of a parameter in a flat direction above which it is not identified."""

LOOSE = 2
"""Times the largest value measured: an asymptote less sure than that says nothing of where values go."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a fit minimises, summed over points: Huber's loss of residuals, quadratic up to `limit` and linear beyond.

    `limit` counts robust standard deviations of raw residuals (from their median size), and math.inf is least squares;
    with `logarithmic` it is itself a residual ln y - ln law, as in the Chinchilla fits, where 0.001 is usual.
    """

    limit: float
    logarithmic: bool = False

    def __str__(self) -> str:
        if math.isinf(self.limit):
            return "least squares of logarithms" if self.logarithmic else "ordinary least squares"
        if self.logarithmic:
            return f"Huber at {self.limit:g} of logarithms"
        return f"Huber at {self.limit:g} robust standard deviations"


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Where a fit ended, and what its uncertainty is made of (see `stats.clustered_covariance`)."""

    parameters: FloatArray
    """(p,) the linear constants, then the exponents."""
    residuals: FloatArray
    """(n,) data minus law."""
    jacobian: FloatArray
    """(n, p) of the law by its parameters."""
    scores: FloatArray
    """(n, p) each point's pull on the parameters."""
    curvatures: FloatArray
    """(n, p, p) how each pull weakens as the parameters follow it."""
    limit: float
    """Residual beyond which a point pulled no harder: raw, or of logarithms."""
    starts_agreeing: float
    """Share of the starts that reached the best optimum found."""
    settled: bool
    """False when an iteration limit came first."""


def separable_fit(
    columns: Columns, y: FloatArray, *, starts: FloatArray, bounds: Sequence[tuple[float, float]], loss: Loss
) -> Solution:
    """Minimise a sum of losses of y − columns(exponents) @ linear from every start (s, m), exponents within `bounds`.

    Huber's loss, so that a few wild checkpoints bend nothing. Raw residuals, summed: a mean would meet an absolute
    tolerance early and stop there (arXiv 2404.10102). Losses of logarithms need y above 0.

    The multistart runs on least squares; reweighting then goes on from its best optimum alone. Weights are such that
    where they no longer change the gradient is the loss's own, of logarithms too.
    """
    box = np.array(bounds, dtype=np.float64).reshape(-1, 2)
    weights, limit = 1 / y**2 if loss.logarithmic else np.ones_like(y), math.inf
    ends, losses, settled = _search(columns, y, weights, starts, box, promise=SEARCHED)
    best = int(np.argmin(losses))
    tie = losses[best] * (1 + SAME_OPTIMUM) + ROUNDING * float(weights @ (y - y.mean()) ** 2)
    agreeing = float(np.mean(losses <= tie))
    exponents, _, settled = _search(columns, y, weights, ends[[best]], box, promise=POLISHED)
    done, stuck = bool(settled[0]), 0

    for _ in range(REWEIGHTINGS if math.isfinite(loss.limit) or loss.logarithmic else 0):
        residuals = _project(columns, y, weights, exponents).residuals[0]
        limit = loss.limit if loss.logarithmic else loss.limit * MAD_TO_SIGMA * float(np.median(np.abs(residuals)))
        if limit <= ROUNDING * float(np.abs(y).max()):
            limit = math.inf
            break
        previous, weights = weights, _pulling(y, residuals, limit, logarithmic=loss.logarithmic)
        exponents, _, settled = _search(columns, y, weights, exponents, box, promise=POLISHED)
        done = bool(settled[0]) and bool(np.abs(weights / previous - 1).max() < SAME_OPTIMUM)
        stuck += not settled[0]
        if done or stuck == PATIENCE:
            break

    end = _project(columns, y, weights, exponents)
    jacobian, residuals = np.concatenate([end.columns[0], end.bends[0].T], axis=1), end.residuals[0]
    pulled, size = jacobian, residuals
    if loss.logarithmic:
        law = y - residuals
        pulled, size = jacobian / law[:, None], np.log(y / law)
    inside = np.abs(size) <= limit
    return Solution(
        parameters=np.concatenate([end.linear[0], exponents[0]]),
        residuals=residuals,
        jacobian=jacobian,
        scores=pulled * np.clip(size, -limit, limit)[:, None],
        curvatures=pulled[:, :, None] * pulled[:, None, :] * inside[:, None, None],
        limit=limit,
        starts_agreeing=agreeing,
        settled=done,
    )


def resampled_fits(
    columns: Columns,
    y: FloatArray,
    solution: Solution,
    *,
    counts: FloatArray,
    bounds: Sequence[tuple[float, float]],
    logarithmic: bool,
) -> FloatArray:
    """Parameters (b, p) of b fits to resampled points, `counts` (b, n) saying how often each point was drawn.

    All at once, each starting from the fit to all points, whose limit of Huber's loss they keep; to about 1e-4 of their
    spread.
    """
    box = np.array(bounds, dtype=np.float64).reshape(-1, 2)
    nonlinear = len(box)
    exponents = np.tile(solution.parameters[len(solution.parameters) - nonlinear :], (len(counts), 1))
    residuals = np.tile(solution.residuals, (len(counts), 1))
    moving = np.arange(len(counts))
    for _ in range(REWEIGHTINGS):
        weights = counts[moving] * _pulling(y, residuals[moving], solution.limit, logarithmic=logarithmic)
        exponents[moving], _, _ = _search(columns, y, weights, exponents[moving], box, promise=RESAMPLED, steps=4)
        before = residuals[moving]
        residuals[moving] = now = _project(columns, y, weights, exponents[moving]).residuals
        moved = np.abs(now - before).max(axis=1) > 1e-4 * np.abs(now).mean(axis=1)
        moving = moving[moved]
        if not len(moving):
            break
    weights = counts * _pulling(y, residuals, solution.limit, logarithmic=logarithmic)
    return np.concatenate([_project(columns, y, weights, exponents).linear, exponents], axis=1)


def _pulling(y: FloatArray, residuals: FloatArray, limit: float, *, logarithmic: bool) -> FloatArray:
    """Weights with which least squares of raw residuals pull as the loss does at these residuals."""
    if not logarithmic:
        return np.ones_like(residuals) if math.isinf(limit) else limit / np.maximum(limit, np.abs(residuals))
    law = np.maximum(y - residuals, 1e-3 * y)
    size = np.log(y / law)
    raw = np.where(np.abs(size) < ROUNDING, law, y - law)
    pull = np.where(np.abs(size) < ROUNDING, 1.0, np.clip(size, -limit, limit))
    weights: FloatArray = pull / (law * raw)
    return weights


def orthogonal_line(x: FloatArray, y: FloatArray) -> Solution:
    """The line y = intercept − slope · x of least squared perpendicular distance: equal noise on both axes.

    Parameters are (slope, intercept). With e = y − intercept + slope · x, half of Σ e² / (1 + slope²) is minimised, in
    closed form. Ordinary least squares, which takes x to be exact, makes the slope too small.
    """
    dx, dy = x - x.mean(), y - y.mean()
    slope = -math.tan(0.5 * math.atan2(2 * float(dx @ dy), float(dx @ dx - dy @ dy)))
    intercept = float(y.mean()) + slope * float(x.mean())
    e, q, ones = y - intercept + slope * x, 1 + slope**2, np.ones_like(x)
    slope_slope = x**2 / q - (4 * slope * x * e + e**2) / q**2 + 4 * slope**2 * e**2 / q**3
    slope_intercept = (2 * slope * e - x * q) / q**2
    return Solution(
        parameters=np.array([slope, intercept]),
        residuals=e,
        jacobian=np.stack([-x, ones], axis=1),
        scores=np.stack([(slope * e**2 - x * e * q) / q**2, e / q], axis=1),
        curvatures=np.array([[slope_slope, slope_intercept], [slope_intercept, ones / q]]).transpose(2, 0, 1),
        limit=math.inf,
        starts_agreeing=1.0,
        settled=True,
    )


class _Projection(NamedTuple):
    """What is left at S candidate exponents once the linear constants are solved."""

    linear: FloatArray
    """(S, k)"""
    columns: FloatArray
    """(S, n, k)"""
    bends: FloatArray
    """(S, m, n): the law by its exponents, linear constants held."""
    residuals: FloatArray
    """(S, n), not weighted."""
    loss: FloatArray
    """(S,): weighted sum of squared residuals."""
    gradient: FloatArray
    """(S, m): of half the loss by the exponents, linear constants following."""
    normal: FloatArray
    """(S, m, m): the Gauss-Newton curvature of the same."""


def _project(columns: Columns, y: FloatArray, weights: FloatArray, exponents: FloatArray) -> _Projection:
    """Solve the linear constants at each candidate, with Kaufman's Jacobian of what they leave.

    `weights` are (n,), or (S, n) where each candidate has its own. Kaufman (1975) drops the part of the derivative
    along the columns themselves: the gradient stays exact. Columns are orthogonalised twice by Gram and Schmidt, as
    exact as Householder's reflections, with every operation shared between the candidates.
    """
    matrix, slopes = columns(exponents)
    root = np.sqrt(weights)
    aim = np.broadcast_to(root * y, matrix.shape[:2])
    candidates, _, k = matrix.shape
    upper, along = np.zeros((candidates, k, k)), np.zeros((candidates, k))
    basis: list[FloatArray] = []
    for j in range(k):
        rest = root * matrix[:, :, j]
        size = np.sqrt(_dot(rest, rest))
        for i, unit in [*enumerate(basis)] * 2:
            part = _dot(unit, rest)
            upper[:, i, j] += part
            rest -= part[:, None] * unit
        length = np.sqrt(_dot(rest, rest))
        kept = length > ROUNDING * size
        basis.append(rest * np.where(kept, 1 / np.where(kept, length, 1), 0)[:, None])
        upper[:, j, j] = np.where(kept, length, 1)
        along[:, j] = _dot(basis[j], aim)
    linear = np.asarray(np.linalg.solve(upper, along[:, :, None])[:, :, 0], dtype=np.float64)
    # A loop over few constants, each a long row: einsum and matmul take several times as long over a short last axis.
    residuals, bends = y - matrix[:, :, 0] * linear[:, :1], slopes[..., 0] * linear[:, 0, None, None]
    for j in range(1, k):
        residuals -= matrix[:, :, j] * linear[:, j, None]
        bends += slopes[..., j] * linear[:, j, None, None]
    left = root * residuals
    tilted = bends * (root if root.ndim == 1 else root[:, None, :])
    for unit in basis:
        tilted -= (tilted @ unit[:, :, None]) * unit[:, None, :]
    return _Projection(
        linear=linear,
        columns=matrix,
        bends=bends,
        residuals=residuals,
        loss=_dot(left, left),
        gradient=-(tilted @ left[:, :, None])[:, :, 0],
        normal=tilted @ tilted.swapaxes(1, 2),
    )


def _dot(left: FloatArray, right: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("sn,sn->s", left, right)
    return product


def _search(
    columns: Columns,
    y: FloatArray,
    weights: FloatArray,
    starts: FloatArray,
    box: FloatArray,
    *,
    promise: float,
    steps: int = SEARCH_STEPS,
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Levenberg-Marquardt on the exponents, from all starts at once: ends, losses, and whether each settled.

    A start settles when a step promises less than this share of its loss, and takes no further part.
    """
    lower, upper = box.T
    here, damping, diagonal = np.clip(starts, lower, upper), np.full(len(starts), 1e-3), np.eye(starts.shape[1])
    at = _project(columns, y, weights, here)
    ends, losses, settled = here.copy(), at.loss.copy(), np.full(len(starts), starts.shape[1] == 0)
    moving, loss, gradient, normal = np.flatnonzero(~settled), at.loss, at.gradient, at.normal
    for _ in range(steps):
        if not len(moving):
            break
        free = ~(((here <= lower) & (gradient > 0)) | ((here >= upper) & (gradient < 0)))
        downhill = -gradient * free
        curved = normal * (free[:, :, None] & free[:, None, :])
        steep = np.einsum("smm->sm", curved)
        curved = curved + diagonal * (damping[:, None] * steep + (steep <= 0))[:, None, :]
        step = np.linalg.solve(curved, downhill[:, :, None])[:, :, 0]
        there = np.clip(here + step, lower, upper)
        trial = _project(columns, y, weights, there)
        promised, better = np.einsum("sm,sm->s", downhill, step), trial.loss < loss
        done = promised <= np.where(better, promise, max(promise, ROUNDING)) * loss
        damping = np.maximum(damping * np.where(better, 0.2, 5.0), LEAST_DAMPING)
        here[better], loss[better] = there[better], trial.loss[better]
        gradient[better], normal[better] = trial.gradient[better], trial.normal[better]
        ends[moving], losses[moving], settled[moving] = here, loss, done
        if done.any():
            going = ~done
            moving, here, damping = moving[going], here[going], damping[going]
            loss, gradient, normal = loss[going], gradient[going], normal[going]
            weights = weights[going] if weights.ndim == 2 else weights
    return ends, losses, settled


def identification(
    law: Law, solution: Solution, stderr: dict[str, float], *, largest: float, dof: int
) -> tuple[float, dict[str, str]]:
    """The condition number, and which parameters the data leave open, with the reason; `largest` of |y| is their unit.

    Where inputs are taken relative to a reference the linear ones are in y's own unit.
    """
    lengths = np.linalg.norm(solution.jacobian, axis=0)
    scaled = solution.jacobian / np.where(lengths > 0, lengths, 1)
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    unseen = (np.abs(directions[singular < FLAT * singular[0]]) > INVOLVED).any(axis=0)
    open_ = {name: "moving it changes nothing" for name, flat in zip(law.parameters, unseen, strict=True) if flat}
    values = dict(zip(law.parameters, solution.parameters.tolist(), strict=True))
    for name, (low, high) in zip(law.nonlinear, law.bounds, strict=True):
        if not low < values[name] < high:
            open_[name] = f"it stopped at its bound, {values[name]:g}"
        elif 2 * t_quantile(0.95, dof) * stderr[name] > high - low:
            open_[name] = f"its 90 % interval is wider than all it may be, {low:g} to {high:g}"
    for name in law.parameters if law.scaling == "ratio" else ():
        if name not in law.nonlinear and 2 * t_quantile(0.95, dof) * stderr[name] > LOOSE * largest:
            open_.setdefault(name, f"its 90 % interval is wider than {LOOSE} times all that was measured")
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.nan, open_
