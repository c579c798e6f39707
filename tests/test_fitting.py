"""The numeric engine against SciPy, finite differences and geometry."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.optimize

from holdfast.fitting import Loss, orthogonal_line, resampled_fits, separable_fit
from holdfast.formulas import LINE, MULTIPLICATIVE, PAPER
from holdfast.stats import clustered_covariance

INPUTS = np.stack(np.meshgrid(np.geomspace(0.2, 6, 6), np.geomspace(0.4, 2.5, 12)), axis=-1).reshape(-1, 2)
LEAST_SQUARES = Loss(limit=math.inf)
TRUTH = np.array([0.61, 0.08, 0.13, 0.53])
SEARCH = {"starts": MULTIPLICATIVE.grid(), "bounds": MULTIPLICATIVE.bounds}


def law(parameters, inputs=INPUTS):
    columns, _ = MULTIPLICATIVE.columns(inputs, np.asarray(parameters[2:]))
    return columns @ parameters[:2]


def noisy(seed, outliers=0):
    rng = np.random.default_rng(seed)
    y = law(TRUTH) + 0.003 * rng.standard_t(4, len(INPUTS))
    y[rng.choice(len(y), outliers, replace=False)] += 0.3
    return y


def fitted(y, huber=1.345):
    return separable_fit(partial(MULTIPLICATIVE.columns, INPUTS), y, loss=Loss(limit=huber), **SEARCH)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("x", "y"), [(0.129, 0.529), (0.02, 0.9), (0.6, 0.08), (1.5, 2.0)])
def test_recovers_the_truth_without_noise(sign, x, y):
    constants = np.array([0.61, sign * 0.08, x, y])
    solution = fitted(law(constants))
    np.testing.assert_allclose(solution.parameters, constants, rtol=1e-5)
    assert solution.settled


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("huber", [1.345, math.inf])
def test_agrees_with_scipy_on_the_same_loss(seed, huber):
    y = noisy(seed, outliers=0 if math.isinf(huber) else 4)
    ours = fitted(y, huber)
    limit = huber * 1.4826 * np.median(np.abs(ours.residuals))
    scipys = scipy.optimize.least_squares(
        lambda parameters: y - law(parameters),
        TRUTH,
        loss="linear" if math.isinf(huber) else "huber",
        f_scale=1.0 if math.isinf(huber) else limit,
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    np.testing.assert_allclose(ours.parameters, scipys.x, rtol=2e-4)
    np.testing.assert_allclose(ours.scores.sum(axis=0), 0, atol=1e-7)


def test_a_few_wild_points_bend_nothing():
    clean, wild = noisy(1), noisy(1, outliers=4)
    assert np.abs(law(fitted(wild).parameters) - law(fitted(clean).parameters)).max() < 0.004
    assert np.abs(law(fitted(wild, math.inf).parameters) - law(fitted(clean).parameters)).max() > 0.01


def test_the_jacobian_is_that_of_the_law():
    solution = fitted(noisy(2))
    numeric = scipy.optimize.approx_fprime(solution.parameters, law, 1e-7)
    np.testing.assert_allclose(solution.jacobian, numeric, atol=1e-6)


def test_neither_the_order_of_points_nor_the_scale_of_the_data_matters():
    y, order = noisy(3), np.random.default_rng(0).permutation(len(INPUTS))
    straight = fitted(y).parameters
    shuffled = separable_fit(
        partial(MULTIPLICATIVE.columns, INPUTS[order]), y[order], loss=Loss(limit=1.345), **SEARCH
    ).parameters
    np.testing.assert_allclose(shuffled, straight, rtol=1e-5)
    np.testing.assert_allclose(fitted(1e4 * y).parameters, straight * [1e4, 1e4, 1, 1], rtol=1e-5)


@pytest.mark.parametrize("rising", [True, False])
def test_exponents_stay_within_their_bounds(rising):
    wanted = np.array([0.61, 0.08, -0.2 if rising else 0.13, 0.53 if rising else 4.0])
    solution = fitted(law(wanted))
    stopped = solution.parameters[2] == 0.0 if rising else solution.parameters[3] == 3.0
    assert stopped
    assert solution.settled


def test_an_ordinary_line_is_numpys():
    rng = np.random.default_rng(5)
    x = rng.normal(2, 0.3, 40)
    y = 3 - 1.5 * x + 0.1 * rng.normal(size=40)
    solution = separable_fit(partial(LINE.columns, x[:, None]), y, starts=LINE.grid(), bounds=(), loss=LEAST_SQUARES)
    slope, intercept = np.polyfit(x, y, 1)
    np.testing.assert_allclose(solution.parameters, [-slope, intercept], rtol=1e-10)


def noisy_line(seed, n=80, slope=1.7):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.6, 0.9, n)
    return x + 0.02 * rng.normal(size=n), 2.0 - slope * x + 0.02 * rng.normal(size=n)


@pytest.mark.parametrize("slope", [1.7, 0.3, -0.8])
def test_the_orthogonal_line_is_the_first_principal_axis(slope):
    x, y = noisy_line(6, slope=slope)
    _, _, axes = np.linalg.svd(np.stack([x - x.mean(), y - y.mean()], axis=1))
    solution = orthogonal_line(x, y)
    np.testing.assert_allclose(solution.parameters[0], -axes[0, 1] / axes[0, 0], rtol=1e-9)
    np.testing.assert_allclose(solution.scores.sum(axis=0), 0, atol=1e-10)
    # The same line with the axes exchanged.
    np.testing.assert_allclose(orthogonal_line(y, x).parameters[0], 1 / solution.parameters[0], rtol=1e-9)


def test_the_orthogonal_line_undoes_the_flattening_by_noise_in_x():
    lines = [noisy_line(seed) for seed in range(200)]
    orthogonal = np.mean([orthogonal_line(x, y).parameters[0] for x, y in lines])
    ordinary = np.mean([-np.polyfit(x, y, 1)[0] for x, y in lines])
    assert abs(orthogonal - 1.7) < 0.02
    assert ordinary < 1.66


def test_curvatures_of_the_orthogonal_line_are_those_of_its_distance():
    x, y = noisy_line(7)

    def half_squared_distance(parameters):
        return 0.5 * np.sum((y - parameters[1] + parameters[0] * x) ** 2) / (1 + parameters[0] ** 2)

    solution, step = orthogonal_line(x, y), 1e-4
    hessian = np.empty((2, 2))
    for i, j in np.ndindex(2, 2):
        a, b = step * np.eye(2)[i], step * np.eye(2)[j]
        at = [half_squared_distance(solution.parameters + p * a + q * b) for p in (1, -1) for q in (1, -1)]
        hessian[i, j] = (at[0] - at[1] - at[2] + at[3]) / (4 * step**2)
    np.testing.assert_allclose(solution.curvatures.sum(axis=0), hessian, rtol=1e-5)


def test_errors_of_the_orthogonal_line_are_those_of_leaving_points_out():
    x, y = noisy_line(8)
    solution, n = orthogonal_line(x, y), len(x)
    moves = [orthogonal_line(np.delete(x, i), np.delete(y, i)).parameters - solution.parameters for i in range(n)]
    covariance = clustered_covariance(scores=solution.scores, curvatures=solution.curvatures, clusters=np.arange(n))
    np.testing.assert_allclose(covariance, (n - 1) / n * np.transpose(moves) @ moves, rtol=0.05)


@pytest.mark.parametrize("limit", [1e-3, 0.02])
def test_logarithms_agree_with_scipy_on_the_same_loss(limit):
    y = noisy(4, outliers=3)
    ours = separable_fit(partial(MULTIPLICATIVE.columns, INPUTS), y, loss=Loss(limit=limit, logarithmic=True), **SEARCH)

    def summed(parameters):
        size = np.abs(np.log(y / np.maximum(law(parameters), 1e-9)))
        return np.where(size <= limit, size**2 / 2, limit * (size - limit / 2)).sum()

    scipys = scipy.optimize.minimize(
        summed, ours.parameters, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16, "maxfev": 20_000}
    )
    assert summed(ours.parameters) <= scipys.fun * (1 + 1e-9)
    assert summed(ours.parameters) < summed(TRUTH)
    np.testing.assert_allclose(ours.scores.sum(axis=0), 0, atol=2e-6)
    assert ours.settled


def test_logarithms_do_not_see_the_unit():
    y = noisy(5)
    search = {"loss": Loss(limit=0.01, logarithmic=True), **SEARCH}
    columns = partial(MULTIPLICATIVE.columns, INPUTS)
    straight, scaled = (separable_fit(columns, factor * y, **search).parameters for factor in (1, 1e3))
    np.testing.assert_allclose(scaled, straight * [1e3, 1e3, 1, 1], rtol=1e-4)


@pytest.mark.parametrize(("form", "worse"), [(MULTIPLICATIVE, 1e-6), (PAPER, 0.03)])
def test_resampled_fits_are_those_of_the_rows_repeated(form, worse):
    """All at once, each as if it alone had been fitted, in the optimum nearest to that of the whole."""
    y, columns = noisy(6), partial(form.columns, INPUTS)
    whole = separable_fit(columns, y, starts=form.grid(), bounds=form.bounds, loss=LEAST_SQUARES)
    counts = np.random.default_rng(0).multinomial(len(y), np.full(len(y), 1 / len(y)), size=20).astype(float)
    found = resampled_fits(columns, y, whole, counts=counts, bounds=form.bounds, logarithmic=False)
    for parameters, times in zip(found, counts.astype(int), strict=True):
        repeated = np.repeat(np.arange(len(y)), times)
        alone = separable_fit(
            partial(form.columns, INPUTS[repeated]), y[repeated],
            starts=form.grid(), bounds=form.bounds, loss=LEAST_SQUARES,
        )  # fmt: skip
        fitted_to = form.columns(INPUTS, parameters[2:])[0] @ parameters[:2]
        assert times @ (y - fitted_to) ** 2 <= (1 + worse) * alone.residuals @ alone.residuals


def test_all_starts_of_the_papers_law_are_searched_and_most_agree():
    y = law(TRUTH) + 0.002 * np.random.default_rng(0).normal(size=len(INPUTS))
    solution = separable_fit(
        partial(PAPER.columns, INPUTS), y, starts=PAPER.grid(), bounds=PAPER.bounds, loss=Loss(limit=1.345)
    )
    assert len(PAPER.grid()) == 500
    assert solution.starts_agreeing > 0.5
    assert np.abs(y - solution.residuals - law(TRUTH)).max() < 0.002
