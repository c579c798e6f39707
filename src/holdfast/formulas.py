"""The laws as data: each formula once, with its names, bounds, starts and derivative."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    relative: bool
    """Inputs reach `columns` divided by their geometric means over the data, so that constants have the data's size."""
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


def _line(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    columns = np.stack([-inputs[:, 0], np.ones(len(inputs))], axis=-1)
    every = np.broadcast_to(columns, (*nonlinear.shape[:-1], *columns.shape))
    return every, np.zeros((*nonlinear.shape, *columns.shape))


def _product(inputs: FloatArray, nonlinear: FloatArray) -> tuple[FloatArray, FloatArray]:
    logs = np.log(inputs).T
    decay = np.exp(-nonlinear @ logs)
    slopes = -logs * decay[..., None, :]
    return np.stack([np.ones_like(decay), decay], axis=-1), np.stack([np.zeros_like(slopes), slopes], axis=-1)


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
    relative=False,
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

MULTIPLICATIVE = Law(
    name="multiplicative",
    formula="asymptote + K * (P / P0)^-x * (N / N0)^-y",
    inputs=("trainable_params", "steps"),
    relative=True,
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

STEPS = Law(
    name="steps",
    formula="asymptote + K * (N / N0)^-y",
    inputs=("trainable_params", "steps"),
    relative=True,
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

LAWS = {law.name: law for law in (LINE, MULTIPLICATIVE, STEPS, GROWTH, GROWTH_IN_STEPS)}
