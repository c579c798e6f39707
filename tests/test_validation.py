"""Laws held to what they have not seen: exact where the truth is the law, found out where it is not, and no leaks."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import simulated
from holdfast.errors import ConfigError, FitError
from holdfast.formulas import GROWTH, LINE, MULTIPLICATIVE, STEPS
from holdfast.laws import FORGETTING, fit, points
from holdfast.validation import HeldOut, validate

QUIET = simulated.study(seeds=(0,))
NOISY = simulated.study(np.random.default_rng(0), seeds=(0, 1))
RANK, STEPS_LEFT = "largest rank (r = 256)", "last 30 % of steps"


def mixed_study(rng):
    """Two methods and two learning rates, crossed over five seeds of three ranks: two of them LoRA's at 5e-5."""
    table = simulated.study(rng, ranks=(8, 32, 128), seeds=(0, 1, 2, 3, 4))
    return table.assign(
        method=np.where(table["seed"] % 2, "ia3", "lora"),
        learning_rate=np.where(table["seed"].isin((2, 3)), 2e-4, 5e-5),
    )


MIXED = mixed_study(np.random.default_rng(1))


@pytest.fixture(scope="module")
def noisy():
    return validate(NOISY)


@pytest.fixture(scope="module")
def mixed():
    return validate(MIXED)


def one(validation, *, split, quantity="kl_base_tuned", line=False):
    found = [
        held
        for held in validation.held_out
        if held.split == split and held.quantity == quantity and (held.law == LINE.name) == line
    ]
    assert len(found) == 1
    return found[0]


def test_a_true_law_is_exact_on_what_was_held_out_and_the_baselines_are_not():
    validation = validate(QUIET)
    assert {held.split for held in validation.held_out} == {RANK, STEPS_LEFT}
    for held in validation.held_out:
        if held.law != LINE.name:
            assert held.rmse < 1e-5
            assert abs(held.bias) < 1e-5
            assert held.r2 == pytest.approx(1, abs=1e-5)
            assert held.rmse_constant > 0.01
            assert held.rmse_log_steps > 0.003


def test_a_true_line_is_exact_on_what_was_held_out():
    loss = QUIET.query("role == 'target'").set_index(["run", "step"])["nll"]
    at = pd.MultiIndex.from_frame(QUIET[["run", "step"]])
    validation = validate(QUIET.assign(kl_base_tuned=2.0481 - 1.7334 * loss.reindex(at).to_numpy()))
    for split in (RANK, STEPS_LEFT):
        assert one(validation, split=split, line=True).rmse < 1e-9
        assert one(validation, split=split, quantity="hard_cross_entropy", line=True).rmse > 1e-4


def test_a_rank_that_does_not_follow_the_others_is_found_out():
    beyond = (NOISY["r"] == 256) & (NOISY["role"] == "retain")
    validation = validate(NOISY.assign(kl_base_tuned=NOISY["kl_base_tuned"] + 0.05 * beyond))
    held = one(validation, split=RANK)
    assert held.bias == pytest.approx(-0.05, abs=0.01)
    assert held.r2 < 0.5 < held.r2_over_constant
    assert held.inside < held.n_points / 2
    assert "too low" in str(held)
    assert abs(one(validation, split=RANK, quantity="hard_cross_entropy").bias) < 0.01


def test_numbers_are_those_of_a_fit_to_the_rest_done_by_hand():
    measured = points(NOISY)
    training, held = measured[measured["r"] < 256], measured[measured["r"] == 256]
    law = fit(NOISY[NOISY["r"] < 256]).joint["kl_base_tuned"]
    found = one(validate(NOISY, level=0.8), split=RANK)
    assert (found.law, found.n_points, found.n_runs, found.level) == (law.law, len(held), 2, 0.8)
    squares, inside, widths = [], 0, []
    for row in held.itertuples():
        prediction = law.predict(trainable_params=row.trainable_params, steps=row.steps)
        margin = math.hypot(
            stats.t.ppf(0.9, prediction.dof) * prediction.stderr,
            stats.t.ppf(0.9, prediction.scatter_dof) * prediction.scatter,
        )
        squares.append((prediction.mean - row.kl_base_tuned) ** 2)
        inside += prediction.mean - margin <= row.kl_base_tuned <= prediction.mean + margin
        widths.append(2 * margin)
    y, seen = held["kl_base_tuned"], training["kl_base_tuned"]
    assert found.rmse == pytest.approx(math.sqrt(np.mean(squares)))
    assert found.r2 == pytest.approx(1 - sum(squares) / ((y - y.mean()) ** 2).sum())
    assert found.r2_over_constant == pytest.approx(1 - sum(squares) / ((y - seen.mean()) ** 2).sum())
    assert found.rmse_constant == pytest.approx(math.sqrt(((y - seen.mean()) ** 2).mean()))
    slope, intercept = np.polyfit(np.log(training["steps"]), seen, 1)
    log_line = slope * np.log(held["steps"]) + intercept
    assert found.rmse_log_steps == pytest.approx(math.sqrt(((y - log_line) ** 2).mean()))
    assert found.coverage == (inside, len(held))
    assert found.mean_width == pytest.approx(np.mean(widths))


def test_coverage_counts_the_points_put_inside():
    """Held-out values set to known places in their intervals; they cannot move the fit that made these."""
    law = fit(NOISY[NOISY["r"] < 256]).joint["kl_base_tuned"]
    places = [0.0, 0.5, -0.9, 0.99, 1.01, -1.01, 3.0]
    table = NOISY.copy()
    rows = table.query("r == 256 and role == 'retain' and step > 50").index
    prediction = law.predict(trainable_params=table.loc[rows, "trainable_params"], steps=table.loc[rows, "step"])
    half = prediction.run_quantile(0.95) - prediction.mean
    place = np.resize(places, len(rows))
    table.loc[rows, "kl_base_tuned"] = prediction.mean + place * half
    held = one(validate(table), split=RANK)
    assert held.coverage == (int(np.sum(np.abs(place) < 1)), len(rows))
    assert held.mean_width == pytest.approx(2 * half.mean())


def held_rows(table, split):
    own = table["seed"].isin((0, 4))
    return {
        "largest rank (r = 128)": own & (table["r"] == 128),
        STEPS_LEFT: own & (table["step"] > 0.7 * table["total_steps"]),
        "method ia3": table["method"] == "ia3",
        "learning rate 0.0002": table["learning_rate"] == 2e-4,
    }[split]


@pytest.mark.parametrize("split", ["largest rank (r = 128)", STEPS_LEFT, "method ia3", "learning rate 0.0002"])
def test_no_held_out_value_reaches_a_fit(mixed, split):
    rng, held = np.random.default_rng(2), held_rows(MIXED, split)
    garbage = MIXED.copy()
    for quantity in FORGETTING:
        garbage.loc[held, quantity] = rng.exponential(size=held.sum())
    wild, measured, garbled = validate(garbage), points(MIXED), points(garbage)
    out = held_rows(measured.rename(columns={"steps": "step"}).assign(total_steps=260), split)
    for quantity in FORGETTING:
        for line in (False, True):
            a, b = (one(validation, split=split, quantity=quantity, line=line) for validation in (mixed, wild))
            assert a.law == b.law
            assert a.warnings == b.warnings
            assert a.mean_width == b.mean_width
            assert b.rmse > 10 * a.rmse
            moved = garbled.loc[out, quantity].mean() - measured.loc[out, quantity].mean()
            assert b.bias == pytest.approx(a.bias - moved, abs=1e-12)


def test_the_form_is_chosen_on_the_training_part_alone():
    """Forgetting that flattens, and takes off again in the last steps: these would ask for a growth."""
    takes_off = 0.5 * np.maximum(NOISY["step"] / 182 - 1, 0)
    table = NOISY.assign(kl_base_tuned=NOISY["kl_base_tuned"] + takes_off)
    assert fit(table).joint["kl_base_tuned"].law == GROWTH.name
    validation = validate(table)
    assert one(validation, split=STEPS_LEFT).law == MULTIPLICATIVE.name
    assert any(f"without {STEPS_LEFT} the multiplicative law was chosen" in w for w in validation.warnings)


def test_laws_of_one_way_are_held_to_its_own_rank_and_steps_and_to_every_other_way(mixed):
    splits = list(dict.fromkeys(held.split for held in mixed.held_out))
    assert splits == ["largest rank (r = 128)", STEPS_LEFT, "method ia3", "learning rate 0.0002"]
    assert mixed.skipped == ()
    assert len(mixed.held_out) == len(splits) * 5
    for split, runs in zip(splits, (2, 6, 6, 6), strict=True):
        assert one(mixed, split=split).n_runs == runs
    assert any("9 of 15 finished runs" in warning for warning in mixed.warnings)
    law, rows = fit(MIXED[MIXED["seed"].isin((0, 4))]).joint["kl_base_tuned"], points(MIXED[MIXED["method"] == "ia3"])
    away = law.predict(trainable_params=rows["trainable_params"], steps=rows["steps"]).mean - rows["kl_base_tuned"]
    assert one(mixed, split="method ia3").rmse == pytest.approx(np.sqrt(np.mean(away**2)), rel=1e-12)


def test_the_last_steps_are_those_of_each_run():
    table = NOISY.assign(total_steps=np.where(NOISY["seed"] == 1, 130, 260)).query("step <= total_steps")
    measured = points(table)
    ends = measured["run"].map(measured.groupby("run")["steps"].max())
    held = one(validate(table), split=STEPS_LEFT)
    assert held.n_runs == 12
    assert held.n_points == (measured["steps"] > 0.7 * ends).sum()


def test_one_smaller_rank_leaves_a_law_in_steps_alone():
    held = one(validate(simulated.study(np.random.default_rng(4), ranks=(8, 64))), split="largest rank (r = 64)")
    assert held.law == STEPS.name
    assert held.bias < 0


def test_what_cannot_be_held_out_is_said():
    validation = validate(simulated.study(np.random.default_rng(5), ranks=(8,), seeds=(0, 1, 2)))
    assert {skip.split: skip.reason for skip in validation.skipped} == {
        "largest rank": "only r = 8 was run",
        "a method": "all runs have method lora",
        "a learning rate": "all runs have learning rate 5e-05",
    }
    assert {held.split for held in validation.held_out} == {STEPS_LEFT}
    assert "Not held out, largest rank: only r = 8 was run." in str(validation)


def test_too_little_left_to_fit_is_said():
    few = NOISY[(NOISY["r"] == 256) | ((NOISY["run"] == NOISY["run"].iloc[0]) & (NOISY["step"] > 200))]
    reasons = {skip.split: skip.reason for skip in validate(few).skipped}
    assert reasons[RANK].startswith("what is left cannot be fitted: got 2 points, expected at least 4")
    ends = NOISY[NOISY["step"] > 190]
    assert {skip.split: skip.reason for skip in validate(ends).skipped}[STEPS_LEFT] == "nothing would be left to fit"


def test_one_run_has_no_interval_and_no_coverage():
    held = one(validate(simulated.study(np.random.default_rng(6), ranks=(8,), seeds=(0,))), split=STEPS_LEFT)
    assert held.inside is None
    assert held.coverage is None
    assert math.isnan(held.mean_width)
    assert "no interval for the 3 points of 1 run" in str(held)
    assert "one run gives no interval: add a rank or a seed" in held.warnings


def test_held_out_values_that_do_not_vary_have_no_r2():
    level = NOISY.assign(kl_base_tuned=np.where(NOISY["r"] == 256, 0.5, NOISY["kl_base_tuned"]))
    assert math.isnan(one(validate(level), split=RANK).r2)


def test_a_better_baseline_is_named():
    """Forgetting that is a line in log N and does not care for rank, but for one wild run that drags the law."""
    table = NOISY.assign(kl_base_tuned=0.3 + 0.05 * np.log(np.maximum(NOISY["step"], 1)))
    tilt = np.where(NOISY["r"] < 256, 0.1 * np.log2(NOISY["r"] / 8), 0.0)
    validation = validate(table.assign(kl_base_tuned=table["kl_base_tuned"] + tilt))
    assert any(f"{RANK} held out: a constant was nearer" in warning for warning in validation.warnings)
    assert f"Note: kl_base_tuned, {RANK} held out: a line in log N was nearer" in str(validation)


def test_the_headline_reads(noisy):
    text = str(noisy)
    first = text.splitlines()[0]
    print(text)
    assert first.startswith(f"Held out, the {RANK}: forgetting was predicted to 0.00")
    for part in (
        "nats",
        "(R² 0.",
        "; the constant 0.",
        ", a line in log N 0.0",
        " of 22 points of 2 runs inside their 90",
    ):
        assert part in first
    assert "forgetting was predicted from the target loss to" in text
    assert "In sample, for comparison: R² 0.9" in text


def test_the_order_of_rows_does_not_matter(noisy):
    shuffled = NOISY.sample(frac=1, random_state=0)
    assert repr(validate(shuffled)) == repr(noisy)


def test_a_failed_run_changes_no_number_and_steps_may_be_whole_numbers(noisy):
    failed = dict.fromkeys(NOISY.columns, np.nan) | {"run": "dead", "state": "failed", "reason": "no memory"}
    with_failed = validate(pd.concat([NOISY, pd.DataFrame([failed])]))
    assert repr(with_failed.held_out) == repr(noisy.held_out)
    assert "not in any fit: dead (failed)" in with_failed.warnings
    assert repr(validate(NOISY.astype({"step": int}))) == repr(noisy)


def test_a_validation_is_a_table_and_json(noisy):
    frame = noisy.to_frame()
    assert len(frame) == len(noisy.held_out) == 10
    assert set(frame.columns) == set(HeldOut.__dataclass_fields__) - {"points"}
    rows = noisy.predictions()
    for held in noisy.held_out:
        if held.law != "line":
            part = rows[(rows["quantity"] == held.quantity) & (rows["split"] == held.split)]
            assert len(part) == held.n_points
            assert math.sqrt(((part["predicted"] - part["observed"]) ** 2).mean()) == pytest.approx(held.rmse)
            assert part["observed"].between(part["low"], part["high"]).sum() == held.inside
    assert frame.loc[0, "rmse"] == noisy.held_out[0].rmse
    held = json.loads(json.dumps(noisy.to_dict(), allow_nan=False))
    assert held["held_out"][0]["split"] == RANK
    assert (held["corpus"], held["target"]) == ("wikipedia", "openorca")
    in_sample = {(fit_["quantity"], fit_["law"]): fit_["r2"] for fit_ in held["in_sample"]}
    assert in_sample[("kl_base_tuned", "line")] == fit(NOISY).lines["kl_base_tuned"].r2
    assert in_sample[("target_nll", "multiplicative")] == fit(NOISY).joint["target_nll"].r2


def test_questions_without_an_answer_are_refused():
    with pytest.raises(ConfigError, match="got level 1, expected a probability between 0 and 1"):
        validate(NOISY, level=1)
    with pytest.raises(FitError, match="'news'"):
        validate(NOISY, corpus="news")
