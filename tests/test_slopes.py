"""The price of learning examined: against SciPy and the jackknife written out, and by simulation where it must hold."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sandwich
import simulated
from holdfast.errors import FitError
from holdfast.laws import points
from holdfast.slopes import prices, slope_equality, slope_table

KL = "kl_base_tuned"
STEPS = np.unique(np.rint(np.geomspace(55, 260, 10))).astype(int)


def fading(rng, shape, *, memory=0.7):
    """Noise of size 1 that fades along the last axis, as from checkpoint to checkpoint of a run."""
    noise = rng.normal(size=shape)
    for i in range(1, shape[-1]):
        noise[..., i] = memory * noise[..., i - 1] + math.sqrt(1 - memory**2) * noise[..., i]
    return noise


def runs_at(levels, *, column="r"):
    """A table of points of one run per entry of `levels`, losses as in a real study, without forgetting yet."""
    rows = []
    for i, level in enumerate(levels):
        at = {"r": 8, "method": "lora", "learning_rate": 5e-5, "target": "openorca", "corpus": "wikipedia"}
        at |= {column: level, "run": f"run{i:02d}"}
        loss = simulated.truth("target_nll", trainable_params=8 * simulated.PARAMS_PER_RANK, steps=STEPS)
        rows += [at | {"steps": n, "target_nll": x} for n, x in zip(STEPS, loss - 0.002 * i, strict=True)]
    return pd.DataFrame(rows)


def forgetting(rng, table, slopes, *, slope_sd=0.03, run_sd=0.004, checkpoint_sd=0.002, studies=1):
    """Forgetting of many studies, (studies, n): each run with its own slope about its level's, offset and noise."""
    shape = (studies, len(slopes), len(STEPS))
    own = np.asarray(slopes) + slope_sd * rng.normal(size=shape[:2])
    loss = table["target_nll"].to_numpy().reshape(1, *shape[1:])
    level = 2.0 - own[..., None] * (loss - loss.mean()) + run_sd * rng.normal(size=shape[:2])[..., None]
    return (level + checkpoint_sd * fading(rng, shape)).reshape(studies, -1)


def study(rng, levels, slopes, *, column="r", **noise):
    table = runs_at(levels, column=column)
    return table.assign(kl_base_tuned=forgetting(rng, table, slopes, **noise)[0])


def rejections(levels, slopes, *, column="r", studies=600, seed=0, **noise):
    table = runs_at(levels, column=column)
    drawn = forgetting(np.random.default_rng(seed), table, slopes, studies=studies, **noise)
    tests = [slope_equality(table.assign(kl_base_tuned=values), KL, by=column) for values in drawn]
    return np.mean([test.differs for test in tests])


def grouped(*counts):
    return np.repeat([8 * 2**i for i in range(len(counts))], counts)


EQUAL = {
    "6 runs, 2 of each": grouped(2, 2, 2),
    "6 runs, 4 and 2": grouped(4, 2),
    "6 runs, 3, 2, 1": grouped(3, 2, 1),
    "6 runs, one of each": grouped(1, 1, 1, 1, 1, 1),
    "12 runs, 2 of each": grouped(2, 2, 2, 2, 2, 2),
    "12 runs, 6, 4, 2": grouped(6, 4, 2),
    "18 runs, 3 of each": grouped(3, 3, 3, 3, 3, 3),
    "18 runs, 9, 5, 2, 2": grouped(9, 5, 2, 2),
}


@pytest.mark.parametrize("design", EQUAL)
def test_equal_prices_are_said_to_differ_one_time_in_twenty(design):
    levels = EQUAL[design]
    size = rejections(levels, [1.7] * len(levels))
    print(f"{design}: {size:.1%}")
    assert 0.03 <= size <= 0.075


@pytest.mark.parametrize(
    ("design", "power"),
    [
        ("6 runs, 2 of each", 0.55),
        ("6 runs, one of each", 0.7),
        ("12 runs, 2 of each", 0.65),
        ("18 runs, 3 of each", 0.95),
    ],
)
def test_prices_that_differ_are_found(design, power):
    """The highest price 0.2 above the lowest, 1.6 to 1.8, where measured slopes of like runs scatter by 0.05."""
    levels = EQUAL[design]
    log = np.log(levels / levels[0])
    found = rejections(levels, 1.6 + 0.2 * log / log.max(), studies=400, seed=1)
    print(f"{design}: {found:.1%}")
    assert found >= power


def test_unequal_numbers_of_unequal_scatter_are_survived():
    """Levels of two runs that scatter three times as much as one of nine: plain F finds differences everywhere."""
    levels, slope_sd = EQUAL["18 runs, 9, 5, 2, 2"], np.repeat([0.06, 0.09, 0.18, 0.18], [9, 5, 2, 2])
    table = runs_at(levels)
    drawn = forgetting(np.random.default_rng(17), table, [1.7] * 18, slope_sd=slope_sd, studies=600)
    ours, plain = [], []
    for values in drawn:
        study_ = table.assign(kl_base_tuned=values)
        ours.append(slope_equality(study_, KL, by="r").p < 0.05)
        slopes = np.array([slope.value for slope in slope_table(study_, KL).values()])
        plain.append(stats.f_oneway(*(slopes[levels == r] for r in sorted(set(levels)))).pvalue < 0.05)
    print(f"unequal scatter: ours {np.mean(ours):.1%}, plain F {np.mean(plain):.1%}")
    assert np.mean(ours) <= 0.1
    assert np.mean(plain) >= 0.15


def test_equal_numbers_survive_unequal_scatter_and_welchs_test_does_not_survive_few_runs():
    levels = EQUAL["18 runs, 3 of each"]
    size = rejections(levels, [1.7] * 18, slope_sd=np.repeat(np.geomspace(0.06, 0.18, 6), 3))
    few = np.random.default_rng(19).normal(size=(6, 2, 20_000))
    welch = np.mean(stats.f_oneway(*few, equal_var=False).pvalue < 0.05)
    print(f"equal numbers, unequal scatter: {size:.1%}; Welch, six levels of two, equal scatter: {welch:.1%}")
    assert 0.03 <= size <= 0.09
    assert welch > 0.1


def test_two_levels_of_unequal_numbers_are_welchs_t():
    table = study(np.random.default_rng(18), grouped(4, 2), [1.7] * 6)
    slopes = [slope.value for slope in slope_table(table, KL).values()]
    reference = stats.ttest_ind(slopes[:4], slopes[4:], equal_var=False)
    test = slope_equality(table, KL, by="r")
    assert (test.statistic, test.p) == (pytest.approx(reference.statistic**2), pytest.approx(reference.pvalue))
    assert test.dof == (1, pytest.approx(reference.df))
    assert "Brown and Forsythe" in test.how
    own = stats.t.interval(0.9, 3, loc=np.mean(slopes[:4]), scale=stats.sem(slopes[:4]))
    assert (test.levels[0].low, test.levels[0].high) == pytest.approx(own)


def test_the_one_way_test_is_scipys():
    table = study(np.random.default_rng(2), grouped(5, 3, 2, 1, 1), [1.7] * 12)
    test, slopes = slope_equality(table, KL, by="r"), slope_table(table, KL)
    level = table.groupby("run")["r"].first()
    groups = [[slopes[run].value for run in level.index[level == r]] for r in sorted(set(level))]
    statistic, p = stats.f_oneway(*groups)
    assert (test.statistic, test.p, test.dof) == (pytest.approx(statistic), pytest.approx(p), (4, 7))
    assert [level.slope for level in test.levels] == pytest.approx([np.mean(group) for group in groups])
    assert [level.n_runs for level in test.levels] == [5, 3, 2, 1, 1]
    pooled = math.sqrt(sum(np.var(group) * len(group) for group in groups) / 7)
    first = test.levels[0]
    assert first.high - first.low == pytest.approx(2 * stats.t.ppf(0.95, 7) * pooled / math.sqrt(5))


def test_the_trend_test_is_scipys():
    rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    table = study(np.random.default_rng(3), rates, [1.7] * 5, column="learning_rate")
    test = slope_equality(table, KL, by="learning_rate")
    line = stats.linregress(np.log(rates), [slope.value for slope in slope_table(table, KL).values()])
    assert (test.statistic, test.p) == (pytest.approx(line.slope / line.stderr), pytest.approx(line.pvalue))
    assert test.dof == (3,)
    assert "trend" in test.how


def test_a_runs_slope_is_scipys_line():
    table = study(np.random.default_rng(4), [8, 16, 32], [1.5, 1.6, 1.7])
    slopes = slope_table(table, KL)
    assert list(slopes) == ["run00", "run01", "run02"]
    for run, slope in slopes.items():
        points_ = table[table["run"] == run]
        line = stats.linregress(points_["target_nll"], points_[KL])
        assert (slope.value, slope.stderr, slope.n) == (
            pytest.approx(-line.slope), pytest.approx(line.stderr), len(points_) - 1,
        )  # fmt: skip


def test_known_slopes_are_found_exactly_without_noise():
    quiet = {"slope_sd": 0.0, "run_sd": 0.0, "checkpoint_sd": 0.0}
    same = study(np.random.default_rng(5), grouped(2, 2, 2), [1.7] * 6, **quiet)
    assert [slope.value for slope in slope_table(same, KL).values()] == pytest.approx([1.7] * 6, rel=1e-9)
    assert slope_equality(same, KL, by="r").p == 1
    apart = study(np.random.default_rng(5), grouped(2, 2, 2), [1.6, 1.6, 1.7, 1.7, 1.8, 1.8], **quiet)
    assert slope_equality(apart, KL, by="r").p < 1e-9


def test_prices_and_their_errors_are_those_of_both_lines_at_once():
    table = study(np.random.default_rng(6), grouped(3, 2, 1), [1.7] * 6, run_sd=0.01)
    table["target_nll"] += 0.002 * np.random.default_rng(7).normal(size=len(table))
    found, zeros = prices(table, KL), np.zeros(len(table))
    about = table[["target_nll", KL]] - table.groupby("run")[["target_nll", KL]].transform("mean")
    ordinary = np.column_stack([-table["target_nll"], np.ones(len(table)), zeros])
    within = np.column_stack([zeros, zeros, -about["target_nll"]])
    design, y = np.concatenate([ordinary, within]), np.concatenate([table[KL], about[KL]])
    both = np.linalg.lstsq(design, y)[0]
    error = sandwich.covariance(design, y - design @ both, np.tile(table["run"].to_numpy(str), 2))
    for estimate, of in (
        (found.ordinary, [1, 0, 0]), (found.within_run, [0, 0, 1]), (found.difference, [-1, 0, 1]),
    ):  # fmt: skip
        assert estimate.value == pytest.approx(of @ both)
        assert estimate.n == 6
        assert estimate.stderr == pytest.approx(math.sqrt(of @ error @ of), rel=1e-6)
    assert found.orthogonal.value > found.ordinary.value
    assert (found.n_points, found.n_runs) == (len(table), 6)


def test_the_interval_of_the_within_run_price_covers():
    table, covered = runs_at(grouped(*[2] * 6)), []
    for values in forgetting(np.random.default_rng(8), table, [1.7] * 12, studies=300):
        low, high = prices(table.assign(kl_base_tuned=values), KL).within_run.interval(0.9)
        covered.append(low <= 1.7 <= high)
    print(f"90 % intervals of the within-run price cover {np.mean(covered):.1%}")
    assert 0.85 <= np.mean(covered) <= 0.95


def test_runs_that_differ_at_equal_loss_have_two_prices():
    table = study(np.random.default_rng(9), grouped(2, 2, 2), [1.7] * 6)
    assert prices(table, KL).warnings == ()
    assert "1.7" in str(prices(table, KL))
    lower = table["r"].map({8: 0.0, 16: 0.02, 32: 0.04})
    apart = prices(table.assign(target_nll=table["target_nll"] - lower), KL)
    assert apart.within_run.value == pytest.approx(1.7, abs=0.05)
    assert apart.ordinary.value < 1.6
    assert any(
        warning.startswith("runs differ at equal loss: within a run a nat learned") for warning in apart.warnings
    )
    assert "Note: runs differ at equal loss" in str(apart)
    assert json.dumps(apart.to_dict(), allow_nan=False)


def test_one_run_has_a_price_and_no_interval():
    found = prices(study(np.random.default_rng(10), [8], [1.7]), KL)
    assert found.within_run.value == pytest.approx(found.ordinary.value)
    assert math.isnan(found.within_run.stderr)
    assert math.isnan(found.difference.stderr)
    assert "one run gives no interval: add a rank or a seed" in found.warnings


@pytest.mark.parametrize(
    ("column", "levels", "reason"),
    [
        ("r", [8, 8, 8], "all runs have r = 8"),
        ("method", ["dora", "ia3", "lora"], "one run for each method does not say how runs alike in it differ"),
        ("target", ["news", "openorca"], "one run for each what is learned"),
        ("r", [8, 16], "a trend fits two runs always"),
        ("learning_rate", [0.0, 1e-4, 1e-3], "no trend in the logarithm of 0"),
    ],
)
def test_what_few_runs_cannot_tell_is_not_tested(column, levels, reason):
    test = slope_equality(study(np.random.default_rng(11), levels, [1.7] * len(levels), column=column), KL, by=column)
    assert not test.testable
    assert not test.differs
    assert reason in test.how
    assert "is not testable" in str(test)
    assert all(math.isnan(value) for value in (test.statistic, test.p, test.levels[0].low))
    assert len(test.levels) == len(set(levels))
    assert test.levels[0].slope == pytest.approx(1.7, abs=0.2)
    assert json.dumps(test.to_dict(), allow_nan=False)


def test_the_verdict_reads():
    rng = np.random.default_rng(12)
    same = slope_equality(study(rng, grouped(2, 2, 2), [1.7] * 6), KL, by="r")
    assert str(same).startswith("The price does not differ by rank as far as 6 runs can tell (p = 0.")
    slopes = [1.2, 1.2, 1.2, 1.9, 1.9, 1.9]
    apart = study(rng, ["ia3"] * 3 + ["lora"] * 3, slopes, column="method")
    test = slope_equality(apart, KL, by="method")
    assert test.differs
    print(same, test, sep="\n")
    assert str(test).startswith("The price differs by method (p < 0.001, 6 runs): 1.")
    assert " at method ia3 to 1." in str(test)
    assert str(test).endswith(" at method lora.")
    assert json.loads(json.dumps(test.to_dict(), allow_nan=False))["levels"][0]["level"] == "ia3"


def test_the_order_of_rows_does_not_matter():
    table = study(np.random.default_rng(13), grouped(3, 2, 1), [1.7] * 6)
    shuffled = table.sample(frac=1, random_state=0)
    a, b = (slope_equality(t, KL, by="r") for t in (table, shuffled))
    assert (a.p, a.statistic) == pytest.approx((b.p, b.statistic))
    assert [level.level for level in a.levels] == [level.level for level in b.levels] == [8, 16, 32]


def test_a_run_without_a_slope_is_left_out_by_name():
    table = study(np.random.default_rng(14), grouped(3, 2, 2), [1.7] * 7)
    table.loc[table["run"] == "run03", "target_nll"] = 0.7
    slope = slope_table(table, KL)["run03"]
    assert math.isnan(slope.value)
    test = slope_equality(table, KL, by="r")
    assert test.n_runs == 6
    assert test.warnings[0] == "no slope, for the target loss does not vary: run03"
    assert test.warnings[1].startswith(
        "with unequal numbers of runs, one among them, slopes are taken to scatter alike"
    )
    assert test.statistic == pytest.approx(slope_equality(table[table["run"] != "run03"], KL, by="r").statistic)
    assert np.isfinite(prices(table, KL).within_run.value)
    with pytest.raises(FitError, match="no run whose target_nll varies"):
        prices(table.assign(target_nll=0.7), KL)


def test_a_table_that_cannot_be_asked_is_refused():
    table = study(np.random.default_rng(15), grouped(2, 2, 2), [1.7] * 6)
    with pytest.raises(FitError, match="got by='size', expected a column, one of r, method"):
        slope_equality(table, KL, by="size")
    with pytest.raises(FitError, match=r"got steps 55 and .* in run run00, expected one for each run"):
        slope_equality(table, KL, by="steps")
    with pytest.raises(FitError, match="got code, wikipedia, expected exactly one corpus"):
        slope_table(pd.concat([table, table.assign(corpus="code")]), KL)
    with pytest.raises(FitError, match="got target_nll nan, expected a finite number, at run run00, step 55"):
        slope_table(table.assign(target_nll=math.nan), KL)


def test_the_points_of_a_simulated_study_have_one_price_per_rank():
    measured = points(simulated.study(np.random.default_rng(16)))
    test = slope_equality(measured, KL, by="r")
    assert test.dof == (5, 12)
    assert test.n_runs == 18
    assert [level.level for level in test.levels] == list(simulated.RANKS)
