"""Plans against brute force over the laws, simulated risk, and the sentences people read."""

import dataclasses
import json
import math

import numpy as np
import pytest

import simulated
from holdfast.design import next_runs
from holdfast.errors import ConfigError, FitError
from holdfast.laws import fit
from holdfast.planning import frontier, percent, plan, price_in_words
from holdfast.stats import Estimate
from simulated_runs import Runs

QUIET = fit(simulated.study())
NOISY = fit(simulated.study(np.random.default_rng(0)))


def brute_force(laws, acceptable, wish, ranks=(8, 16, 32, 64, 128, 256)):
    """The best (rank, steps) of all ranks and whole steps of the study, one prediction at a time."""
    low, high = laws.joint["kl_base_tuned"].domain["steps"]
    best = None
    for r in ranks:
        for steps in range(int(low), int(high) + 1):
            at = {"trainable_params": r * simulated.PARAMS_PER_RANK, "steps": steps}
            forgetting, loss = laws.joint["kl_base_tuned"].predict(**at), laws.joint["target_nll"].predict(**at)
            if acceptable(forgetting, loss) and (best is None or wish(forgetting, loss) < best[0]):
                best = (wish(forgetting, loss), r, steps)
    return best


def test_a_budget_buys_the_lowest_loss_within_the_risk():
    found = plan(NOISY, max_forgetting=0.5, risk=0.1)
    loss, r, steps = brute_force(NOISY, lambda f, _: f.probability_above(0.5) <= 0.1, lambda _, loss: loss.mean)
    assert (found.r, found.steps) == (r, steps)
    assert found.target_nll.mean == pytest.approx(loss)
    assert found.feasible
    assert not found.extrapolates
    assert found.probability_over_budget <= 0.1
    assert found.trainable_params == r * simulated.PARAMS_PER_RANK


def test_a_loss_is_reached_with_the_least_forgetting():
    found = plan(NOISY, target_loss=0.68)
    forgetting, r, steps = brute_force(NOISY, lambda _, loss: loss.mean <= 0.68, lambda f, _: f.mean)
    assert (found.r, found.steps) == (r, steps)
    assert found.forgetting.mean == pytest.approx(forgetting)
    assert found.probability_over_budget is None


def test_both_at_once_satisfy_both():
    found = plan(NOISY, max_forgetting=0.58, target_loss=0.69)
    assert found.feasible
    assert found.target_nll.mean <= 0.69
    assert found.forgetting.probability_above(0.58) <= 0.1
    alone = plan(NOISY, max_forgetting=0.58)
    assert (found.r, found.steps) == (alone.r, alone.steps)


@pytest.mark.parametrize("budget", [0.53, 0.56, 0.6])
@pytest.mark.parametrize("r", [8, 64, 100])
def test_with_the_rank_or_the_parameters_given_only_steps_are_chosen(r, budget):
    _, _, steps = brute_force(NOISY, lambda f, _: f.probability_above(budget) <= 0.1, lambda _, loss: loss.mean, [r])
    by_rank = plan(NOISY, max_forgetting=budget, r=r)
    by_params = plan(NOISY, max_forgetting=budget, trainable_params=r * simulated.PARAMS_PER_RANK)
    assert (by_rank.r, by_rank.steps) == (by_params.r, by_params.steps) == (r, steps)
    assert {choice.r for choice in by_rank.frontier} == {r}
    free = plan(NOISY, max_forgetting=budget)
    assert free.target_nll.mean <= by_rank.target_nll.mean


def test_parameters_between_two_ranks_are_planned_for_as_they_are():
    found = plan(NOISY, max_forgetting=0.5, trainable_params=27e6)
    assert (found.r, found.trainable_params) == (11, 27_000_000)
    assert any("27,000,000 trainable parameters are no whole rank" in warning for warning in found.warnings)
    alone = NOISY.joint["kl_base_tuned"].predict(trainable_params=27e6, steps=found.steps)
    assert (found.forgetting.mean, found.forgetting.stderr) == pytest.approx((alone.mean, alone.stderr), rel=1e-12)


def test_a_rank_that_was_never_run_is_planned_with_a_doubt():
    found = plan(NOISY, max_forgetting=0.5, r=512)
    assert found.extrapolates
    words = "1,279,262,720 trainable parameters were never run, only 19,988,480 to 639,631,360"
    assert any(words in warning for warning in found.warnings)


def test_half_and_double_the_budget_are_answered_as_if_they_were_asked_for():
    for budget in (0.35, 0.5, 0.58):
        found = plan(NOISY, max_forgetting=budget)
        for times, choice in ((0.5, found.at_half_budget), (2, found.at_double_budget)):
            asked = plan(NOISY, max_forgetting=times * budget)
            if asked.feasible:
                assert (choice.r, choice.steps) == (asked.r, asked.steps)
                assert choice.target_nll == asked.target_nll
            else:
                assert choice is None
                assert any("At half the budget" in reason and "nothing would do" in reason for reason in found.reasons)


def test_a_larger_budget_never_buys_a_higher_loss():
    for budget in np.linspace(0.5, 1.2, 15):
        found = plan(NOISY, max_forgetting=budget)
        half, double = found.at_half_budget, found.at_double_budget
        assert half.target_nll.mean >= found.target_nll.mean >= double.target_nll.mean
        assert half.forgetting.mean <= found.forgetting.mean <= double.forgetting.mean


def test_what_another_budget_changes_is_told():
    reasons = plan(NOISY, max_forgetting=0.5).reasons
    half, double = (next(reason for reason in reasons if word in reason) for word in ("half", "double"))
    assert half.startswith("At half the budget (0.25) it would be r = ")
    assert half.endswith("nats per token on openorca, beyond what was run.")
    assert double.startswith("At double the budget (1) it would be r = 256 for 260 steps, with a loss of 0.65")
    assert "At double the budget (2.4) the answer would be the same." in plan(NOISY, max_forgetting=1.2).reasons
    assert not [reason for reason in plan(NOISY, target_loss=0.68).reasons if "budget" in reason]


def test_the_plan_carries_the_frontier_and_its_own_cost():
    known = dataclasses.replace(NOISY, base_params=1e9)
    found = plan(known, max_forgetting=0.5, seconds_per_token=1e-3)
    assert found.frontier == frontier(known, seconds_per_token=1e-3)
    tokens = found.steps * 16384
    assert found.cost.tokens == tokens
    assert found.cost.flop == pytest.approx(tokens * (4e9 + 6 * found.trainable_params))
    assert found.cost.seconds == pytest.approx(tokens * 1e-3)
    assert f"It trains on {found.cost}." in found.reasons
    bare = plan(dataclasses.replace(NOISY, tokens_per_step=None), max_forgetting=0.5)
    assert bare.cost.tokens is None
    assert not [reason for reason in bare.reasons if "It trains on" in reason]


def test_laws_of_the_hard_loss_alone_are_planned_by_and_named():
    hard = {name: NOISY.joint[name] for name in ("target_nll", "hard_cross_entropy")}
    laws = dataclasses.replace(
        NOISY, joint=hard, lines={"hard_cross_entropy": NOISY.lines["hard_cross_entropy"]}, orthogonal={}
    )
    found = plan(laws, max_forgetting=0.8)
    assert found.measure == "hard_cross_entropy"
    assert plan(NOISY, max_forgetting=0.5).measure == "kl_base_tuned"
    assert "nats of hard forgetting loss on wikipedia" in found.reasons[0]
    assert "a hard forgetting loss of" in found.reasons[1]
    assert found.forgetting.probability_above(0.8) <= 0.1
    never = plan(laws, max_forgetting=0.5)
    assert not never.feasible
    assert never.steps == 55, "fewer steps would lead the law below what the base has of this loss"


def test_the_risk_is_kept_by_the_runs_that_follow():
    """Studies, each planned from, and then runs drawn from the truth as the plan says."""
    rng = np.random.default_rng(10)
    studies = [fit(simulated.study(rng, seeds=(0,))) for _ in range(50)]
    for risk in (0.05, 0.1, 0.3, 0.5):
        plans = [plan(laws, max_forgetting=0.5, risk=risk) for laws in studies]
        at = {"trainable_params": [p.trainable_params for p in plans], "steps": [p.steps for p in plans]}
        runs = simulated.truth("kl_base_tuned", **at) + 0.005 * rng.normal(size=(400, len(plans)))
        over = np.mean(runs > 0.5)
        print(f"planned at a risk of {risk:.0%}, {over:.1%} of runs exceed the budget")
        assert risk / 2 <= over <= risk + 0.05


def test_less_risk_costs_loss():
    losses = [plan(NOISY, max_forgetting=0.5, risk=risk).target_nll.mean for risk in (0.01, 0.1, 0.3, 0.5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_beyond_the_study_only_when_nothing_within_will_do():
    beyond = plan(NOISY, max_forgetting=0.3)
    low, _ = NOISY.joint["kl_base_tuned"].domain["steps"]
    assert beyond.feasible
    assert beyond.extrapolates
    assert beyond.steps < low
    assert any("never run, only 55 to 260" in warning for warning in beyond.warnings)


def test_longer_runs_than_any_are_planned_for_a_loss_none_reached():
    beyond = plan(NOISY, target_loss=0.645)
    assert beyond.feasible
    assert beyond.extrapolates
    assert 260 < beyond.steps <= 4 * 260


@pytest.mark.parametrize(
    ("asked", "missed"),
    [
        ({"max_forgetting": 0.01}, ["the budget by"]),
        ({"target_loss": 0.5}, ["the target loss by"]),
        ({"max_forgetting": 0.01, "target_loss": 0.5}, ["the budget by", "the target loss by"]),
    ],
)
def test_what_cannot_be_had_is_said_with_how_much_is_missing(asked, missed):
    found = plan(QUIET, **asked)
    sentence = found.reasons[1]
    assert not found.feasible
    assert sentence.startswith("Not feasible")
    assert all(words in sentence for words in missed)
    if len(asked) == 1:
        got = found.forgetting.mean if "max_forgetting" in asked else found.target_nll.mean
        gap = got - next(iter(asked.values()))
        assert f"{missed[0]} {gap:.2g} nats" in sentence


def test_the_price_comes_first_and_in_words():
    line = QUIET.lines["kl_base_tuned"]
    slope = Estimate(value=0.42, stderr=0.023, n=18)
    line = dataclasses.replace(line, parameters=line.parameters | {"slope": slope})
    found = plan(dataclasses.replace(QUIET, lines=QUIET.lines | {"kl_base_tuned": line}), target_loss=0.7)
    assert found.price == slope
    assert found.reasons[0] == (
        "Each 0.1 nat of improvement on openorca costs 0.042 nats of forgetting on wikipedia "
        "(90 % interval 0.038 to 0.046), whatever the rank from 8 to 256."
    )


def test_no_run_is_said_to_forget_less_than_nothing():
    joint = with_constants(NOISY, "kl_base_tuned", asymptote=0.31).joint["kl_base_tuned"]
    unsure = dataclasses.replace(joint, scatter=dataclasses.replace(joint.scatter, sd=0.5))
    laws = dataclasses.replace(NOISY, joint=NOISY.joint | {"kl_base_tuned": unsure})
    said = next(reason for reason in plan(laws, target_loss=0.7).reasons if "should forget" in reason)
    assert " % of runs 0.0 to " in said
    below = with_constants(NOISY, "kl_base_tuned", asymptote=0.0)
    assert not any("forget -" in reason for reason in plan(below, target_loss=0.7).reasons)


def with_constants(laws, quantity, **values):
    joint = laws.joint[quantity]
    new = {name: dataclasses.replace(joint.parameters[name], value=value) for name, value in values.items()}
    joint = dataclasses.replace(joint, parameters=joint.parameters | new)
    return dataclasses.replace(laws, joint=laws.joint | {quantity: joint})


def test_one_price_for_every_rank_is_claimed_only_where_the_evidence_has_it():
    assert ", whatever the rank from 8 to 256." in price_in_words(NOISY)
    apart = with_constants(NOISY, "kl_base_tuned", x=0.2)
    assert "whatever" not in price_in_words(apart), "at equal loss the large ranks forget more"
    line = dataclasses.replace(NOISY.lines["kl_base_tuned"], r2=0.8)
    assert "whatever" not in price_in_words(dataclasses.replace(NOISY, lines={"kl_base_tuned": line}))
    assert "whatever" not in price_in_words(fit(simulated.study(np.random.default_rng(2), ranks=(16,))))
    far = with_constants(NOISY, "target_nll", x=3.0)
    assert "whatever" not in price_in_words(far), "no loss that both ranks reach"


def with_exponents(x, y, stderr):
    """Laws as if the exponents of forgetting had been found so."""
    joint = QUIET.joint["kl_base_tuned"]
    parameters = joint.parameters | {
        name: dataclasses.replace(joint.parameters[name], value=value, stderr=stderr)
        for name, value in (("x", x), ("y", y))
    }
    covariance = tuple(tuple(stderr**2 * (i == j) for j in range(4)) for i in range(4))
    fitted = dataclasses.replace(joint, parameters=parameters, covariance=covariance)
    return dataclasses.replace(QUIET, joint=QUIET.joint | {"kl_base_tuned": fitted})


@pytest.mark.parametrize(
    ("x", "y", "stderr", "verdict"),
    [
        (0.13, 0.53, 0.01, "Rank hardly matters, steps do"),
        (0.40, 0.53, 0.01, "Steps matter more than rank"),
        (0.60, 0.20, 0.01, "Rank matters more than steps"),
        (0.13, 0.53, 0.30, None),
    ],
)
def test_rank_against_steps_is_judged_only_when_the_numbers_tell(x, y, stderr, verdict):
    reasons = plan(with_exponents(x, y, stderr), target_loss=0.68).reasons
    judged = [reason for reason in reasons if "exponent" in reason]
    assert [reason.split(":")[0] for reason in judged] == ([] if verdict is None else [verdict])


def test_an_answer_at_the_edge_of_the_study_says_so():
    found = plan(NOISY, max_forgetting=5.0)
    assert (found.r, found.steps) == (256, 260)
    assert any("edge of the 55 to 260 steps" in reason for reason in found.reasons)


def test_powers_of_two_between_the_ranks_are_considered():
    laws = fit(simulated.study(np.random.default_rng(1), ranks=(8, 24, 256)))
    assert {plan(laws, target_loss=loss).r for loss in np.linspace(0.66, 0.75, 200)} <= {8, 16, 24, 32, 64, 128, 256}
    equal = dataclasses.replace(laws, joint=laws.joint | {"target_nll": rank_free(laws.joint["target_nll"])})
    assert plan(equal, max_forgetting=5.0).r == 8, "equals go to the fewest parameters"


def rank_free(fitted):
    return dataclasses.replace(
        fitted, parameters=fitted.parameters | {"x": dataclasses.replace(fitted.parameters["x"], value=0.0)}
    )


def test_without_an_interval_the_mean_is_used_and_told():
    laws = fit(simulated.study(np.random.default_rng(2), ranks=(16,), seeds=(0,)))
    found = plan(laws, max_forgetting=0.5)
    assert found.r == 16
    assert found.feasible
    assert found.forgetting.mean <= 0.5
    assert math.isnan(found.probability_over_budget)
    assert any("the budget is held by the mean" in warning for warning in found.warnings)
    assert any("one run gives no interval" in warning for warning in found.warnings)
    assert "(no interval)" in found.reasons[0]
    assert "nan" not in " ".join(found.reasons)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["probability_over_budget"] is None


def test_every_doubt_about_the_laws_used_comes_along_once():
    table = simulated.study(np.random.default_rng(3), ranks=(8, 32, 128), seeds=(0,))
    table.loc[table["r"] == 8, "dtype"] = "bfloat16"
    warnings = plan(fit(table), max_forgetting=0.6).warnings
    assert any("differ in dtype" in warning for warning in warnings)
    assert warnings.count("intervals rest on 3 runs only") == 1


def test_a_plan_prints_its_reasons_and_its_doubts():
    found = plan(NOISY, max_forgetting=0.3)
    assert str(found).splitlines()[0] == found.reasons[0]
    assert len(str(found).splitlines()) == len(found.reasons) + len(found.warnings)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "neither max_forgetting nor target_loss"),
        ({"max_forgetting": -0.1}, "max_forgetting -0.1, expected a positive"),
        ({"max_forgetting": math.nan, "risk": 2}, r"max_forgetting nan.*risk 2"),
        ({"target_loss": math.inf}, "target_loss inf"),
        ({"target_loss": 1.0, "risk": 0.0}, "risk 0.0"),
        ({"target_loss": 1.0, "r": 8, "trainable_params": 1e6}, "both trainable_params and r"),
        ({"target_loss": 1.0, "r": 0}, "r 0, expected a number of at least 1"),
        ({"target_loss": 1.0, "trainable_params": math.nan}, "trainable_params nan"),
    ],
)
def test_questions_without_an_answer_are_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        plan(QUIET, **asked)


def test_a_rank_that_does_not_say_how_many_parameters_is_refused():
    with pytest.raises(FitError, match="per rank differ"):
        plan(dataclasses.replace(QUIET, params_per_rank=None), max_forgetting=0.1)


def test_a_run_shorter_than_any_is_not_promised_to_forget_nothing():
    """A law that flattens goes below 0 before its first step; a KL does not, and a budget is not kept by it."""
    table, at = simulated.study(np.random.default_rng(0)), {"trainable_params": 8 * simulated.PARAMS_PER_RANK}
    low = NOISY.joint["kl_base_tuned"].domain["steps"][0]
    begun = float(NOISY.joint["kl_base_tuned"].predict(**at, steps=low).mean) - 0.05
    laws = fit(table.assign(kl_base_tuned=table["kl_base_tuned"] - begun))
    first, quarter = (float(laws.joint["kl_base_tuned"].predict(**at, steps=low / n).mean) for n in (1, 4))
    assert first == pytest.approx(0.05, abs=0.005)
    assert quarter < -0.05
    found = plan(laws, max_forgetting=first / 2, r=8, risk=0.4)
    assert found.extrapolates
    assert found.steps < low
    assert found.forgetting.mean == pytest.approx(first * found.steps / low)
    assert plan(laws, max_forgetting=first / 1000, r=8).feasible is False


@pytest.mark.parametrize(("share", "said"), [(1.0, "100 %"), (0.996, "over 99 %"), (0.5, "50 %"), (0.001, "under 1 %")])
def test_chances_near_certainty_are_whole_per_cents(share, said):
    assert percent(share) == said


@pytest.mark.parametrize("made", [((8, 30), (8, 260)), ((8, 20), (64, 260), (256, 20))])
def test_runs_that_the_law_follows_one_by_one_give_no_interval_of_a_run_and_no_nan(made):
    """The law has one, by leaving runs out; how one more run would scatter these do not tell."""
    runs = Runs(np.random.default_rng(1))
    for r, steps in made:
        table = runs.make(r, steps, np.unique(np.rint(np.geomspace(10, steps, 22))).astype(int).tolist())
    laws = fit(table)
    found = plan(laws, max_forgetting=0.45)
    assert math.isfinite(found.forgetting.stderr)
    assert math.isnan(found.probability_over_budget)
    for said in (str(found), found._repr_html_(), str(next_runs(laws, table, max_forgetting=0.45))):
        assert "nan" not in said
    assert "% of runs" not in str(found)
    assert any("risk of 10 % is not assured" in warning for warning in found.warnings)
