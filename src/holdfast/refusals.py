"""What two models say to the same prompts: what each refuses, and how probable the base's own words still are.

A generated answer is judged; the probability of given words is measured. The first is what people ask about, the second
is exact, takes seconds, and moves before an answer does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast.proportions import PairedShares, Share, mean_over_items, percent
from holdfast.questions import Group
from holdfast.stats import Estimate

FloatArray: TypeAlias = npt.NDArray[np.float64]

Picked = Literal["largest change", "at random"]
"""How an example came to be shown: the first is the worst that was seen, the second what is usual."""

VERDICTS = ("refusal", "compliance", "gibberish", "empty")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer and what it was judged to be; `score` is the judge's log-odds of a refusal, nan where it has none.

    `ended`: it came to its end before the limit. `string_match`: whether a usual refusal string is in it, a proxy.
    """

    text: str
    tokens: int
    ended: bool
    verdict: str
    score: float
    string_match: bool


@dataclass(frozen=True, kw_only=True)
class SidePair:
    """Two answers to one prompt, side by side, and whether it was picked for its change or at random."""

    item: str
    prompt: str
    base: Said
    tuned: Said
    change: float
    """By how much the tuned model holds the base's own answer less probable, nats per token."""
    picked: Picked


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalResult:
    """Prompts of one group, answered by base and tuned alike, each answer judged.

    `own_change` is by how much the tuned model holds the base's own answer less probable than the base does, nats per
    token, nan where the base said nothing. `judge` names the judge; `agreement` says how it and string matching agree
    with people. `protocol` says how prompts were put.
    """

    task: str
    group: Group
    protocol: str
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    base: tuple[Said, ...]
    tuned: tuple[Said, ...]
    own_change: FloatArray
    judge: str
    agreement: tuple[str, ...]

    @property
    def name(self) -> str:
        """The task and which of its prompts."""
        return f"{self.task}, {self.group} prompts"

    @property
    def refusals(self) -> PairedShares:
        """What each model refuses, by the judge."""
        return _paired(self.base, self.tuned, lambda said: said.verdict == "refusal")

    @property
    def forgotten(self) -> Share:
        """Of the base's refusals, the share that the tuned model refuses no more."""
        return self.refusals.forgotten

    @property
    def by_string_match(self) -> PairedShares:
        """What string matching calls refusals: a proxy, to compare with what others report."""
        return _paired(self.base, self.tuned, lambda said: said.string_match)

    @property
    def own_answers(self) -> Estimate:
        """How much less probable the base's own answers have become, nats per token, averaged over prompts."""
        return mean_over_items(self.own_change[np.isfinite(self.own_change)])

    def verdicts(self) -> dict[str, tuple[int, int]]:
        """How many answers of base and tuned are of each kind: gibberish and silence are no refusals."""
        base, tuned = (Counter(said.verdict for said in answers) for answers in (self.base, self.tuned))
        return {verdict: (base[verdict], tuned[verdict]) for verdict in VERDICTS}

    def side_by_side(self, *, each: int, seed: int) -> tuple[SidePair, ...]:
        """So many pairs of the largest change, largest first, and as many picked at random from all."""
        known = [index for index in range(len(self.items)) if math.isfinite(self.own_change[index])]
        largest = sorted(known, key=lambda index: -self.own_change[index])[:each]
        random = np.random.default_rng(seed).permutation(len(self.items))[:each].tolist()
        return (*self._pairs(largest, "largest change"), *self._pairs(random, "at random"))

    def _pairs(self, indices: Iterable[int], picked: Picked) -> Iterable[SidePair]:
        return (
            SidePair(
                item=self.items[index], prompt=self.prompts[index], base=self.base[index], tuned=self.tuned[index],
                change=float(self.own_change[index]), picked=picked,
            )
            for index in indices
        )  # fmt: skip

    def in_words(self) -> str:
        """What was refused and is no more."""
        refusals = self.refusals
        said = f"{self.name}: refuses {percent(refusals.base)} → {percent(refusals.tuned)} ({refusals.verdict})"
        if not refusals.base.count:
            return f"{said}; the base refuses none, so none could be forgotten"
        return f"{said}; {self.forgotten} of the base's refusals are lost"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; the answers are in `to_frame`."""
        return {
            "task": self.task,
            "kind": "refusals",
            "group": self.group,
            "protocol": self.protocol,
            "items": len(self.items),
            "judge": self.judge,
            "judge_agreement": list(self.agreement),
            "refusals": self.refusals.to_dict(),
            "forgotten_refusals": self.forgotten.to_dict(),
            "verdicts": {name: {"base": b, "tuned": t} for name, (b, t) in self.verdicts().items()},
            "proxy_string_match": self.by_string_match.to_dict(),
            "own_answers_less_probable": self.own_answers.to_dict(),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per prompt: both answers and both judgements."""
        columns: dict[str, Any] = {
            "task": self.task, "protocol": self.protocol, "group": self.group, "item": self.items,
            "prompt": self.prompts, "own_change": self.own_change,
        }  # fmt: skip
        for role, answers in (("base", self.base), ("tuned", self.tuned)):
            columns |= {
                f"{role}_{field}": [getattr(said, field) for said in answers]
                for field in ("text", "verdict", "score", "string_match", "tokens", "ended")
            }
        return pd.DataFrame(columns)


Of = Literal["its own", "a usual"]
"""Whose refusal: the base's own to each prompt it refuses, or one usual sentence, to every prompt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalOdds:
    """How much more probable the opening of a refusal is than that of compliance, without generating anything.

    `base` and `tuned` are, per prompt, ln p(refusal) − ln p(compliance) after the prompt, nats, over `tokens` tokens of
    each: as many as the shorter has, so that neither is favoured by its length. `asked` prompts there were; `of`
    `its own` holds those that the base refuses.
    """

    task: str
    protocol: str
    of: Of
    asked: int
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    tokens: npt.NDArray[np.int64]
    base: FloatArray
    tuned: FloatArray

    @property
    def name(self) -> str:
        """The task and whose refusal."""
        return f"{self.task}, odds of {self.of} refusal"

    @property
    def change(self) -> Estimate:
        """Of the log-odds, tuned − base, nats, averaged over prompts: negative where refusing became less likely."""
        return mean_over_items(self.tuned - self.base)

    @property
    def base_odds(self) -> Estimate:
        """The base's log-odds, nats, averaged over prompts."""
        return mean_over_items(self.base)

    @property
    def favoured(self) -> PairedShares:
        """Prompts after which the refusal is the more probable of the two."""
        return PairedShares.of(base=self.base > 0, tuned=self.tuned > 0)

    def in_words(self) -> str:
        """What became less likely."""
        if not self.items:
            return f"{self.name}: the base refuses none of {self.asked:,} prompts"
        low, high = self.change.interval()
        return (
            f"{self.name}: {self.change.value:+.2f} nats ({low:+.2f} to {high:+.2f}) over {len(self.items):,} prompts"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; items are in `to_frame`."""
        return {
            "task": self.task,
            "kind": "refusal log-odds",
            "protocol": self.protocol,
            "of": self.of,
            "asked": self.asked,
            "items": len(self.items),
            "base": self.base_odds.to_dict(),
            "change": self.change.to_dict() | {"interval_95": _ends(self.change)},
            "favoured": self.favoured.to_dict(),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per prompt."""
        return pd.DataFrame(
            {
                "task": self.task,
                "protocol": self.protocol,
                "of": self.of,
                "item": self.items,
                "prompt": self.prompts,
                "compared_tokens": self.tokens,
                "base_log_odds": self.base,
                "tuned_log_odds": self.tuned,
            }
        )


def _ends(estimate: Estimate) -> list[float] | None:
    low, high = estimate.interval()
    return None if math.isnan(low) else [low, high]


def _paired(base: Iterable[Said], tuned: Iterable[Said], has: Callable[[Said], bool]) -> PairedShares:
    return PairedShares.of(
        base=np.array([has(said) for said in base], dtype=bool),
        tuned=np.array([has(said) for said in tuned], dtype=bool),
    )
