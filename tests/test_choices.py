"""Frontiers against brute force over every rank and whole number of steps."""

import dataclasses
import json

import numpy as np
import pytest

import simulated
from holdfast import choices
from holdfast.choices import frontier, measure_of_forgetting
from holdfast.errors import FitError
from holdfast.laws import fit

QUIET = fit(simulated.study())
NOISY = fit(simulated.study(np.random.default_rng(0)))
RANKS = (8, 16, 32, 64, 128, 256)


def changed(laws, quantity, **values):
    """Laws as if constants of one of them had been found otherwise."""
    joint = laws.joint[quantity]
    new = {name: dataclasses.replace(joint.parameters[name], value=value) for name, value in values.items()}
    return dataclasses.replace(
        laws, joint=laws.joint | {quantity: dataclasses.replace(joint, parameters=joint.parameters | new)}
    )


def every(laws, ranks=RANKS):
    """(r, steps, forgetting, loss) of all there is to choose from."""
    low, high = laws.joint["kl_base_tuned"].domain["steps"]
    at = [(r, steps) for r in ranks for steps in range(int(low), int(high) + 1)]
    values = [
        (
            laws.joint["kl_base_tuned"].predict(trainable_params=r * simulated.PARAMS_PER_RANK, steps=steps).mean,
            laws.joint["target_nll"].predict(trainable_params=r * simulated.PARAMS_PER_RANK, steps=steps).mean,
        )
        for r, steps in at
    ]
    return at, np.array(values)


def undominated(laws):
    """Those of `every` that none beats, by comparing each with all."""
    at, values = every(laws)
    no_worse = (values[None, :, :] <= values[:, None, :]).all(axis=2)
    better = (values[None, :, :] < values[:, None, :]).any(axis=2)
    return {place for place, beaten in zip(at, (no_worse & better).any(axis=1), strict=True) if not beaten}


CASES = {
    "as simulated": NOISY,
    "rank is dear": changed(NOISY, "kl_base_tuned", x=0.4),
    "rank is cheap": changed(NOISY, "kl_base_tuned", x=0.02),
    "steps are dear": changed(NOISY, "kl_base_tuned", x=0.01, y=0.9),
    "loss bends": changed(NOISY, "target_nll", x=0.3, y=0.2),
}


@pytest.mark.parametrize("laws", CASES.values(), ids=CASES)
def test_the_whole_frontier_is_what_comparing_each_with_all_finds(laws, monkeypatch):
    monkeypatch.setattr(choices, "MOST", 10**6)
    found = frontier(laws)
    assert {(choice.r, choice.steps) for choice in found} == undominated(laws)
    assert len(found) == len({(choice.r, choice.steps) for choice in found})


@pytest.mark.parametrize("laws", CASES.values(), ids=CASES)
def test_a_readable_frontier_is_an_even_part_of_the_whole_with_both_ends(laws):
    found = frontier(laws)
    _, values = every(laws)
    forgetting = np.array([choice.forgetting.mean for choice in found])
    loss = np.array([choice.target_nll.mean for choice in found])
    assert len(found) <= 24
    assert {(choice.r, choice.steps) for choice in found} <= undominated(laws)
    assert (np.diff(forgetting) > 0).all()
    assert (np.diff(loss) < 0).all()
    assert forgetting[0] == pytest.approx(values[:, 0].min(), rel=1e-12)
    assert loss[-1] == pytest.approx(values[:, 1].min(), rel=1e-12)


def test_thinned_choices_are_spread_evenly():
    forgetting = np.array([choice.forgetting.mean for choice in frontier(NOISY)])
    gaps = np.diff(forgetting) / np.ptp(forgetting)
    assert len(forgetting) == 24
    assert gaps.max() < 2 / 23


def test_a_choice_is_what_the_laws_predict_of_it():
    for choice in frontier(NOISY):
        at = {"trainable_params": choice.r * simulated.PARAMS_PER_RANK, "steps": choice.steps}
        assert choice.trainable_params == at["trainable_params"]
        for prediction, quantity in ((choice.forgetting, "kl_base_tuned"), (choice.target_nll, "target_nll")):
            alone = NOISY.joint[quantity].predict(**at)
            assert (prediction.mean, prediction.stderr) == pytest.approx((alone.mean, alone.stderr), rel=1e-12)
            assert (prediction.scatter, prediction.dof) == pytest.approx((alone.scatter, alone.dof))
        assert not choice.extrapolates


def test_costs_stand_beside_each_choice():
    known = dataclasses.replace(NOISY, base_params=1e9)
    for choice in frontier(known, seconds_per_token=0.001):
        assert choice.tokens == choice.steps * 16384
        assert choice.flop == pytest.approx(choice.tokens * (4e9 + 6 * choice.trainable_params))
        assert choice.seconds == pytest.approx(choice.tokens * 0.001)
    bare = frontier(dataclasses.replace(known, tokens_per_step=None))[0]
    assert (bare.tokens, bare.flop, bare.seconds) == (None, None, None)
    json.dumps(bare.to_dict(), allow_nan=False)


def test_one_rank_or_one_number_of_parameters_leaves_only_steps_to_choose(monkeypatch):
    monkeypatch.setattr(choices, "MOST", 10**6)
    by_rank = frontier(NOISY, r=32)
    assert {(choice.r, choice.steps) for choice in by_rank} == {(32, steps) for steps in range(55, 261)}
    by_params = frontier(NOISY, trainable_params=32 * simulated.PARAMS_PER_RANK)
    assert by_params == by_rank
    between = frontier(NOISY, trainable_params=27e6)
    assert {(choice.r, choice.trainable_params) for choice in between} == {(11, 27_000_000)}


def test_what_was_never_run_is_told_apart():
    assert all(choice.extrapolates for choice in frontier(NOISY, r=512))
    assert not any(choice.extrapolates for choice in frontier(NOISY, r=100))


def test_of_equals_the_fewest_parameters_are_taken():
    laws = changed(changed(NOISY, "target_nll", x=0.0), "kl_base_tuned", x=0.0)
    assert {choice.r for choice in frontier(laws)} == {8}


def test_forgetting_is_kl_where_there_is_kl():
    assert measure_of_forgetting(NOISY) == "kl_base_tuned"
    hard = {name: fitted for name, fitted in NOISY.joint.items() if name != "kl_base_tuned"}
    assert measure_of_forgetting(dataclasses.replace(NOISY, joint=hard)) == "hard_cross_entropy"
    with pytest.raises(FitError, match="got laws of target_nll, expected kl_base_tuned or hard_cross_entropy"):
        frontier(dataclasses.replace(NOISY, joint={"target_nll": NOISY.joint["target_nll"]}))


def test_a_rank_that_does_not_say_how_many_parameters_is_refused():
    with pytest.raises(FitError, match="per rank differ"):
        frontier(dataclasses.replace(QUIET, params_per_rank=None))
