"""The paper's two joint laws at once, tied together as its equations 5 and 6 tie them.

With L the target loss and F forgetting, each as `formulas.PAPER`,

    L = s + K g(P, N)          F = (intercept - slope * s) + K' g'(P, N)

slope and intercept those of the line F(L), whose asymptote F's then follows from L's; and both share one curvature, the
paper's 1 / rho. Exponents and weights stay each law's own, as do K and K': the paper's a and b of forgetting take its
place.
"""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from holdfast.fits import HUBER, Fit, evidence, fit_law
from holdfast.fitting import Loss, Solution, separable_fit
from holdfast.formulas import LINE, PAPER
from holdfast.stats import FloatArray, clustered_covariance

OWN = 3
"""Exponents and weight, of each law alone; the curvature is the fourth."""


def fit_coupled(
    points: pd.DataFrame, quantity: str, *, huber: float = HUBER, alone: Mapping[str, Fit] | None = None
) -> dict[str, Fit]:
    """`PAPER` for "target_nll" and for one measure of forgetting, coupled by the line; intervals clustered by run.

    The line is fitted first, by ordinary least squares as in the paper, and its own uncertainty is not in the errors.
    Each law's residuals count relative to their size when it is fitted alone, so neither outweighs the other. `alone`
    are these fits, by quantity, where they have been made.

    Raises:
        FitError: as `fits.fit_law`.
    """
    line = fit_law(LINE, points, quantity, huber=math.inf)
    slope, intercept = (line.parameters[name].value for name in LINE.parameters)
    if alone is None:
        alone = {name: fit_law(PAPER, points, name, huber=huber) for name in ("target_nll", quantity)}
    size = {name: max(alone[name].rmse, 1e-12) for name in ("target_nll", quantity)}
    values, n = points[list(PAPER.inputs)].to_numpy(dtype=np.float64), len(points)
    reference, runs = PAPER.reference(values), np.tile(points["run"].to_numpy(dtype=str), 2)
    loss, forgetting = (points[name].to_numpy(dtype=np.float64) for name in size)
    y = np.concatenate([loss / size["target_nll"], (forgetting - intercept) / size[quantity]])
    scaled, sizes = PAPER.scaled(values, reference), (size["target_nll"], size[quantity])
    solution = separable_fit(
        partial(_both, scaled, slope=slope, sizes=sizes), y,
        starts=_starts(alone, quantity), bounds=[*PAPER.bounds[:OWN], *PAPER.bounds], loss=Loss(limit=huber),
    )  # fmt: skip
    covariance = clustered_covariance(scores=solution.scores, curvatures=solution.curvatures, clusters=runs)
    found = {}
    for name, chosen, shift, half in (
        ("target_nll", _of_loss(), 0.0, slice(None, n)),
        (quantity, _of_forgetting(slope), intercept, slice(n, None)),
    ):
        parameters, jacobian = chosen @ solution.parameters, solution.jacobian[half] @ np.linalg.pinv(chosen)
        parameters[0] += shift
        own = Solution(
            parameters=parameters,
            residuals=solution.residuals[half] * size[name],
            jacobian=jacobian * size[name],
            scores=jacobian,
            curvatures=np.zeros((n, 0, 0)),
            limit=solution.limit,
            starts_agreeing=solution.starts_agreeing,
            settled=solution.settled,
        )
        found[name] = evidence(
            PAPER, points, name, own,
            estimator=f"{Loss(limit=huber)}, coupled by the line as in equations 5 and 6",
            reference=dict(zip(PAPER.inputs, reference.tolist(), strict=True)),
            covariance=chosen @ covariance @ chosen.T,
        )  # fmt: skip
    return found


def _both(
    inputs: FloatArray, nonlinear: FloatArray, *, slope: float, sizes: tuple[float, float]
) -> tuple[FloatArray, FloatArray]:
    """Columns of s, K and K' over the points twice; nonlinear: x, y, w of the loss, of forgetting, the curvature."""
    n, curvature = len(inputs), nonlinear[..., 2 * OWN :]
    columns = np.zeros((*nonlinear.shape[:-1], 2 * n, 3))
    slopes = np.zeros((*nonlinear.shape, 2 * n, 3))
    for half, first, column, asymptote, size in (
        (slice(None, n), 0, 1, 1.0, sizes[0]),
        (slice(n, None), OWN, 2, -slope, sizes[1]),
    ):
        own, bends = PAPER.columns(inputs, np.concatenate([nonlinear[..., first : first + OWN], curvature], axis=-1))
        columns[..., half, 0] = asymptote / size
        columns[..., half, column] = own[..., 1] / size
        slopes[..., first : first + OWN, half, column] = bends[..., :OWN, :, 1] / size
        slopes[..., 2 * OWN, half, column] = bends[..., OWN, :, 1] / size
    return columns, slopes


def _starts(alone: Mapping[str, Fit], quantity: str) -> FloatArray:
    """Where each law ends alone, with every weight and curvature that is begun from."""
    loss, forgetting = (
        [alone[name].parameters[parameter].value for parameter in PAPER.nonlinear[:OWN]]
        for name in ("target_nll", quantity)
    )
    starts = []
    for curvature in PAPER.starts[OWN]:
        starts.append([*loss, *forgetting, curvature])
        starts += [[*loss[:2], w, *forgetting[:2], w, curvature] for w in PAPER.starts[2]]
    return np.array(starts)


def _of_loss() -> FloatArray:
    """From (s, K, K', x, y, w, x', y', w', curvature) to the loss's own parameters, as in `PAPER`."""
    chosen = np.zeros((6, 10))
    chosen[range(6), [0, 1, 3, 4, 5, 9]] = 1
    return chosen


def _of_forgetting(slope: float) -> FloatArray:
    """The same to forgetting's, less the line's intercept in its asymptote."""
    chosen = np.zeros((6, 10))
    chosen[range(6), [0, 2, 6, 7, 8, 9]] = [-slope, 1, 1, 1, 1, 1]
    return chosen
