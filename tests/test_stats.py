"""Numbers with uncertainty: against explicit leave-one-out, SciPy, and simulated studies."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import sandwich
from holdfast.stats import (
    Estimate,
    Prediction,
    Scatter,
    as_dict,
    clustered_covariance,
    common_share,
    ratio_of_sums,
    rounded,
    satterthwaite_dof,
    scatter_about,
)

documents = st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 2000)), min_size=2, max_size=30)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.0831, 0.0042, "0.083 ± 0.004"),
        (0.0831, 0.0137, "0.083 ± 0.014"),
        (0.0831, 0.0096, "0.08 ± 0.01"),
        (482.3, 31.0, "480 ± 30"),
        (-0.0002, 0.004, "0.000 ± 0.004"),
        (1.31e-7, 2.2e-8, "1.3e-07 ± 2e-08"),
        (0.0, 0.0, "0 ± 0"),
        (0.08312, math.nan, "0.0831 (n = 1)"),
    ],
)
def test_prints_the_digits_the_error_deserves(value, stderr, text):
    assert str(Estimate(value=value, stderr=stderr, n=1 if math.isnan(stderr) else 9)) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_rounding_loses_less_than_the_error(value, error):
    assert abs(float(rounded(value, error)) - value) <= 0.51 * error + 1e-15


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_interval_is_students(n, level):
    low, high = Estimate(value=1.0, stderr=0.2, n=n).interval(level)
    assert (low, high) == pytest.approx(scipy.stats.t.interval(level, n - 1, loc=1.0, scale=0.2))


@pytest.mark.parametrize("estimate", [ratio_of_sums([1.0], [3]), ratio_of_sums([], []), ratio_of_sums([2.0], [0])])
def test_too_few_units_have_no_error_and_no_zero(estimate):
    assert estimate.n < 2
    assert math.isnan(estimate.stderr)
    assert all(math.isnan(end) for end in estimate.interval())
    assert math.isnan(estimate.value) == (estimate.n == 0)


def test_an_estimate_survives_strict_json():
    for estimate in (Estimate(value=0.1, stderr=1 / 3, n=4), ratio_of_sums([1.0], [3])):
        text = json.dumps(estimate.to_dict(), allow_nan=False)
        assert repr(Estimate.from_dict(json.loads(text))) == repr(estimate)


def test_ratio_of_equal_documents_is_the_mean_and_its_standard_error():
    sums = np.random.default_rng(0).normal(50, 9, 12)
    estimate = ratio_of_sums(sums, np.full(12, 500))
    assert estimate.value == pytest.approx(sums.mean() / 500)
    assert estimate.stderr == pytest.approx(scipy.stats.sem(sums) / 500)


@given(documents)
def test_ratio_of_sums_is_the_jackknife_written_out(pairs):
    sums, counts = np.array(pairs, dtype=float).T
    value, n = sums.sum() / counts.sum(), len(sums)
    without = [np.delete(sums, i).sum() / np.delete(counts, i).sum() for i in range(n)]
    expected = math.sqrt((n - 1) / n * sum((other - value) ** 2 for other in without))
    estimate = ratio_of_sums(sums, counts)
    assert estimate.value == pytest.approx(value)
    assert estimate.stderr == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(documents, st.randoms())
def test_neither_order_nor_documents_without_tokens_matter(pairs, random):
    shuffled = [*pairs, (7.0, 0)]
    random.shuffle(shuffled)
    before, after = ratio_of_sums(*zip(*pairs, strict=True)), ratio_of_sums(*zip(*shuffled, strict=True))
    assert after.n == before.n
    assert (after.value, after.stderr) == pytest.approx((before.value, before.stderr), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("sums", "counts"), [([1.0, 2.0], [1]), ([1.0], [-1]), ([[1.0]], [[1]])])
def test_ratio_of_sums_refuses_what_are_not_documents(sums, counts):
    with pytest.raises(ValueError, match="expected one of each"):
        ratio_of_sums(sums, counts)


@pytest.mark.parametrize("n", [12, 30])
def test_interval_of_a_measured_mean_covers(n):
    """4,000 studies of documents of 40 to 512 tokens, each document with its own level and noise on every token."""
    rng = np.random.default_rng(n)
    counts = rng.integers(40, 513, (4000, n))
    levels = 0.1 + 0.03 * rng.normal(size=counts.shape)
    sums = levels * counts + 0.1 * np.sqrt(counts) * rng.normal(size=counts.shape)
    ends = np.array([ratio_of_sums(*one).interval(0.95) for one in zip(sums, counts, strict=True)])
    coverage = np.mean((ends[:, 0] <= 0.1) & (ends[:, 1] >= 0.1))
    print(f"a 95 % interval of a mean over {n} documents covers {coverage:.1%}")
    assert 0.93 <= coverage <= 0.97


def clustered_line():
    rng = np.random.default_rng(3)
    runs = np.repeat(np.arange(7), rng.integers(3, 12, 7))
    design = np.stack([np.ones(len(runs)), rng.normal(size=len(runs))], axis=1)
    return runs, design, design @ [1.0, 2.0] + rng.normal(size=7)[runs] + 0.1 * rng.normal(size=len(runs))


def of_line(design, residuals, runs):
    curvatures = design[:, :, None] * design[:, None, :]
    return clustered_covariance(scores=design * residuals[:, None], curvatures=curvatures, clusters=runs)


def test_clustered_covariance_is_bell_and_mccaffreys():
    runs, design, y = clustered_line()
    residuals = y - design @ np.linalg.lstsq(design, y)[0]
    np.testing.assert_allclose(
        of_line(design, residuals, runs), sandwich.covariance(design, residuals, runs), rtol=1e-9
    )


def test_of_independent_points_it_is_right_on_average_however_much_one_cluster_decides():
    """The expectation is exact: it is linear in the products of residuals, and those of independent noise are known."""
    runs, design, _ = clustered_line()
    design = np.where((runs == 2)[:, None], [1.0, 9.0], 1) * design
    exact = np.linalg.inv(design.T @ design)
    left = np.eye(len(runs)) - design @ exact @ design.T
    expected = sum(of_line(design, left[:, point], runs) for point in range(len(runs)))
    np.testing.assert_allclose(expected, exact, rtol=1e-9)


@pytest.mark.parametrize("runs", [np.zeros(8), np.repeat([0, 1], 4)])
def test_no_covariance_when_leaving_a_cluster_out_leaves_nothing_to_solve(runs):
    design = np.stack([np.ones(8), np.repeat([0.0, 1.0], 4)], axis=1)
    scores = design * np.linspace(-1, 1, 8)[:, None]
    curvatures = design[:, :, None] * design[:, None, :]
    assert np.isnan(clustered_covariance(scores=scores, curvatures=curvatures, clusters=runs)).all()


@pytest.mark.parametrize("probability", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_the_risk_of_a_run_is_the_inverse_of_its_quantile(probability):
    law = Prediction(
        mean=np.array([0.1, 0.2]), stderr=np.array([0.01, 0.02]), scatter=np.array([0.01, 0.001]),
        dof=np.array([1.5, 9.0]), scatter_dof=30, extrapolates=False,
    )  # fmt: skip
    for i, limit in enumerate(law.run_quantile(probability)):
        assert law.probability_above(limit)[i] == pytest.approx(1 - probability, abs=1e-9)
    assert law.interval(0.8)[1][1] == pytest.approx(0.2 + scipy.stats.t.ppf(0.9, 9) * 0.02)


def test_the_interval_of_a_run_holds_that_of_the_law_and_is_each_parts_own_without_the_other():
    at = {"mean": 0.1, "dof": 1.2, "scatter_dof": 40, "extrapolates": False}
    both = Prediction(stderr=0.01, scatter=0.02, **at)
    assert both.run_quantile(0.05) < both.interval(0.9)[0] < both.interval(0.9)[1] < both.run_quantile(0.95)
    law, scatter = Prediction(stderr=0.01, scatter=0.0, **at), Prediction(stderr=0.0, scatter=0.02, **at)
    assert law.run_quantile(0.95) == pytest.approx(law.interval(0.9)[1])
    assert scatter.run_quantile(0.95) == pytest.approx(0.1 + scipy.stats.t.ppf(0.95, 40) * 0.02)
    margins = (each.run_quantile(0.95) - 0.1 for each in (law, scatter))
    assert both.run_quantile(0.95) - 0.1 == pytest.approx(math.hypot(*margins))


def one_way(rng, *, clusters, points, level, noise):
    member = np.repeat(np.arange(clusters), points)
    return level * rng.normal(size=clusters)[member] + noise * rng.normal(size=len(member)), member


def test_the_scatter_about_a_mean_is_the_one_way_analysis_of_variance():
    values, member = one_way(np.random.default_rng(0), clusters=6, points=4, level=1.0, noise=0.5)
    residuals = values - values.mean()
    found = scatter_about(residuals, fitted=np.ones(24), jacobian=np.ones((24, 1)), clusters=member)
    means = residuals.reshape(6, 4).mean(axis=1)
    among, within = 4 * means @ means / 5, np.sum((residuals.reshape(6, 4) - means[:, None]) ** 2) / 18
    assert found.sd**2 == pytest.approx(among / 4 + within * 3 / 4)
    assert found.power == 0
    assert 5 <= found.dof <= 23


def test_the_scatter_of_points_of_their_own_is_that_of_least_squares():
    rng = np.random.default_rng(1)
    jacobian = np.stack([np.ones(20), rng.normal(size=20)], axis=1)
    y = rng.normal(size=20)
    residuals = y - jacobian @ np.linalg.lstsq(jacobian, y, rcond=None)[0]
    found = scatter_about(residuals, fitted=np.ones(20), jacobian=jacobian, clusters=np.arange(20))
    assert (found.sd, found.dof) == (pytest.approx(math.sqrt(residuals @ residuals / 18)), 18)


def test_a_fit_that_takes_up_what_clusters_differ_by_leaves_the_scatter_what_it_is():
    """Six clusters, of which two constants follow the means: on average the variance of a new cluster's point."""
    rng, found = np.random.default_rng(2), []
    sizes = np.repeat(np.arange(6.0), 8)
    jacobian = np.stack([np.ones(48), sizes], axis=1)
    hat = jacobian @ np.linalg.pinv(jacobian)
    for _ in range(400):
        values, member = one_way(rng, clusters=6, points=8, level=1.0, noise=0.5)
        residuals = values - hat @ values
        found.append(scatter_about(residuals, fitted=np.ones(48), jacobian=jacobian, clusters=member).sd ** 2)
    assert np.mean(found) == pytest.approx(1.25, abs=3 * np.std(found) / 20)
    assert np.mean(found) == pytest.approx(1.25, rel=0.12)


@pytest.mark.parametrize(("power", "low", "high"), [(0.0, 0.0, 0.15), (1.0, 0.75, 1.15)])
def test_scatter_grows_with_the_law_where_it_does(power, low, high):
    rng, powers = np.random.default_rng(3), []
    fitted = np.tile(np.geomspace(0.01, 0.3, 12), 12)
    for _ in range(40):
        values, member = one_way(rng, clusters=12, points=12, level=0.08, noise=0.06)
        values = values * (fitted / 0.05) ** power
        found = scatter_about(values, fitted=fitted, jacobian=np.ones((144, 1)), clusters=member)
        powers.append(found.power)
    assert low <= np.mean(powers) <= high
    assert found.at(0.2) / found.at(0.1) == pytest.approx(2**found.power)
    assert found.at(1e-6) == pytest.approx(found.at(0.01))
    assert Scatter.from_dict(json.loads(json.dumps(as_dict(found)))) == found


@pytest.mark.parametrize("fitted", [np.full(24, 0.2), np.linspace(-1, 1, 24)])
def test_values_that_are_alike_or_not_positive_say_nothing_of_how_scatter_grows(fitted):
    residuals, member = one_way(np.random.default_rng(4), clusters=6, points=4, level=1.0, noise=0.5)
    found = scatter_about(residuals, fitted=fitted, jacobian=np.ones((24, 1)), clusters=member)
    assert found.power == 0
    assert found.at([1e-9, 1.0]).tolist() == [found.sd, found.sd]


@given(st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_scatter_is_in_the_unit_of_what_is_measured(factor, seed):
    rng = np.random.default_rng(seed)
    residuals, member = one_way(rng, clusters=5, points=6, level=1.0, noise=0.5)
    fitted, jacobian = rng.uniform(0.1, 0.4, size=30), rng.normal(size=(30, 2))
    one = scatter_about(residuals, fitted=fitted, jacobian=jacobian, clusters=member)
    other = scatter_about(
        factor * residuals, fitted=factor * fitted, jacobian=jacobian, clusters=member[::-1].max() - member
    )
    assert (other.sd, other.power) == (pytest.approx(factor * one.sd), one.power)


def test_a_scatter_is_surely_above_its_lower_bound():
    rng, above = np.random.default_rng(5), []
    for _ in range(400):
        values = rng.normal(size=9)
        residuals = values - values.mean()
        found = scatter_about(residuals, fitted=np.ones(9), jacobian=np.ones((9, 1)), clusters=np.arange(9))
        above.append(found.sd * found.surely(0.1) < 1)
    assert np.mean(above) == pytest.approx(0.9, abs=0.045)
    assert Scatter(sd=1.0, reference=1.0, power=0.0, least=0.0, dof=0.0).surely(0.1) == 0


def test_clusters_that_the_fit_follows_one_by_one_leave_no_degree_of_freedom():
    residuals = np.tile([0.1, -0.1], 2)
    jacobian = np.repeat(np.eye(2), 2, axis=0)
    assert scatter_about(residuals, fitted=np.ones(4), jacobian=jacobian, clusters=[0, 0, 1, 1]).dof == 0
    assert math.isnan(scatter_about(residuals, fitted=np.ones(4), jacobian=np.eye(4), clusters=[0, 0, 1, 1]).sd)


def test_degrees_of_freedom_of_a_sum_are_welchs():
    assert satterthwaite_dof((2.0, 4), (1.0, 9)) == pytest.approx(9 / (4 / 4 + 1 / 9))
    assert satterthwaite_dof((1.0, 5), (0.0, 2)) == pytest.approx(5)
    assert satterthwaite_dof((1.0, 5), (1.0, 0)) == 0
    assert satterthwaite_dof((np.array([1.0, 0.0]), 5), (np.array([0.0, 1.0]), 7)).tolist() == pytest.approx([5, 7])


def test_without_a_degree_of_freedom_a_prediction_has_no_interval_and_no_risk():
    law = Prediction(mean=0.1, stderr=math.nan, scatter=0.01, dof=0, scatter_dof=0, extrapolates=False)
    assert math.isnan(law.interval()[0])
    assert math.isnan(law.run_quantile(0.9))
    assert math.isnan(law.probability_above(0.2))


def test_what_a_group_has_in_common_is_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), 4)
    values = rng.normal(size=24) + rng.normal(size=6)[groups]
    values -= values.mean()
    share, chance = common_share(values, groups=groups, constants=1)
    expected = scipy.stats.f_oneway(*(values[groups == group] for group in range(6)))
    assert chance == pytest.approx(expected.pvalue)
    assert share == pytest.approx((expected.statistic - 1) / (expected.statistic + 3))


def test_what_a_group_has_in_common_is_found_on_average_and_unknown_without_repeats():
    rng, groups, shares, chances = np.random.default_rng(1), np.repeat(np.arange(40), 3), [], []
    for sd in (0.0, 1.0):
        for _ in range(200):
            values = rng.normal(size=120) + sd * rng.normal(size=40)[groups]
            share, chance = common_share(values, groups=groups, constants=0)
            (shares if sd else chances).append(share if sd else chance)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.mean(np.array(chances) < 0.1) == pytest.approx(0.1, abs=0.06)
    assert all(map(math.isnan, common_share(np.arange(3.0), groups=[1, 2, 3], constants=1)))
    assert all(map(math.isnan, common_share(np.arange(4.0), groups=[1, 1, 2, 2], constants=2)))
    assert common_share(np.array([1.0, 1.0, -1.0, -1.0]), groups=[1, 1, 2, 2], constants=1) == (1.0, 0.0)
