"""The laws as data: each formula once, with its names, bounds, starts and derivative."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from holdfast.stats import FloatArray


@dataclass(frozen=True, kw_only=True)
class Law:
    """A formula: quantity = columns(inputs, nonlinear parameters) @ linear parameters.

    All that fitting, the Jacobian and prediction need, so another law is another value of this class, listed in `LAWS`.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    """Columns of the table of points."""
    scaling: Literal["none", "ratio", "difference"]
    """How inputs reach `columns`: divided by their geometric means over the data, or less their means, so that
    constants have the data's size."""
    linear: tuple[str, ...]
    nonlinear: tuple[str, ...]
    bounds: tuple[tuple[float, float], ...]
    """Of each nonlinear parameter."""
    starts: tuple[tuple[float, ...], ...]
    """Of each nonlinear parameter; the search begins at every combination."""
    columns: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
    """Inputs (n, d) and nonlinear parameters (..., m) to what the k linear parameters multiply, (..., n, k), and its
    derivative by each nonlinear parameter, (..., m, n, k)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names, in the order of a fit's covariance."""
        return self.linear + self.nonlinear

    def grid(self) -> FloatArray:
        """Every combination of `starts`, (s, m)."""
        return np.array(list(itertools.product(*self.starts)), dtype=np.float64)

    def reference(self, inputs: FloatArray) -> FloatArray:
        """What scaling takes each input (n, d) relative to."""
        if self.scaling == "ratio":
            # As multiples of the first row: an input that never varies is then exactly 1, its logarithm exactly 0.
            means: FloatArray = inputs[0] * np.exp(np.log(inputs / inputs[0]).mean(axis=0))
            return means
        return np.ones(inputs.shape[1]) if self.scaling == "none" else inputs.mean(axis=0)

    def scaled(self, inputs: FloatArray, reference: FloatArray) -> FloatArray:
        """Inputs (n, d) as `columns` takes them."""
        if self.scaling == "difference":
            return inputs - reference
        return inputs / reference


HUGE = 150
"""Exponents cut off at this: their squares can still be added, and no law that fits data is near."""


def _stack(*parts: FloatArray) -> FloatArray:
    """Parts side by side along a new last axis, each kept together in memory: they are worked on one at a time."""
    return np.moveaxis(np.stack(np.broadcast_arrays(*parts)), 0, -1)


def _line(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    columns = np.stack([-inputs[:, 0], np.ones(len(inputs))], axis=-1)
    every = np.broadcast_to(columns, (*nonlinear.shape[:-1], *columns.shape))
    return every, np.zeros((*nonlinear.shape, *columns.shape))


def _bent(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    """By d · φ(bend · d), φ(z) = (e^z − 1)/z, whose limit at bend 0 is d: the line."""
    d = inputs[:, 0]
    z = np.clip(nonlinear * d, -600, 600)
    near = np.abs(z) < 1e-5
    safe = np.where(near, 1.0, z)
    phi = np.where(near, 1 + z / 2 + z**2 / 6, np.expm1(safe) / safe)
    slope = np.where(near, 0.5 + z / 3, (np.exp(safe) - np.expm1(safe) / safe) / safe)
    return _stack(-d * phi, np.ones_like(phi)), _stack(-(d**2) * slope, np.zeros_like(phi))[..., None, :, :]


def _product(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    logs = np.log(inputs).T
    decay = np.exp(-nonlinear @ logs)
    slopes = -logs * decay[..., None, :]
    return _stack(np.ones_like(decay), decay), _stack(np.zeros_like(slopes), slopes)


def _sum(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    log_p, log_n = np.log(inputs).T
    by_p, by_n = np.exp(-nonlinear[..., :1] * log_p), np.exp(-nonlinear[..., 1:] * log_n)
    nothing = np.zeros_like(by_p)
    of_p = _stack(nothing, -log_p * by_p, nothing)
    of_n = _stack(nothing, nothing, -log_n * by_n)
    return _stack(np.ones_like(by_p), by_p, by_n), np.stack([of_p, of_n], axis=-3)


def _paper(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    """By its logarithm: a log-sum neither overflows nor loses the product's limit at curvature 0."""
    (log_p, log_n), (x, y, w, curvature) = np.log(inputs).T, np.moveaxis(nonlinear[..., None], -2, 0)
    by_p, by_n = -curvature * x / w * log_p, -curvature * y / (1 - w) * log_n
    in_p, in_n = by_p + np.log(w), by_n + np.log1p(-w)
    largest = np.maximum(in_p, in_n)
    share_p, share_n = np.exp(in_p - largest), np.exp(in_n - largest)
    both = share_p + share_n
    total = largest + np.log(both)
    share_p /= both
    share_n /= both
    gap = np.exp(np.clip(total / curvature, -HUGE, HUGE))
    slopes = np.empty((*gap.shape[:-1], 4, gap.shape[-1]))
    slopes[..., 0, :] = -gap * share_p * log_p / w
    slopes[..., 1, :] = -gap * share_n * log_n / (1 - w)
    slopes[..., 2, :] = gap * (share_p * (1 - by_p) / w - share_n * (1 - by_n) / (1 - w)) / curvature
    slopes[..., 3, :] = gap * (share_p * by_p + share_n * by_n - total) / curvature**2
    return _stack(np.ones_like(gap), gap), _stack(np.zeros_like(slopes), slopes)


def _product_in_steps(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _product(inputs[:, 1:], nonlinear)


def _growth(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    columns, slopes = _product(inputs, -nonlinear)
    return columns, -slopes


def _growth_in_steps(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    return _growth(inputs[:, 1:], nonlinear)


LINE = Law(
    name="line",
    formula="intercept - slope * target_nll",
    inputs=("target_nll",),
    scaling="none",
    linear=("slope", "intercept"),
    nonlinear=(),
    bounds=(),
    starts=(),
    columns=_line,
)
"""Forgetting against the loss on what is learned. `slope` is the price of learning: nats forgotten per nat learned,
whichever rank or step bought it.

Source: Kalajdzievski 2024, arXiv 2401.05605, equation 4, where the slope is c and the intercept s.
"""

SATURATING = Law(
    name="saturating",
    formula="level - slope * (exp(bend * d) - 1) / bend, d = target_nll - its mean",
    inputs=("target_nll",),
    scaling="difference",
    linear=("slope", "level"),
    nonlinear=("bend",),
    bounds=((-40.0, 40.0),),
    starts=((-10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0),),
    columns=_bent,
)
"""`LINE` with one bend: 0 is the line, above 0 forgetting levels off as more is learned, below 0 each nat costs more
than the one before. `slope` is the price in the middle of the data, `level` the forgetting there; bend is per nat.
"""

MULTIPLICATIVE = Law(
    name="multiplicative",
    formula="asymptote + K * (P / P0)^-x * (N / N0)^-y",
    inputs=("trainable_params", "steps"),
    scaling="ratio",
    linear=("asymptote", "K"),
    nonlinear=("x", "y"),
    bounds=((0.0, 3.0), (0.01, 3.0)),
    starts=((0.02, 0.1, 0.3, 1.0), (0.05, 0.2, 0.5, 1.0, 2.0)),
    columns=_product,
)
"""A gap to an asymptote that shrinks with parameters P and steps N; P0 and N0 are the data's geometric means, so K is
the gap in the middle of the study: positive for a loss that falls, negative for forgetting that rises.

Equal to the paper's seven-constant equations 5 and 6 to R² >= .9994 over their range, with four constants that can be
told apart. y stops at 0.01, where the law is a logarithm for every practical purpose; at 0 it would be a constant.
"""

ADDITIVE = Law(
    name="additive",
    formula="asymptote + A * (P / P0)^-x + B * (N / N0)^-y",
    inputs=("trainable_params", "steps"),
    scaling="ratio",
    linear=("asymptote", "A", "B"),
    nonlinear=("x", "y"),
    bounds=((0.01, 3.0), (0.01, 3.0)),
    starts=((0.02, 0.1, 0.3, 1.0), (0.05, 0.2, 0.5, 1.0, 2.0)),
    columns=_sum,
)
"""Parameters and steps each have a limit of their own. Source: Hoffmann et al. 2022, arXiv 2203.15556, equation 2."""

PAPER = Law(
    name="paper",
    formula="asymptote + K * (w * (P / P0)^-a + (1 - w) * (N / N0)^-b)^(1 / curvature), "
    "a = x * curvature / w, b = y * curvature / (1 - w)",
    inputs=("trainable_params", "steps"),
    scaling="ratio",
    linear=("asymptote", "K"),
    nonlinear=("x", "y", "w", "curvature"),
    bounds=((0.0, 3.0), (0.01, 3.0), (0.02, 0.98), (0.001, 1.0)),
    starts=(
        (0.02, 0.08, 0.2, 0.5, 1.0),
        (0.05, 0.2, 0.5, 1.0, 2.0),
        (0.1, 0.35, 0.65, 0.9),
        (0.003, 0.03, 0.1, 0.3, 0.9),
    ),
    columns=_paper,
)
"""The paper's own form, equations 5 and 6, in constants of which each has a meaning of its own.

x and y are the effective exponents at P0, N0, as in `MULTIPLICATIVE`, which is its limit at curvature 0; at curvature 1
it is additive. The paper's seven constants have six degrees of freedom: its a, b and c trade against each other.
In them: curvature = 1 / rho, w = (a/P0)^alpha / ((a/P0)^alpha + (b/N0)^beta), x = rho * w * alpha,
y = rho * (1 - w) * beta, K = c * ((a/P0)^alpha + (b/N0)^beta)^rho.

Source: Kalajdzievski 2024, arXiv 2401.05605, equations 5 and 6; the constants derived in docs/theory.md, section 4.
"""

STEPS = Law(
    name="steps",
    formula="asymptote + K * (N / N0)^-y",
    inputs=("trainable_params", "steps"),
    scaling="ratio",
    linear=("asymptote", "K"),
    nonlinear=("y",),
    bounds=MULTIPLICATIVE.bounds[1:],
    starts=MULTIPLICATIVE.starts[1:],
    columns=_product_in_steps,
)
"""What is left of `MULTIPLICATIVE` when only one P was seen; it predicts any P alike, and calls that extrapolation."""

GROWTH = replace(
    MULTIPLICATIVE,
    name="growth",
    formula="start + K * (P / P0)^x * (N / N0)^y",
    linear=("start", "K"),
    columns=_growth,
)
"""Forgetting before it flattens: `MULTIPLICATIVE` with its exponents turned round, rising from `start` without end.

A short run forgets about in proportion to its steps; the paper's law, fitted there, runs to a logarithm and still bends
too much. Says nothing of where forgetting will end.
"""

GROWTH_IN_STEPS = replace(
    STEPS,
    name="growth in steps",
    formula="start + K * (N / N0)^y",
    linear=("start", "K"),
    columns=_growth_in_steps,
)
"""`GROWTH` when only one P was seen, as `STEPS` is to `MULTIPLICATIVE`."""

POWER = replace(STEPS, name="power", formula="asymptote + K * (X / X0)^-y", inputs=("x",), columns=_product)
"""A power law in one input, for tables from elsewhere."""

LAWS = {
    law.name: law
    for law in (
        LINE, SATURATING, MULTIPLICATIVE, ADDITIVE, PAPER, STEPS, GROWTH, GROWTH_IN_STEPS, POWER,
    )
}  # fmt: skip
