"""The laws of a study: which rows count, the truth recovered, and intervals that cover."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast.errors import ConfigError, FitError
from holdfast.formulas import GROWTH, GROWTH_IN_STEPS, LINE, MULTIPLICATIVE, STEPS
from holdfast.laws import FORGETTING, Laws, fit, fit_law, fit_orthogonal_line, points

QUIET = simulated.study()
NOISY = simulated.study(np.random.default_rng(0))
QUIET_POINTS = points(QUIET)


def changed(table, where, **columns):
    """A copy of the table with some columns set where the mask holds."""
    copy = table.copy()
    for column, value in columns.items():
        copy[column] = copy[column].astype(object) if isinstance(value, str | type(None)) else copy[column]
        copy.loc[where, column] = value
    return copy


def test_points_pair_target_and_retained_and_leave_out_the_first_steps():
    measured = points(NOISY)
    assert measured["steps"].min() > 50
    assert len(measured) == 18 * sum(50 < step <= 260 for step in NOISY["step"].unique())
    row = measured.iloc[7]
    source = NOISY[(NOISY["run"] == row["run"]) & (NOISY["step"] == row["steps"])].set_index("role")
    assert row["target_nll"] == source.loc["target", "nll"]
    assert row["kl_base_tuned"] == source.loc["retain", "kl_base_tuned"]
    assert row["corpus"] == "wikipedia"


def test_step_zero_is_left_out_whatever_the_fraction():
    assert points(NOISY, skip_fraction=0)["steps"].min() == 10


def test_the_order_of_rows_does_not_matter():
    shuffled = NOISY.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(points(shuffled), points(NOISY))
    assert fit(shuffled).to_dict() == fit(NOISY).to_dict()


@pytest.mark.parametrize("state", ["failed", "diverged", "in progress"])
def test_no_row_of_an_unfinished_run_is_used(state):
    bad = NOISY["run"].iloc[0]
    spoiled = changed(NOISY, NOISY["run"] == bad, state=state, nll=math.nan, kl_base_tuned=1e6)
    assert bad not in set(points(spoiled)["run"])
    laws = fit(spoiled)
    assert laws.n_runs == 17
    assert laws.to_dict()["joint"] == fit(NOISY[NOISY["run"] != bad]).to_dict()["joint"]
    assert any(bad in warning and state in warning for warning in laws.warnings)


def test_a_failed_run_may_be_a_single_empty_row():
    failed = dict.fromkeys(QUIET.columns, np.nan) | {"run": "dead", "state": "failed", "reason": "no memory"}
    laws = fit(pd.concat([QUIET, pd.DataFrame([failed])]))
    assert laws.n_runs == 18
    assert laws.warnings == ("not in any fit: dead (failed)",)


def test_several_retained_corpora_must_be_chosen_from_by_name():
    other = changed(NOISY[NOISY["role"] == "retain"], slice(None), corpus="code")
    both = pd.concat([NOISY, other])
    with pytest.raises(FitError, match=r"code, wikipedia.*corpus="):
        points(both)
    assert set(points(both, corpus="code")["corpus"]) == {"code"}
    with pytest.raises(FitError, match=r"'news'.*code, wikipedia"):
        points(both, corpus="news")


@pytest.mark.parametrize(("column", "names"), [("model", "llama, qwen"), ("target", "openorca, qwen")])
def test_mixed_models_or_targets_are_refused_by_name(column, names):
    with pytest.raises(FitError, match=names):
        fit(changed(NOISY, NOISY["r"] == 8, **{column: "qwen"}))


def test_a_table_without_anything_to_fit_is_refused():
    with pytest.raises(FitError, match="no finished run among 18"):
        points(changed(NOISY, slice(None), state="failed"))
    with pytest.raises(FitError, match="got none, expected exactly one corpus of role target"):
        points(NOISY[NOISY["role"] == "retain"])
    with pytest.raises(FitError, match="no step past the first 19%"):
        points(NOISY[NOISY["step"] < 50])
    with pytest.raises(ConfigError, match="skip_fraction"):
        points(NOISY, skip_fraction=1)


def test_a_number_that_is_not_one_is_refused_by_run_and_step():
    measured = points(NOISY)
    measured.loc[3, "kl_base_tuned"] = math.nan
    with pytest.raises(FitError, match=rf"kl_base_tuned nan.*run {measured['run'][3]}, step {measured['steps'][3]}"):
        fit_law(LINE, measured, "kl_base_tuned")


def test_too_few_points_are_refused():
    with pytest.raises(FitError, match="got 4 points, expected at least 5"):
        fit_law(MULTIPLICATIVE, points(NOISY).head(4), "kl_base_tuned")


@pytest.mark.parametrize("quantity", list(simulated.TRUTH))
def test_the_joint_law_is_recovered_without_noise(quantity):
    fitted = fit(QUIET).joint[quantity]
    asymptote, gap, x, y = simulated.TRUTH[quantity]
    found = {name: estimate.value for name, estimate in fitted.parameters.items()}
    middle = (fitted.reference["trainable_params"] / simulated.P0) ** -x * (
        fitted.reference["steps"] / simulated.N0
    ) ** -y
    assert found == pytest.approx({"asymptote": asymptote, "K": gap * middle, "x": x, "y": y}, rel=1e-5)
    assert fitted.law == "multiplicative"
    assert fitted.warnings == ()
    assert fitted.starts_agreeing > 0.5
    assert fitted.condition < 100


def noise_by_run(rng, measured, *, run_sd, checkpoint_sd):
    noise = np.empty(len(measured))
    for run in measured.groupby("run").indices.values():
        noise[run] = simulated.run_noise(rng, len(run), run_sd=run_sd, checkpoint_sd=checkpoint_sd)
    return noise


def line_points(rng, *, noise):
    """Points about forgetting = 2.0481 - 1.7334 loss, the paper's OpenOrca line, with noise on both axes."""
    sizes = {"run_sd": 0.8 * noise, "checkpoint_sd": 0.6 * noise}
    loss = QUIET_POINTS["target_nll"]
    return QUIET_POINTS.assign(
        target_nll=loss + noise_by_run(rng, QUIET_POINTS, **sizes),
        kl_base_tuned=2.0481 - 1.7334 * loss + noise_by_run(rng, QUIET_POINTS, **sizes),
    )


def ordinary(measured):
    return fit_law(LINE, measured, "kl_base_tuned", huber=math.inf)


def orthogonal(measured):
    return fit_orthogonal_line(measured, "kl_base_tuned")


def test_both_lines_are_recovered_without_noise():
    measured = line_points(np.random.default_rng(0), noise=0.0)
    for fitted in (ordinary(measured), orthogonal(measured)):
        assert fitted.parameters["slope"].value == pytest.approx(1.7334, rel=1e-9)
        assert fitted.parameters["intercept"].value == pytest.approx(2.0481, rel=1e-9)
        assert fitted.predict(target_nll=0.7).mean == pytest.approx(2.0481 - 1.7334 * 0.7)


def test_the_ordinary_line_is_numpys_and_the_joint_law_its_formula():
    measured, laws = points(NOISY), fit(NOISY)
    slope, intercept = np.polyfit(measured["target_nll"], measured["kl_base_tuned"], 1)
    line = laws.lines["kl_base_tuned"]
    assert (line.parameters["slope"].value, line.parameters["intercept"].value) == pytest.approx((-slope, intercept))
    assert line.r2 == pytest.approx(np.corrcoef(measured["target_nll"], measured["kl_base_tuned"])[0, 1] ** 2)
    joint = laws.joint["kl_base_tuned"]
    value = {name: estimate.value for name, estimate in joint.parameters.items()}
    by_hand = (
        value["asymptote"]
        + value["K"]
        * (3e8 / joint.reference["trainable_params"]) ** -value["x"]
        * (200 / joint.reference["steps"]) ** -value["y"]
    )
    assert joint.predict(trainable_params=3e8, steps=200).mean == pytest.approx(by_hand)


@pytest.mark.parametrize("estimator", [ordinary, orthogonal])
def test_the_interval_of_the_price_covers(estimator):
    """Noise in the loss flattens the ordinary line: its interval covers the flatter slope, the orthogonal the true."""
    rng, slopes = np.random.default_rng(2), []
    for _ in range(400):
        slope = estimator(line_points(rng, noise=0.004)).parameters["slope"]
        slopes.append((slope.value, *slope.interval(0.9)))
    value, low, high = np.transpose(slopes)
    aim = 1.7334 if estimator is orthogonal else value.mean()
    coverage = np.mean((low <= aim) & (aim <= high))
    print(f"{estimator.__name__}: mean slope {value.mean():.3f}, 90 % intervals cover {coverage:.1%}")
    assert 0.85 <= coverage <= 0.95
    assert value.mean() == pytest.approx(1.7334, rel=0.01) if estimator is orthogonal else value.mean() < 1.72


def test_checkpoints_of_a_run_are_one_sample():
    """Measuring every run ten times at each step adds points and no evidence."""
    once = points(NOISY)
    often = pd.concat([once] * 10, ignore_index=True)
    few, many = (fit_law(MULTIPLICATIVE, table, "kl_base_tuned") for table in (once, often))
    assert many.parameters["y"].stderr == pytest.approx(few.parameters["y"].stderr, rel=1e-6)
    assert many.dof == few.dof == 17


def test_predictions_broadcast_and_know_where_the_study_ends():
    fitted = fit(NOISY).joint["kl_base_tuned"]
    prediction = fitted.predict(
        trainable_params=np.array([[8], [512]]) * simulated.PARAMS_PER_RANK, steps=[60, 200, 261]
    )
    assert prediction.mean.shape == prediction.stderr.shape == (2, 3)
    assert prediction.extrapolates.tolist() == [[False, False, True], [True, True, True]]
    one = fitted.predict(trainable_params=8 * simulated.PARAMS_PER_RANK, steps=200)
    assert one.extrapolates is False
    assert one.mean == pytest.approx(prediction.mean[0, 1])
    assert json.dumps(one.to_dict(), allow_nan=False)


@pytest.mark.parametrize("inputs", [{"target_nll": 1.0}, {"steps": 5}, {"steps": 0, "trainable_params": 1e6}])
def test_inputs_the_law_does_not_know_are_refused(inputs):
    with pytest.raises(ConfigError, match="multiplicative law"):
        fit(NOISY).joint["kl_base_tuned"].predict(**inputs)


def test_one_rank_gives_laws_in_steps_alone_and_says_so():
    laws = fit(simulated.study(np.random.default_rng(2), ranks=(8,)))
    joint = laws.joint["kl_base_tuned"]
    assert joint.law == STEPS.name
    assert set(joint.parameters) == {"asymptote", "K", "y"}
    assert any("only r = 8" in warning for warning in laws.warnings)
    assert joint.predict(trainable_params=8 * simulated.PARAMS_PER_RANK, steps=100).extrapolates is False
    assert joint.predict(trainable_params=16 * simulated.PARAMS_PER_RANK, steps=100).extrapolates is True


def with_forgetting(values):
    noise = 0.003 * np.random.default_rng(6).normal(size=len(QUIET_POINTS))
    return QUIET_POINTS.assign(kl_base_tuned=values(QUIET_POINTS) + noise)


def test_a_rank_that_matters_the_wrong_way_stops_at_its_bound():
    measured = with_forgetting(lambda p: 0.7 - 0.1 * (p["trainable_params"] / 1e8) ** 0.1 * (p["steps"] / 114) ** -0.5)
    fitted = fit_law(MULTIPLICATIVE, measured, "kl_base_tuned")
    assert fitted.parameters["x"].value == 0.0
    assert math.isnan(fitted.parameters["x"].stderr)
    assert any("x is not identified: it stopped at its bound, 0" in warning for warning in fitted.warnings)
    assert fitted.predict(trainable_params=1e8, steps=100).stderr > 0


def test_an_asymptote_that_could_be_anything_has_no_interval():
    """Three short and noisy runs: bounds hold the exponents, and nothing the two that enter linearly."""
    withheld = []
    for seed in range(8):
        few = simulated.study(
            np.random.default_rng(seed), ranks=(8, 32, 128), seeds=(0,), run_sd=0.03, checkpoint_sd=0.03, total_steps=60
        )
        measured = points(few)
        fitted = fit_law(MULTIPLICATIVE, measured, "kl_base_tuned")
        for name in ("asymptote", "K"):
            low, high = fitted.parameters[name].interval(0.9)
            assert math.isnan(low) or high - low <= 2 * measured["kl_base_tuned"].abs().max()
            why = f"kl_base_tuned: {name} is not identified: its 90 % interval is wider than 2 times all that was"
            withheld += [name for warning in fitted.warnings if warning.startswith(why) and math.isnan(low)]
    assert {"asymptote", "K"} == set(withheld)
    every = fit_law(MULTIPLICATIVE, QUIET_POINTS, "target_nll")
    assert np.isfinite(every.parameters["asymptote"].stderr)


def test_growth_without_an_end_has_no_asymptote():
    measured = with_forgetting(
        lambda p: 0.1 + 0.1 * np.log(p["steps"] / 50) + 0.01 * np.log(p["trainable_params"] / 1e8)
    )
    fitted = fit_law(MULTIPLICATIVE, measured, "kl_base_tuned")
    named = {name for name in fitted.parameters if any(f": {name} is not identified" in w for w in fitted.warnings)}
    assert {"asymptote", "K"} <= named
    assert all(math.isnan(fitted.parameters[name].stderr) for name in named)
    expected = 0.1 + 0.1 * np.log(2)
    assert fitted.predict(trainable_params=1e8, steps=100).mean == pytest.approx(expected, abs=0.005)


def grown_table():
    """NOISY with forgetting as of a short run: from nothing, nearly in proportion to the steps."""
    table = NOISY.copy()
    middle = table["r"] * simulated.PARAMS_PER_RANK / 1.13e8
    growth = 0.05 * middle**0.2 * (table["step"] / 114) ** 0.9
    return table.assign(kl_base_tuned=growth * (1 + 0.01 * np.sin(np.arange(len(table)))))


def test_forgetting_that_has_not_flattened_is_fitted_by_growth():
    laws = fit(grown_table())
    grown = laws.joint["kl_base_tuned"]
    assert grown.law == GROWTH.name
    assert grown.r2 > 0.995
    assert grown.parameters["y"].value == pytest.approx(0.9, abs=0.05)
    assert grown.parameters["x"].value == pytest.approx(0.2, abs=0.02)
    assert grown.parameters["start"].value == pytest.approx(0, abs=0.005)
    assert any(warning.startswith("kl_base_tuned has not begun to flatten") for warning in laws.warnings)
    assert any("bend away from the line" in warning for warning in laws.lines["kl_base_tuned"].warnings)
    assert laws.joint["target_nll"].law == MULTIPLICATIVE.name
    assert laws.joint["hard_cross_entropy"].law == MULTIPLICATIVE.name
    one_rank = fit(grown_table().query("r == 8"))
    assert one_rank.joint["kl_base_tuned"].law == GROWTH_IN_STEPS.name
    assert Laws.from_dict(laws.to_dict()).joint["kl_base_tuned"].predict(
        trainable_params=1e8, steps=100
    ) == grown.predict(trainable_params=1e8, steps=100)


def test_noise_alone_has_no_exponents():
    fitted = fit_law(MULTIPLICATIVE, with_forgetting(lambda p: 0 * p["steps"] + 0.1), "kl_base_tuned")
    assert math.isnan(fitted.parameters["x"].stderr)
    assert math.isnan(fitted.parameters["y"].stderr)
    assert fitted.predict(trainable_params=1e8, steps=100).mean == pytest.approx(0.1, abs=0.005)


def test_one_measured_step_says_nothing_of_steps():
    measured = points(NOISY)
    fitted = fit_law(MULTIPLICATIVE, measured[measured["steps"] == 260], "kl_base_tuned")
    assert math.isnan(fitted.parameters["y"].stderr)
    assert any("y is not identified: moving it changes nothing" in warning for warning in fitted.warnings)
    assert math.isnan(fitted.condition)


def test_rank_and_steps_that_grow_together_cannot_be_told_apart():
    """Each rank measured at one step only, in proportion: any split of the exponent between the two fits alike."""
    rng = np.random.default_rng(8)
    rows = [{"run": f"{r}-{s}", "corpus": "w", "trainable_params": 1e6 * r, "steps": 10 * r} for r in (4, 8, 16, 32, 64)
            for s in range(3)]  # fmt: skip
    measured = pd.DataFrame(rows)
    measured["kl_base_tuned"] = 0.7 - 0.2 * (measured["steps"] / 100) ** -0.6 + 0.003 * rng.normal(size=15)
    fitted = fit_law(MULTIPLICATIVE, measured, "kl_base_tuned")
    assert math.isnan(fitted.parameters["x"].stderr)
    assert math.isnan(fitted.parameters["y"].stderr)
    assert fitted.parameters["x"].value + fitted.parameters["y"].value == pytest.approx(0.6, abs=0.1)
    assert fitted.predict(trainable_params=16e6, steps=160).mean == pytest.approx(0.7 - 0.2 * 1.6**-0.6, abs=0.005)


@pytest.mark.parametrize(
    ("column", "value", "own"),
    [
        ("method", "dora", "method lora"),
        ("learning_rate", 1e-3, "learning_rate 5e-05"),
        ("batch_tokens", 512, "batch_tokens 16384"),
        ("adapter", '{"target_modules":"attention"}', "adapter none"),
    ],
)
def test_laws_are_of_the_commonest_way_of_training_and_say_so(column, value, own):
    """One run of another way, which forgets ten times as much: the laws are those without it."""
    known = NOISY.assign(adapter="{}")
    one = known["run"] == known["run"].iloc[0]
    mixed = changed(known, one, **{column: value, "kl_base_tuned": 10 * known["kl_base_tuned"]})
    laws, without = fit(mixed), fit(known[~one])
    assert laws.runs == without.runs
    assert laws.lines["kl_base_tuned"] == without.lines["kl_base_tuned"]
    assert laws.tokens_per_step == 16384
    said = f"1 of 18 finished runs is trained in another way and in no law (these are of {own}): choose by --only"
    assert laws.warnings == (said,)
    assert fit(mixed.iloc[::-1]).runs == laws.runs


def test_of_ways_with_as_many_runs_the_laws_are_of_the_same_one_in_any_order():
    mixed = changed(NOISY, NOISY["seed"] == 0, learning_rate=1e-3)
    both = mixed[mixed["seed"] < 2]
    (first,) = {fit(rows).runs for rows in (both, both.iloc[::-1])}
    assert len(first) == 6
    assert len({run[6:] for run in first}) == 1


def test_what_one_way_pools_is_told():
    laws = fit(changed(NOISY, NOISY["seed"] == 0, dtype="bfloat16"))
    assert laws.n_runs == 18
    assert laws.warnings == ("runs that differ in dtype are pooled: bfloat16, float32",)
    (said,) = fit(NOISY.assign(schedule="cosine")).warnings
    assert said.startswith("the learning rate is not constant")


def test_a_study_is_described():
    laws = fit(NOISY)
    assert (laws.model, laws.target, laws.corpus, laws.method) == ("llama", "openorca", "wikipedia", "lora")
    assert laws.ranks == simulated.RANKS
    assert laws.params_per_rank == simulated.PARAMS_PER_RANK
    assert laws.tokens_per_step == 16384
    assert laws.n_runs == 18
    assert laws.warnings == ()
    assert set(laws.lines) == set(laws.orthogonal) == set(FORGETTING)
    assert set(laws.joint) == {"target_nll", *FORGETTING}
    biased = NOISY["trainable_params"] + 1000
    assert fit(NOISY.assign(trainable_params=biased)).params_per_rank is None


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
@pytest.mark.parametrize("ranks", [simulated.RANKS, (8, 64), (8,)])
def test_laws_survive_strict_json_exactly(ranks, seeds):
    laws = fit(simulated.study(np.random.default_rng(7), ranks=ranks, seeds=seeds))
    text = json.dumps(laws.to_dict(), allow_nan=False)
    again = Laws.from_dict(json.loads(text))
    assert repr(again) == repr(laws)
    at = {"trainable_params": 8 * simulated.PARAMS_PER_RANK, "steps": 100}
    assert repr(again.joint["target_nll"].predict(**at)) == repr(laws.joint["target_nll"].predict(**at))
