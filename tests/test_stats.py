"""Numbers with uncertainty: against explicit leave-one-out, SciPy, and simulated studies."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from holdfast.stats import Estimate, Prediction, clustered_covariance, common_share, ratio_of_sums, rounded

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


def solved(design, y):
    return np.linalg.lstsq(design, y)[0]


def test_clustered_covariance_is_the_jackknife_over_clusters_written_out():
    runs, design, y = clustered_line()
    beta = solved(design, y)
    moves = np.array([solved(design[runs != run], y[runs != run]) - beta for run in range(7)])
    covariance = clustered_covariance(
        scores=design * (y - design @ beta)[:, None],
        curvatures=design[:, :, None] * design[:, None, :],
        clusters=runs,
    )
    np.testing.assert_allclose(covariance, 6 / 7 * moves.T @ moves, rtol=1e-9)


@pytest.mark.parametrize("runs", [np.zeros(8), np.repeat([0, 1], 4)])
def test_no_covariance_when_leaving_a_cluster_out_leaves_nothing_to_solve(runs):
    design = np.stack([np.ones(8), np.repeat([0.0, 1.0], 4)], axis=1)
    scores = design * np.linspace(-1, 1, 8)[:, None]
    curvatures = design[:, :, None] * design[:, None, :]
    assert np.isnan(clustered_covariance(scores=scores, curvatures=curvatures, clusters=runs)).all()


def test_the_risk_of_a_run_is_the_inverse_of_its_quantile_and_wider_than_the_law():
    law = Prediction(mean=np.array([0.1, 0.2]), stderr=np.array([0.01, 0.02]), scatter=0.01, dof=5, extrapolates=False)
    limit = law.run_quantile(0.9)[1]
    assert law.probability_above(limit)[1] == pytest.approx(0.1)
    assert limit > law.interval(0.8)[1][1]
    assert law.interval(0.8)[1][1] == pytest.approx(0.2 + scipy.stats.t.ppf(0.9, 5) * 0.02)


def test_without_a_degree_of_freedom_a_prediction_has_no_interval_and_no_risk():
    law = Prediction(mean=0.1, stderr=math.nan, scatter=0.01, dof=0, extrapolates=False)
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
