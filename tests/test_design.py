"""Which run to buy next: against the error written out, borne out by refits, and studies made again run by run."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast.costs import flop_per_token
from holdfast.design import SHARED, next_runs
from holdfast.errors import ConfigError, FitError
from holdfast.forecasting import run_scatter
from holdfast.laws import fit, points
from holdfast.offers import Candidate, possible_runs
from holdfast.planning import plan
from holdfast.stats import t_quantile
from simulated_runs import Runs, cut

KL = "kl_base_tuned"
PER_STEP = 16384
AT = (32, 115)
PILOT = simulated.study(np.random.default_rng(0), ranks=(8, 64, 256), seeds=(0,), total_steps=130)
LAWS = fit(PILOT)


def by_hand(laws, table, at, shared=SHARED, scale=1.0):
    """The width after any runs, each (params, used steps): the error clustered by run, with whole matrices.

    Of one run's interval, by the law's variance, `scale` times as large, and the scatter that its fit tells.
    """
    law, predicted = laws.joint[KL], lambda params, steps: laws.joint[KL].predict(trainable_params=params, steps=steps)
    _, gap, x, y = (estimate.value for estimate in law.parameters.values())
    params = at[0] * simulated.PARAMS_PER_RANK
    scatter = run_scatter(law, points(table))
    there = predicted(params, at[1])
    usual = scatter.level**2 + scatter.slope**2 * math.log(at[1] / scatter.reference) ** 2 + scatter.noise**2
    point = max(there.scatter, math.sqrt(usual) * law.scatter.relative(there.mean))

    def derivative(params, steps):
        p = np.broadcast_to(params / law.reference["trainable_params"], np.shape(steps))
        n = np.asarray(steps) / law.reference["steps"]
        shape = p**-x * n**-y
        return np.stack([np.ones_like(shape), shape, -gap * np.log(p) * shape, -gap * np.log(n) * shape], axis=-1)

    def width(runs):
        sizes = np.concatenate([np.full(len(used), params) for params, used in runs])
        ranks, steps = (list(each) for each in zip(*runs, strict=True))
        member = np.repeat(np.arange(len(runs)), [len(used) for used in steps])
        every = derivative(sizes, np.concatenate(steps))
        logs = np.log(np.concatenate(steps) / scatter.reference)
        place = np.concatenate([np.arange(len(used)) for used in steps])
        grows = law.scatter.relative(predicted(sizes, np.concatenate(steps)).mean)
        noise = (
            np.outer(grows, grows)
            * (member[:, None] == member)
            * (
                scatter.level**2
                + scatter.slope**2 * np.outer(logs, logs)
                + scatter.noise**2 * scatter.memory ** np.abs(place[:, None] - place)
            )
        )
        whole, variance = derivative(params, at[1]) @ np.linalg.pinv(every), 0.0
        left = np.eye(len(member)) - every @ np.linalg.pinv(every)
        for own in (member == run for run in range(len(runs))):
            sizes, axes = np.linalg.eigh(left[np.ix_(own, own)])
            moves = whole[own] @ axes / np.sqrt(sizes) @ axes.T @ left[own]
            variance += moves @ noise @ moves
        moves = np.array([whole[member == run] @ grows[member == run] for run in range(len(runs))])
        for run, other in itertools.permutations(range(len(runs)), 2):
            if ranks[run] == ranks[other]:
                variance += shared * scatter.level**2 * moves[run] * moves[other]
        weights = moves**2
        dof = weights.sum() ** 2 / (weights**2).sum() * (len(runs) - 1) / len(runs)
        t_law, t_run = (t_quantile(0.95, max(each, 1)) for each in (dof, law.scatter.dof * len(runs) / laws.n_runs))
        return 2 * math.hypot(t_law * scale * math.sqrt(variance), t_run * point)

    return width


def has(table):
    measured = points(table)
    return {run: (rows["trainable_params"].iloc[0], rows["steps"].to_numpy()) for run, rows in measured.groupby("run")}


def with_candidate(runs, offer):
    used = np.array([step for step in offer.measured if step > 50 / 260 * offer.steps])
    return runs | {offer.finishes or f"new{len(runs)}": (offer.r * simulated.PARAMS_PER_RANK, used)}


def test_the_ranking_is_brute_forces():
    found = next_runs(LAWS, PILOT, at=AT)
    width, runs = by_hand(LAWS, PILOT, AT), has(PILOT)
    before, gains = width(runs.values()), {}
    for offer in possible_runs(LAWS, PILOT):
        gains[offer] = (before - width(with_candidate(runs, offer).values())) / offer.flop
    assert {purchase.candidate for purchase in found.ranked} == set(gains)
    for purchase in found.ranked:
        assert purchase.width_before == pytest.approx(before, rel=1e-3)
        assert purchase.gain == pytest.approx(gains[purchase.candidate], rel=1e-3, abs=1e-3 * max(gains.values()))
    assert found.chosen[0].candidate == max(gains, key=gains.get)
    assert found.chosen[0] == found.ranked[0]


def test_several_purchases_each_count_on_those_before():
    found = next_runs(LAWS, PILOT, at=AT, number=3)
    width, runs = by_hand(LAWS, PILOT, AT), has(PILOT)
    offers = set(possible_runs(LAWS, PILOT))
    for purchase in found.chosen:
        before = width(runs.values())
        best = max(offers, key=lambda offer: (before - width(with_candidate(runs, offer).values())) / offer.flop)
        assert purchase.candidate == best
        runs = with_candidate(runs, best)
        assert purchase.width_after == pytest.approx(width(runs.values()), rel=1e-3)


def test_widths_are_of_the_interval_that_the_plan_prints_but_where_that_is_narrow_by_luck():
    lucky = 0
    for seed in range(8):
        table = simulated.study(np.random.default_rng(seed), ranks=(8, 64, 256), seeds=range(1 + seed % 2))
        laws = fit(table)
        found = next_runs(laws, table, at=AT)
        now = laws.joint[KL].predict(trainable_params=AT[0] * simulated.PARAMS_PER_RANK, steps=AT[1])
        assert found.width == pytest.approx(now.run_quantile(0.95) - now.run_quantile(0.05))
        assert found.law_width == pytest.approx(now.interval(0.9)[1] - now.interval(0.9)[0])
        assert found.limit < found.width
        lucky += found.width < found.expected_width
        assert min(purchase.width_before for purchase in found.ranked) > 0.98 * max(found.width, found.expected_width)
    assert 0 < lucky < 8


def new(r, steps):
    measured = tuple(np.unique(np.rint(np.geomspace(10, steps, 22))).astype(int).tolist())
    return Candidate(r=r, steps=steps, finishes=None, tokens=steps * PER_STEP, flop=None, measured=measured)


@pytest.mark.parametrize("at", [(8, 30), (32, 115), (256, 130)])
def test_a_run_made_as_planned_narrows_and_so_does_each_one_more(at):
    found = next_runs(LAWS, PILOT, at=at, number=6, candidates=[new(at[0], max(at[1], 65))])
    widths = [found.ranked[0].width_before, *(purchase.width_after for purchase in found.chosen)]
    assert len(widths) == 7
    assert widths == sorted(widths, reverse=True)
    best = next_runs(LAWS, PILOT, at=at).ranked[0]
    assert best.width_after < best.width_before


def test_one_long_run_among_short_ones_is_not_worth_its_price():
    """What textbook information would buy: the laws' interval doubts a slope that one run carries alone."""
    table = simulated.study(np.random.default_rng(7), ranks=(8, 64, 256), seeds=(0,), total_steps=130)
    ranked = next_runs(fit(table), table, at=(8, 30)).ranked
    widening = [purchase.candidate for purchase in ranked if purchase.width_after > purchase.width_before]
    assert widening
    assert all(purchase.gain < 0 for purchase in ranked[-len(widening) :])


def test_until_a_run_has_reached_the_point_only_those_that_do_are_ranked():
    ranked = next_runs(LAWS, PILOT, at=(32, 200)).ranked
    assert min(purchase.candidate.steps for purchase in ranked) >= 200
    assert {purchase.candidate.steps for purchase in next_runs(LAWS, PILOT, at=(32, 500)).ranked} == {260}
    assert min(purchase.candidate.steps for purchase in next_runs(LAWS, PILOT, at=(32, 120)).ranked) == 130


def test_what_is_expected_is_what_refits_find():
    """Twelve pilots, one purchase each, made for real: the width it leaves is that expected, on average."""
    rng, expected, found = np.random.default_rng(1), [], []
    for _ in range(12):
        table = simulated.study(rng, ranks=(8, 32, 128), seeds=(0, 1), total_steps=130)
        offer = new(64, 260)
        laws = fit(table)
        expected.append(next_runs(laws, table, at=(64, 200), candidates=[offer]).ranked[0].width_after)
        more = simulated.study(rng, ranks=(64,), seeds=(0,), total_steps=260)
        law = fit(pd.concat([table, more], ignore_index=True)).joint[KL]
        now = law.predict(trainable_params=64 * simulated.PARAMS_PER_RANK, steps=200)
        found.append(now.run_quantile(0.95) - now.run_quantile(0.05))
    print(f"width expected {np.mean(expected):.4f}, found {np.mean(found):.4f}")
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.3)


def test_candidates_are_of_the_studys_ranks_and_of_those_about_them():
    laws = fit(simulated.study(np.random.default_rng(2), ranks=(8, 24, 64), seeds=(0,)))
    table = simulated.study(np.random.default_rng(2), ranks=(8, 24, 64), seeds=(0,))
    offers = possible_runs(laws, table)
    assert {offer.r for offer in offers} == {4, 8, 16, 24, 32, 64, 128}
    assert {offer.steps for offer in offers} == {260, 368, 520}
    assert all(offer.tokens == offer.steps * PER_STEP for offer in offers)
    assert all(offer.finishes is None for offer in offers)


def test_only_a_run_in_progress_can_go_on_and_costs_what_is_left_of_it():
    name = PILOT.loc[PILOT["r"] == 64, "run"].iloc[0]
    table = cut(PILOT, name)
    laws = fit(table)
    (going,) = [offer for offer in possible_runs(laws, table) if offer.finishes]
    had = table.loc[table["run"] == name, "step"].max()
    assert (going.finishes, going.r, going.steps, going.tokens) == (name, 64, 130, (130 - had) * PER_STEP)
    fresh = [offer for offer in possible_runs(laws, table) if (offer.r, offer.steps, offer.finishes) == (64, 130, None)]
    assert going.measured == fresh[0].measured
    found = next_runs(laws, table, at=AT, number=4)
    after = {each.candidate: each.width_after for each in found.ranked}
    assert after[going] == pytest.approx(after[fresh[0]])
    assert found.chosen[0].candidate == going
    assert [each.candidate.finishes for each in found.chosen].count(name) == 1
    assert f"Finish run {name}: r = 64 to 130 steps ({going.tokens:,} tokens left)" in str(found)


@pytest.mark.parametrize("other", [{"target": "news"}, {"method": "ia3", "r": np.nan}, {"learning_rate": 1e-2}])
def test_a_run_in_progress_that_the_laws_are_not_of_is_not_finished_for_them(other):
    name = PILOT.loc[PILOT["r"] == 64, "run"].iloc[0]
    table = cut(PILOT, name)
    for column, value in other.items():
        table[column] = table[column].where(table["run"] != name, value)
    laws = fit(table)
    assert all(offer.finishes is None for offer in possible_runs(laws, table))
    assert next_runs(laws, table, at=AT).chosen


def test_a_new_run_is_measured_as_the_studys_are():
    for steps in (130, 260):
        offer = next(each for each in possible_runs(LAWS, PILOT) if each.steps == steps)
        table = simulated.study(ranks=(8,), seeds=(0,), total_steps=steps)
        assert offer.measured == tuple(sorted(int(step) for step in set(table["step"]) if step > 0))


def test_a_gain_is_per_flop_or_per_token_where_the_size_of_the_base_is_not_known():
    for base_params in (LAWS.base_params, None):
        for purchase in next_runs(dataclasses.replace(LAWS, base_params=base_params), PILOT, at=AT).ranked:
            offer = purchase.candidate
            params = offer.r * simulated.PARAMS_PER_RANK
            per_token = flop_per_token(base_params=base_params, trainable_params=params) if base_params else 1
            price = offer.tokens * per_token
            assert offer.flop == (pytest.approx(price) if base_params else None)
            assert purchase.gain == pytest.approx((purchase.width_before - purchase.width_after) / price)


def test_the_cheapest_run_is_not_advised_again_and_again():
    """What the law misses at a rank all its runs miss; with one run a rank, half of how runs differ is that."""
    chosen = [purchase.candidate for purchase in next_runs(LAWS, PILOT, at=AT, number=5).chosen]
    assert len({each.r for each in chosen}) >= 3


@pytest.mark.parametrize(("sd", "low", "high"), [(0.0, 0.0, 0.65), (0.02, 0.8, 1.0)])
def test_what_runs_of_a_rank_share_is_told_by_repeats(sd, low, high):
    """By the width that one more run of a rank leaves, 0 as if nothing and 1 as if everything were shared."""
    rng, found = np.random.default_rng(8), []
    for _ in range(6):
        table = simulated.study(rng, total_steps=130)
        for r in simulated.RANKS:
            table.loc[(table["r"] == r) & (table["step"] > 0), KL] += sd * rng.normal()
        laws, runs = fit(table), has(table)
        purchase = next_runs(laws, table, at=AT, candidates=[new(32, 130)]).ranked[0]
        ratios = []
        for shared in (0, 1):
            width = by_hand(laws, table, AT, shared)
            ratios.append(width(with_candidate(runs, purchase.candidate).values()) / width(runs.values()))
        found.append((purchase.width_after / purchase.width_before - ratios[0]) / (ratios[1] - ratios[0]))
    assert low <= np.median(found) <= high


def test_the_plans_point_is_where_the_interval_is_narrowed():
    planned = plan(LAWS, max_forgetting=0.5)
    found = next_runs(LAWS, PILOT, max_forgetting=0.5)
    assert found.at == (planned.r, planned.steps)
    assert not any("no run keeps within" in warning for warning in found.warnings)
    far = plan(LAWS, max_forgetting=1e-4)
    assert not far.feasible
    said = f"no run keeps within 0.0001, and r = {far.r} for {far.steps} steps comes nearest"
    assert said in next_runs(LAWS, PILOT, max_forgetting=1e-4).warnings


def test_it_stops_when_the_interval_is_narrow_enough_or_nothing_helps():
    found = next_runs(LAWS, PILOT, at=AT)
    assert not found.stop
    enough = next_runs(LAWS, PILOT, at=AT, tolerance=1.0)
    assert enough.stop
    assert enough.chosen == ()
    assert "within" in enough.reason
    narrower = next_runs(LAWS, PILOT, at=AT, tolerance=0.99 * found.width)
    assert not narrower.stop
    whole = simulated.study(np.random.default_rng(3), seeds=range(6))
    idle = next_runs(fit(whole), whole, at=(32, 120))
    assert idle.stop
    assert "no run would narrow it by 5 %" in idle.reason
    assert max(1 - each.width_after / each.width_before for each in idle.ranked) < 0.05
    beyond = next_runs(fit(whole), whole, at=(32, 120), tolerance=0.6 * idle.limit, least=1e-9)
    assert beyond.stop
    assert "no number of runs would bring it within" in beyond.reason
    assert not next_runs(fit(whole), whole, at=(32, 120), tolerance=0.98 * idle.limit, least=1e-9).stop


def test_an_interval_that_is_narrow_by_luck_does_not_stop_it():
    """Three runs that happen to lie on the law: the jackknife is sure of them, and what is known of noise is not."""
    widths = []
    for seed in range(16):
        table = simulated.study(np.random.default_rng(seed), ranks=(8, 32, 128), seeds=(0,), total_steps=130)
        found = next_runs(fit(table), table, at=(32, 90), candidates=[new(32, 130)])
        widths.append((found.width, seed, table))
    width, _, table = min(widths, key=lambda each: each[0])
    assert width < 0.5 * np.median([each[0] for each in widths])
    found = next_runs(fit(table), table, at=(32, 90), candidates=[new(32, 130)], tolerance=1.01 * width)
    assert not found.stop
    assert "narrow by luck" in found.reason


def test_it_says_what_to_run_in_words_and_json():
    found = next_runs(LAWS, PILOT, at=AT)
    first, sentence = str(found).splitlines()[:2]
    assert first.startswith("The 90 % interval for a run of r = 32 and 115 steps is 0.")
    best = found.chosen[0]
    assert f"r = {best.candidate.r} to {best.candidate.steps} steps ({best.candidate.tokens:,.0f} tokens)" in sentence
    assert f"narrow it by {100 * (1 - best.width_after / best.width_before):.0f} %" in sentence
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert held["chosen"][0]["candidate"]["r"] == best.candidate.r


def test_without_an_interval_the_way_to_one_is_told():
    table = simulated.study(np.random.default_rng(4), ranks=(16,), seeds=(0,))
    found = next_runs(fit(table), table, at=(16, 200))
    assert math.isnan(found.width)
    assert not found.stop
    assert "no interval yet" in found.reason
    assert any("only their ratios" in warning for warning in found.warnings)
    assert found.chosen[0].width_after < found.chosen[0].width_before
    assert "nan" not in str(found)


def test_what_leaves_one_run_to_decide_alone_gives_no_interval():
    """Of two ranks each decides how rank counts: a third rank gives an interval, a repeat of one does not."""
    table = simulated.study(np.random.default_rng(3), ranks=(8, 64), seeds=(0,), total_steps=130)
    found = next_runs(fit(table), table, at=(8, 60))
    assert {purchase.candidate.r for purchase in found.ranked if math.isinf(purchase.width_after)} == {8, 64}
    assert found.chosen[0].candidate.r not in (8, 64)
    assert "should give one" in str(found.chosen[0])
    assert "should not give one alone" in str(found.ranked[-1])
    for r, known in ((found.chosen[0].candidate.r, True), (8, False)):
        more = simulated.study(np.random.default_rng(4), ranks=(r,), seeds=(1,), total_steps=130)
        law = fit(pd.concat([table, more], ignore_index=True)).joint[KL]
        now = law.predict(trainable_params=8 * simulated.PARAMS_PER_RANK, steps=60)
        assert math.isfinite(now.stderr) is known


def test_runs_of_a_rank_that_pull_against_each_other_leave_a_variance():
    """What they have in common then takes from it, and of few runs more than there is."""
    runs = Runs(np.random.default_rng(13))
    for r, steps in ((8, 60), (64, 20), (64, 20)):
        table = runs.make(r, steps, np.unique(np.rint(np.geomspace(10, steps, 12))).astype(int).tolist())
    for at in ((8, 15), (8, 200), (64, 100)):
        found = next_runs(fit(table), table, at=at)
        assert all(purchase.width_after > found.limit > 0 for purchase in found.ranked)


def test_two_short_runs_of_which_neither_has_a_law_by_itself_are_an_answer_too():
    """README's study at its smallest, as measured: 4 constants, and 4 checkpoints once a run is left out."""
    table = simulated.study(ranks=(2, 8), seeds=(0,), total_steps=13)
    retained = (table["role"] == "retain") & (table["step"] > 0)
    table.loc[retained & (table["r"] == 8), KL] = [3.5e-5, 9.7e-5, 1.97e-4, 3.12e-4]
    table.loc[retained & (table["r"] == 2), KL] = [7e-6, 2e-5, 4.1e-5, 6.6e-5]
    found = next_runs(fit(table), table, at=(8, 13))
    assert not found.stop
    assert all(each.width_after > 0 for each in found.ranked)
    assert math.isinf(found.ranked[0].width_before)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "at None"),
        ({"at": AT, "max_forgetting": 0.5}, "max_forgetting 0.5"),
        ({"at": (0, 10)}, r"at \(0, 10\)"),
        ({"at": AT, "tolerance": -1.0}, "tolerance -1.0"),
        ({"at": AT, "number": 0}, "number 0"),
    ],
)
def test_questions_without_an_answer_are_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        next_runs(LAWS, PILOT, **asked)


def test_nothing_to_buy_is_refused():
    with pytest.raises(FitError, match="no candidate"):
        next_runs(LAWS, PILOT, at=AT, candidates=[])
