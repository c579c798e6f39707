"""The numeric engine of `laws`: separable robust least squares, and the orthogonal line, on plain arrays.

Most constants of a law enter linearly: once the exponents are known, one small linear solve gives them. So only the
exponents are searched, each candidate judged with its own best linear constants (variable projection). On the
Chinchilla law this takes the condition number from 3.5e11 to 11 (arXiv 2603.22339), and all starts of a multistart
share every matrix operation.
"""

import itertools
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
REWEIGHTINGS = 100
ROUNDING = 1e-12
LEAST_DAMPING = 1e-9
"""Keeps a step finite where two exponents do the same."""

SAME_OPTIMUM = 1e-6
"""Two starts agree when their losses differ by less than this share."""

FLAT = 1e-4
"""Singular value of the scaled Jacobian, relative to the largest, below which the data do not see a direction."""
INVOLVED = 0.1
"""Share of a parameter in a flat direction above which it is not identified."""


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
    starts_agreeing: float
    """Share of the starts that reached the best optimum found."""
    settled: bool
    """False when an iteration limit came first."""


def separable_fit(
    columns: Columns,
    y: FloatArray,
    *,
    starts: Sequence[Sequence[float]],
    bounds: Sequence[tuple[float, float]],
    huber: float,
) -> Solution:
    """Minimise Σ ρ(y − columns(exponents) @ linear) from every combination of `starts`, exponents within `bounds`.

    ρ is Huber's: quadratic up to `huber` robust standard deviations (from the median absolute residual), linear
    beyond, so that a few wild checkpoints bend nothing; `huber=inf` is ordinary least squares. Raw residuals, summed:
    a mean would meet an absolute tolerance early and stop there (arXiv 2404.10102).

    The multistart runs on least squares; reweighting then goes on from its best optimum alone.
    """
    box = np.array(bounds, dtype=np.float64).reshape(-1, 2)
    grid = np.array(list(itertools.product(*starts)), dtype=np.float64)
    weights, limit = np.ones_like(y), math.inf
    ends, losses, settled = _search(columns, y, weights, grid, box)
    best = int(np.argmin(losses))
    tie = losses[best] * (1 + SAME_OPTIMUM) + ROUNDING * float(np.sum((y - y.mean()) ** 2))
    agreeing, exponents, done = float(np.mean(losses <= tie)), ends[[best]], bool(settled[best])

    for _ in range(REWEIGHTINGS if math.isfinite(huber) else 0):
        size = np.abs(_project(columns, y, weights, exponents).residuals[0])
        limit = huber * MAD_TO_SIGMA * float(np.median(size))
        if limit <= ROUNDING * float(np.abs(y).max()):
            limit = math.inf
            break
        previous, weights = weights, limit / np.maximum(limit, size)
        exponents, _, settled = _search(columns, y, weights, exponents, box)
        done = bool(settled[0]) and bool(np.abs(weights - previous).max() < SAME_OPTIMUM)
        if done:
            break

    end = _project(columns, y, weights, exponents)
    jacobian = np.concatenate([end.columns[0], end.bends[0].T], axis=1)
    residuals = end.residuals[0]
    inside = np.abs(residuals) <= limit
    return Solution(
        parameters=np.concatenate([end.linear[0], exponents[0]]),
        residuals=residuals,
        jacobian=jacobian,
        scores=jacobian * np.clip(residuals, -limit, limit)[:, None],
        curvatures=jacobian[:, :, None] * jacobian[:, None, :] * inside[:, None, None],
        starts_agreeing=agreeing,
        settled=done,
    )


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
    jacobian: FloatArray
    """(S, n, m): weighted residuals by the exponents, linear constants following."""
    loss: FloatArray
    """(S,): weighted sum of squared residuals."""


def _project(columns: Columns, y: FloatArray, weights: FloatArray, exponents: FloatArray) -> _Projection:
    """Solve the linear constants at each candidate, with Kaufman's Jacobian of what they leave.

    Kaufman (1975) drops the part of the derivative along the columns themselves: the gradient stays exact.
    """
    matrix, slopes = columns(exponents)
    root = np.sqrt(weights)
    left, singular, right = np.linalg.svd(root[:, None] * matrix, full_matrices=False)
    kept = singular > ROUNDING * singular[:, :1]
    left = left * kept[:, None, :]
    linear = np.einsum("skj,sk->sj", right, (root * y) @ left / np.where(kept, singular, 1.0))
    residuals = y - np.einsum("snk,sk->sn", matrix, linear)
    bends = np.einsum("smnk,sk->smn", slopes, linear)
    tilted = (root * bends).swapaxes(1, 2)
    jacobian = left @ (left.swapaxes(1, 2) @ tilted) - tilted
    return _Projection(linear, matrix, bends, residuals, jacobian, np.sum(weights * residuals**2, axis=1))


def _search(
    columns: Columns, y: FloatArray, weights: FloatArray, starts: FloatArray, box: FloatArray
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Levenberg-Marquardt on the exponents, from all starts at once: ends, losses, and whether each settled."""
    lower, upper = box.T
    here, damping = np.clip(starts, lower, upper), np.full(len(starts), 1e-3)
    settled, diagonal = np.full(len(starts), starts.shape[1] == 0), np.eye(starts.shape[1])
    at = _project(columns, y, weights, here)
    for _ in range(SEARCH_STEPS):
        if settled.all():
            break
        gradient = np.einsum("snm,sn->sm", at.jacobian, np.sqrt(weights) * at.residuals)
        stuck = ((here <= lower) & (gradient > 0)) | ((here >= upper) & (gradient < 0))
        gradient = np.where(stuck, 0.0, gradient)
        free = np.where(stuck[:, None, :], 0.0, at.jacobian)
        normal = free.swapaxes(1, 2) @ free
        steep = np.einsum("smm->sm", normal)
        normal = normal + diagonal * (damping[:, None] * steep + (steep <= 0))[:, None, :]
        step = np.linalg.solve(normal, -gradient[:, :, None])[:, :, 0]
        there = np.clip(here + step, lower, upper)
        trial = _project(columns, y, weights, there)
        # What the step promised is below the rounding of the loss: there is nothing more to gain.
        settled |= -np.einsum("sm,sm->s", gradient, step) <= ROUNDING**1.2 * at.loss
        better = trial.loss < at.loss
        damping = np.maximum(damping * np.where(better, 0.2, 5.0), LEAST_DAMPING)
        here = np.where(better[:, None], there, here)
        at = _Projection(
            *(np.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old) for new, old in zip(trial, at, strict=True))
        )
    return here, at.loss, settled


def identification(law: Law, solution: Solution, stderr: dict[str, float], *, dof: int) -> tuple[float, dict[str, str]]:
    """The condition number, and which parameters the data leave open, with the reason."""
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
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.nan, open_
