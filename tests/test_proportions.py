"""Shares, paired shares and chance: against SciPy, by simulated coverage, and by relations that must hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from holdfast.proportions import (
    PairedShares,
    Share,
    chance_adjusted_agreement,
    chance_adjusted_forgetting,
    mean_over_items,
)

counts = st.integers(0, 60)


@given(counts, counts)
def test_wilson_is_scipys(count: int, more: int) -> None:
    share = Share(count=count, n=count + more)
    if share.n == 0:
        assert all(math.isnan(end) for end in share.interval())
        assert share.to_dict()["value"] is None
        return
    expected = binomtest(count, share.n).proportion_ci(confidence_level=0.9, method="wilson")
    assert share.interval(0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(counts, counts, counts, counts)
def test_mcnemar_is_an_exact_binomial_test_of_the_items_that_differ(both: int, lost: int, gained: int, no: int) -> None:
    pair = PairedShares(both=both, lost=lost, gained=gained, neither=no)
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert pair.p_value == pytest.approx(expected, abs=1e-12)


@given(counts, counts, counts, counts)
def test_swapping_the_models_mirrors_the_change(both: int, lost: int, gained: int, neither: int) -> None:
    pair = PairedShares(both=both, lost=lost, gained=gained, neither=neither)
    mirrored = PairedShares(both=both, lost=gained, gained=lost, neither=neither)
    if pair.n == 0:
        assert math.isnan(pair.change)
        return
    low, high = pair.interval()
    assert mirrored.interval() == pytest.approx((-high, -low), abs=1e-12)
    assert -1 - 1e-12 <= low <= pair.change <= high <= 1 + 1e-12
    assert pair.minimum_detectable_effect == mirrored.minimum_detectable_effect


@given(counts, counts, counts, counts)
def test_no_change_larger_than_all_of_it_is_asked_for(both: int, lost: int, gained: int, neither: int) -> None:
    """Fewer than six items show nothing whatever they say; more, some change of a share."""
    pair = PairedShares(both=both, lost=lost, gained=gained, neither=neither)
    least = pair.minimum_detectable_effect
    unknown = math.isnan(least)
    assert unknown or 6 / pair.n <= least <= 1
    assert unknown or pair.n > 5
    assert unknown == (pair.unseen == "with so few items")
    assert pair.to_dict()["minimum_detectable_effect"] == (None if unknown else least)


def test_counting_pairs() -> None:
    base, tuned = np.array([1, 1, 1, 0, 0, 0, 0], bool), np.array([1, 0, 0, 1, 0, 0, 0], bool)
    pair = PairedShares.of(base=base, tuned=tuned)
    assert (pair.both, pair.lost, pair.gained, pair.neither) == (1, 2, 1, 3)
    assert (pair.base.count, pair.tuned.count, pair.n) == (3, 2, 7)
    assert pair.forgotten == Share(count=2, n=3)
    assert pair.kept == Share(count=1, n=3)
    assert pair.change == pytest.approx(-1 / 7)


@pytest.mark.parametrize(
    ("items", "base", "kept", "gained", "most"),
    [(50, 0.64, 0.75, 0.05, 0.97), (200, 0.3, 0.85, 0.06, 0.97), (1000, 0.5, 0.7, 0.3, 0.97), (40, 0.95, 0.97, 0.3, 1)],
)
def test_the_paired_interval_covers_the_truth(items: int, base: float, kept: float, gained: float, most: float) -> None:
    """Nominal 95 %; simulated items. With few items and shares near 1 it is too wide rather than too narrow."""
    rng = np.random.default_rng(0)
    truth = base * kept + (1 - base) * gained - base
    cells = [base * kept, base * (1 - kept), (1 - base) * gained, (1 - base) * (1 - gained)]
    drawn = rng.multinomial(items, cells, size=4000)
    covered = 0
    for both, lost, gain, neither in drawn.tolist():
        low, high = PairedShares(both=both, lost=lost, gained=gain, neither=neither).interval()
        covered += low <= truth <= high
    assert 0.93 <= covered / len(drawn) <= most


def test_wilson_covers_for_few_items_near_zero() -> None:
    """Averaged over the shares near 0 that a safe model may have: single ones swing with the grid of counts."""
    rng = np.random.default_rng(1)
    truths = rng.uniform(0.01, 0.3, 4000)
    drawn = rng.binomial(50, truths)
    covered = [
        (interval := Share(count=int(c), n=50).interval())[0] <= p <= interval[1]
        for c, p in zip(drawn, truths, strict=True)
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_the_detectable_effect_is_detected_four_times_in_five_and_no_effect_is_not_called_one() -> None:
    rng = np.random.default_rng(2)
    items, moved = 400, 0.2
    effect = PairedShares(both=200, lost=40, gained=40, neither=120).minimum_detectable_effect
    found, false = 0, 0
    for _ in range(2000):
        lost, gained, _rest = rng.multinomial(items, [(moved + effect) / 2, (moved - effect) / 2, 1 - moved])
        found += PairedShares(both=200, lost=int(lost), gained=int(gained), neither=0).verdict == "fell"
        lost, gained, _rest = rng.multinomial(items, [moved / 2, moved / 2, 1 - moved])
        false += PairedShares(both=200, lost=int(lost), gained=int(gained), neither=0).verdict != "not measurable"
    assert found / 2000 == pytest.approx(0.8, abs=0.06)
    assert false / 2000 <= 0.055


def test_verdicts() -> None:
    assert PairedShares(both=5, lost=0, gained=0, neither=5).verdict == "identical"
    assert PairedShares(both=5, lost=5, gained=0, neither=5).verdict == "not measurable"
    assert PairedShares(both=5, lost=6, gained=0, neither=5).verdict == "fell"
    assert PairedShares(both=5, lost=1, gained=9, neither=5).verdict == "rose"
    assert PairedShares(both=5, lost=0, gained=0, neither=5).minimum_detectable_effect == 0.6


def test_guessing_loses_nothing_beyond_chance() -> None:
    """Items of 4 and 5 options, each guessed anew by both models."""
    rng = np.random.default_rng(3)
    options = rng.choice([4, 5], 40_000)
    base, tuned = (rng.random(40_000) < 1 / options for _ in range(2))
    assert (base & ~tuned).mean() > 0.15
    assert chance_adjusted_forgetting(base=base, tuned=tuned, options=options).value < 0.004


def test_what_is_lost_beyond_chance_has_the_error_of_resampled_items() -> None:
    rng = np.random.default_rng(5)
    options = rng.choice([3, 4, 5], 4000)
    base = rng.random(4000) < 0.6
    tuned = base & (rng.random(4000) < 0.7)
    estimate = chance_adjusted_forgetting(base=base, tuned=tuned, options=options)
    guess, lost = np.mean(1 / (options - 1)), np.mean(base & ~tuned)
    assert estimate.value == pytest.approx(lost - guess * np.mean(~base) * np.mean(~tuned), abs=1e-12)
    resampled = [
        chance_adjusted_forgetting(base=base[i], tuned=tuned[i], options=options[i]).value
        for i in (rng.integers(0, 4000, 4000) for _ in range(400))
    ]
    assert estimate.stderr == pytest.approx(np.std(resampled), rel=0.12)


def test_agreement_by_chance_is_none_and_sameness_is_one() -> None:
    rng = np.random.default_rng(4)
    options = rng.choice([3, 4, 5], 50_000)
    base, tuned = (rng.integers(0, options) for _ in range(2))
    assert abs(chance_adjusted_agreement(same=base == tuned, options=options).value) < 0.02
    assert chance_adjusted_agreement(same=np.ones(50_000, bool), options=options).value == 1.0


def test_a_mean_over_items_knows_when_it_knows_nothing() -> None:
    assert math.isnan(mean_over_items([]).value)
    assert math.isnan(mean_over_items([1.0]).stderr)
    estimate = mean_over_items([1.0, 2.0, 4.0])
    assert estimate.stderr == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
