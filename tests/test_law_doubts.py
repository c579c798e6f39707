"""What a law says of itself where its intervals rest on little, or where its runs are no independent samples."""

import math

import numpy as np

import simulated
from holdfast.formulas import MULTIPLICATIVE
from holdfast.laws import fit, fit_law, points

NOISY = simulated.study(np.random.default_rng(0))


def test_one_run_has_no_interval():
    joint = fit(simulated.study(np.random.default_rng(3), ranks=(8,), seeds=(0,))).joint["kl_base_tuned"]
    assert all(math.isnan(estimate.stderr) for estimate in joint.parameters.values())
    assert math.isnan(joint.predict(trainable_params=8 * simulated.PARAMS_PER_RANK, steps=100).stderr)
    assert "one run gives no interval: add a rank or a seed" in joint.warnings


def test_two_ranks_of_one_seed_have_no_interval_for_nothing_is_left_without_one():
    joint = fit(simulated.study(np.random.default_rng(4), ranks=(8, 64), seeds=(0,))).joint["kl_base_tuned"]
    assert math.isnan(joint.predict(trainable_params=8 * simulated.PARAMS_PER_RANK, steps=100).stderr)
    assert any("one run fewer" in warning for warning in joint.warnings)


def test_few_runs_are_told():
    three, six = (
        simulated.study(np.random.default_rng(5), ranks=ranks, seeds=(0,)) for ranks in ((8, 32, 128), simulated.RANKS)
    )
    assert "intervals rest on 3 runs only" in fit(three).joint["kl_base_tuned"].warnings
    assert fit(six).joint["kl_base_tuned"].warnings == ()


def test_runs_that_differ_at_equal_loss_are_said_to():
    apart = NOISY.assign(kl_base_tuned=NOISY["kl_base_tuned"] + 0.05 * np.log2(NOISY["r"] / 8))
    assert any("runs differ at equal loss" in warning for warning in fit(apart).lines["kl_base_tuned"].warnings)
    assert not any("price is an average" in warning for warning in fit(NOISY).lines["kl_base_tuned"].warnings)


def test_runs_of_a_rank_that_miss_the_law_alike_are_named():
    """Ranks that each have a level of their own are fewer samples than runs; without, hardly a study says so."""
    said = []
    for seed in range(20):
        table = simulated.study(np.random.default_rng(seed))
        own = {r: 0.02 * np.random.default_rng(r + 1000 * seed).normal() for r in simulated.RANKS}
        after = table["step"] > 0
        moved = table.assign(kl_base_tuned=table["kl_base_tuned"] + after * table["r"].map(own))
        for each in (table, moved):
            law = fit_law(MULTIPLICATIVE, points(each), "kl_base_tuned")
            said.append(any("runs of one rank miss the multiplicative law" in words for words in law.warnings))
    assert sum(said[::2]) <= 2
    assert sum(said[1::2]) >= 17


def test_runs_that_miss_the_law_alike_at_the_same_steps_are_named():
    """What the last batches do to all ranks is no noise of runs; without it no study says so."""
    said = []
    for seed in range(10):
        table = simulated.study(np.random.default_rng(seed), seeds=(0,))
        own = {step: 0.006 * np.random.default_rng(int(step) + 1000 * seed).normal() for step in table["step"].unique()}
        after = table["step"] > 0
        moved = table.assign(kl_base_tuned=table["kl_base_tuned"] + after * table["step"].map(own))
        for each in (table, moved):
            law = fit_law(MULTIPLICATIVE, points(each), "kl_base_tuned")
            said.append(any("miss the multiplicative law alike at the same steps" in words for words in law.warnings))
    assert sum(said[::2]) == 0
    assert sum(said[1::2]) >= 9
