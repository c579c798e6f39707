"""Shares of items, and how they change when the same items are put to another model: intervals, exact tests, power.

The unit is the item, asked once of each model. Two models' answers to one item are a pair, and only items on which the
pair differs say anything of a change: hence McNemar's test and Newcombe's interval, not two intervals side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtri

from holdfast.stats import Estimate

BoolArray = npt.NDArray[np.bool_]

SIGNIFICANT = 0.05
POWER = 0.8


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of n items."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """Count / n; nan without any item."""
        return self.count / self.n if self.n else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval, which keeps its level near 0 and 1 and for few items; nan without any.

        Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
        """
        if not self.n:
            return math.nan, math.nan
        z = float(ndtri((1 + level) / 2))
        share, spread = self.value, z * z / self.n
        middle = (share + spread / 2) / (1 + spread)
        margin = z / (1 + spread) * math.sqrt(share * (1 - share) / self.n + spread / (4 * self.n))
        low = 0.0 if self.count == 0 else middle - margin  # exactly, whatever rounding says
        high = 1.0 if self.count == self.n else middle + margin
        return low, high

    def __str__(self) -> str:
        return f"{percent(self)} ({self.count:,} of {self.n:,})"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        low, high = self.interval()
        known = self.n > 0
        return {
            "value": self.value if known else None,
            "count": self.count,
            "n": self.n,
            "interval_95": [low, high] if known else None,
        }


@dataclass(frozen=True, kw_only=True)
class PairedShares:
    """One property of the same items under two models: `lost` only the base has it, `gained` only the tuned."""

    both: int
    lost: int
    gained: int
    neither: int

    @classmethod
    def of(cls, *, base: BoolArray, tuned: BoolArray) -> PairedShares:
        """Counted over items in the same order."""
        return cls(
            both=int((base & tuned).sum()), lost=int((base & ~tuned).sum()), gained=int((~base & tuned).sum()),
            neither=int((~base & ~tuned).sum()),
        )  # fmt: skip

    @property
    def n(self) -> int:
        """Items."""
        return self.both + self.lost + self.gained + self.neither

    @property
    def base(self) -> Share:
        """The base's share."""
        return Share(count=self.both + self.lost, n=self.n)

    @property
    def tuned(self) -> Share:
        """The tuned model's share."""
        return Share(count=self.both + self.gained, n=self.n)

    @property
    def kept(self) -> Share:
        """Of those the base has, the share the tuned model has too."""
        return Share(count=self.both, n=self.both + self.lost)

    @property
    def forgotten(self) -> Share:
        """Of those the base has, the share the tuned model has no more."""
        return Share(count=self.lost, n=self.both + self.lost)

    @property
    def change(self) -> float:
        """Tuned share − base share; nan without any item."""
        return (self.gained - self.lost) / self.n if self.n else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of the change, paired by item: Newcombe's square-and-add of two Wilson intervals, correlated by φ.

        Keeps its level where shares are near 0 or 1, where few items differ, and for few items; nan without any.
        Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
        paired data", method 10.
        """
        if not self.n:
            return math.nan, math.nan
        base, tuned = self.base, self.tuned
        (low_b, high_b), (low_t, high_t) = base.interval(level), tuned.interval(level)
        down_b, up_b, down_t, up_t = base.value - low_b, high_b - base.value, tuned.value - low_t, high_t - tuned.value
        phi = self._phi()
        below = down_t**2 - 2 * phi * down_t * up_b + up_b**2
        above = up_t**2 - 2 * phi * up_t * down_b + down_b**2
        return self.change - math.sqrt(max(below, 0.0)), self.change + math.sqrt(max(above, 0.0))

    def _phi(self) -> float:
        """The two answers' correlation, a positive one drawn towards 0 as Newcombe has it."""
        product = self.both * self.neither - self.lost * self.gained
        margins = (
            (self.both + self.lost) * (self.gained + self.neither) * (self.both + self.gained)
            * (self.lost + self.neither)
        )  # fmt: skip
        if margins == 0:
            return 0.0
        drawn = max(product - self.n / 2, 0.0) if product > 0 else product
        return drawn / math.sqrt(margins)

    @property
    def p_value(self) -> float:
        """McNemar's exact test of there being no change, two-sided: are losses and gains as heads and tails?

        Binomial over the items that differ; 1 where none does.
        """
        return min(1.0, 2 * float(bdtr(min(self.lost, self.gained), self.lost + self.gained, 0.5)))

    @property
    def minimum_detectable_effect(self) -> float:
        """The smallest change of the share that so many items show four times in five; nan where none does.

        (z₀.₉₇₅ + z₀.₈) √(share that differ / n), and at least the six one-sided differences without which the exact
        test never says anything. Source: Connor 1987, "Sample size for testing differences in proportions for the
        paired-sample design".
        """
        if not self.n:
            return math.nan
        discordant = (self.lost + self.gained) / self.n
        reach = float(ndtri(1 - SIGNIFICANT / 2) + ndtri(POWER))
        least = max(reach * math.sqrt(discordant / self.n), LEAST_DIFFERENCES / self.n)
        return least if least <= 1 else math.nan

    @property
    def unseen(self) -> str:
        """What these items cannot show: `below 4.2 points`, or any change at all, `with so few items`."""
        least = self.minimum_detectable_effect
        return "with so few items" if math.isnan(least) else f"below {100 * least:.1f} points"

    @property
    def verdict(self) -> str:
        """`identical` where no item differs, `fell`, `rose`, or `not measurable` with so many items."""
        if self.lost == self.gained == 0:
            return "identical"
        if self.p_value >= SIGNIFICANT:
            return "not measurable"
        return "fell" if self.lost > self.gained else "rose"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        low, high = self.interval()
        known, least = self.n > 0, self.minimum_detectable_effect
        return {
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "both": self.both,
            "lost": self.lost,
            "gained": self.gained,
            "neither": self.neither,
            "change": self.change if known else None,
            "change_interval_95": [low, high] if known else None,
            "p_value": self.p_value,
            "minimum_detectable_effect": None if math.isnan(least) else least,
            "verdict": self.verdict,
        }


LEAST_DIFFERENCES = 6
"""All on one side, these are the fewest that McNemar's exact test calls significant: 2 · 0.5⁶ = .03."""


def percent(share: Share) -> str:
    """In per cent, with one decimal; `unknown` without any item."""
    return f"{100 * share.value:.1f} %" if share.n else "unknown"


def mean_over_items(values: npt.ArrayLike) -> Estimate:
    """The mean of one number an item, and its standard error; nan where there are too few."""
    each = np.asarray(values, dtype=np.float64)
    n = len(each)
    value = float(each.mean()) if n else math.nan
    return Estimate(value=value, stderr=float(each.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan, n=n)


def chance_adjusted_forgetting(*, base: BoolArray, tuned: BoolArray, options: npt.ArrayLike) -> Estimate:
    """Share of items lost (right → wrong), less what guessing alone would lose.

        max(F − (1 − a_base)(1 − a_tuned) / (k − 1), 0)

    F is the share lost, a are accuracies, k the options of an item (1 / (k − 1) is averaged where they differ): a model
    that guesses is right at times and then loses that. Exact for models that guess all, too small a correction where
    both guess the same items and know the same others. The error is over items, by each item's influence, before the
    maximum is taken.
    Source: Harmon et al. 2025, arXiv 2510.17776.
    """
    lost = (base & ~tuned).astype(np.float64)
    n = len(lost)
    if n == 0:
        return Estimate(value=math.nan, stderr=math.nan, n=0)
    guess = 1 / (np.asarray(options, dtype=np.float64) - 1)
    wrong_base, wrong_tuned = 1 - base.astype(np.float64), 1 - tuned.astype(np.float64)
    mean = float(guess.mean()), float(wrong_base.mean()), float(wrong_tuned.mean())
    value = float(lost.mean()) - mean[0] * mean[1] * mean[2]
    parts = lost - guess * mean[1] * mean[2] - mean[0] * wrong_base * mean[2] - mean[0] * mean[1] * wrong_tuned
    stderr = float(parts.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(value=max(value, 0.0), stderr=stderr, n=n)


def chance_adjusted_agreement(*, same: BoolArray, options: npt.ArrayLike) -> Estimate:
    """Share of equal choices above what guessing would give: the mean of ([same] − 1/k) / (1 − 1/k) over items.

    1 when no choice moved, 0 for one that has nothing to do with the other.
    """
    guess = 1 / np.asarray(options, dtype=np.float64)
    return mean_over_items((same - guess) / (1 - guess))
