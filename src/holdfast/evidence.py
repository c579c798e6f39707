"""What was measured of one tuned model on one text, and what it says: means, tails, kinds, verdicts, comparisons.

Sums over scored tokens per document, and a few numbers a token: everything here is computed from them, by division at
the very end. No torch: a report can be read, drawn and compared on a laptop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from holdfast.stats import Estimate, paired_difference, ratio_of_sums, t_quantile
from holdfast.store import QUANTITIES, Role

Verdict = Literal[
    "within budget", "over budget", "not measurable with this much text", "forgetting measured", "identical",
]  # fmt: skip
UNMEASURABLE: Verdict = "not measurable with this much text"

ALIKE = 40
"""Characters before a passage's token by which two passages are the same."""

QUANTILES = (0.5, 0.95, 0.99, 0.999)
"""Of the KL of single tokens, reported beside its mean."""

SIDE = 0.95
"""A verdict is given when the mean lies on one side of the budget with this confidence."""

POWER = 0.8
"""Probability with which an effect of the minimum detectable size is detected."""

KINDS = ("number", "name", "punctuation", "common word", "rarer word", "mark")
"""Kinds of token: `number` has a digit; `name` is of a capitalised word inside a sentence; `punctuation` has neither
letter nor digit; of all other words the `common` are the most frequent that make up half of them in the text; a `mark`
is a special token or part of a template."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A token in its context whose probability fell: `base_nll` and `nll` are −ln of it, base and tuned.

    Each model would rather have said `base_says` and `tuned_says`, with these probabilities. `place` is the document's.
    """

    place: str
    before: str
    token: str
    after: str
    base_nll: float
    nll: float
    base_says: str
    base_says_probability: float
    tuned_says: str
    tuned_says_probability: float

    @property
    def fall(self) -> float:
        """How much less probable the tuned model finds the token, between −1 and 1."""
        return math.exp(-self.base_nll) - math.exp(-self.nll)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTokens:
    """A few numbers of every scored token: which document and target it has, which kind it is, and its KL.

    `kind` is an index into `KINDS`; words are all `rarer word` until `CorpusReport.by_kind` counts them.
    """

    document: Int[np.ndarray, " t"]
    target: Int[np.ndarray, " t"]
    kind: Int[np.ndarray, " t"]
    kl_base_tuned: Float[np.ndarray, " t"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CorpusReport:
    """What one tuned model keeps of the base on one text: sums over scored tokens, per document.

    `sums[quantity]` and `count` are arrays over documents, float64 and int64; sums of several reports over other
    documents add up, and a mean is one division at the end. Each quantity of `QUANTITIES` is also a property that gives
    an `Estimate` clustered by document:

        report.kl_base_tuned          # 0.083 ± 0.004 nats per token, n = 62 documents

    `floor` is the rounding of the arithmetic, nats per token, below which a KL says nothing.
    """

    corpus: str
    role: Role
    floor: float
    places: tuple[str, ...]
    count: Int[np.ndarray, " documents"]
    sums: Mapping[str, Float[np.ndarray, " documents"]]
    tokens: ScoredTokens | None
    passages: tuple[Passage, ...]

    def estimate(self, quantity: str) -> Estimate:
        """Nats per scored token (`agreement`: share), with a standard error clustered by document."""
        if quantity == "excess_nll":  # a difference of paired sums: the documents' own difficulty cancels
            return ratio_of_sums(self.sums["nll"] - self.sums["base_nll"], self.count)
        return ratio_of_sums(self.sums[quantity], self.count)

    @property
    def documents(self) -> int:
        """Documents with a scored token."""
        return int((self.count > 0).sum())

    @property
    def scored_tokens(self) -> int:
        """Tokens that every mean here is over."""
        return int(self.count.sum())

    @property
    def nll(self) -> Estimate:
        """Loss of the tuned model on the text itself."""
        return self.estimate("nll")

    @property
    def base_nll(self) -> Estimate:
        """Loss of the base on the text itself."""
        return self.estimate("base_nll")

    @property
    def excess_nll(self) -> Estimate:
        """`nll` minus `base_nll`, paired by document; negative where tuning helped on this text."""
        return self.estimate("excess_nll")

    @property
    def cross_entropy(self) -> Estimate:
        """Soft forgetting loss, `base_entropy` plus `kl_base_tuned`."""
        return self.estimate("cross_entropy")

    @property
    def hard_cross_entropy(self) -> Estimate:
        """Hard forgetting loss, the paper's: loss on the base's own most likely next token."""
        return self.estimate("hard_cross_entropy")

    @property
    def base_entropy(self) -> Estimate:
        """Entropy of the base's predictions: the floor of `cross_entropy`."""
        return self.estimate("base_entropy")

    @property
    def kl_base_tuned(self) -> Estimate:
        """Forgetting: KL(base‖tuned), 0 exactly when nothing moved."""
        return self.estimate("kl_base_tuned")

    @property
    def agreement(self) -> Estimate:
        """Share of next-token choices that are still the base's."""
        return self.estimate("agreement")

    @property
    def identical(self) -> bool:
        """No scored token's distribution moved at all."""
        return not np.any(self.sums["kl_base_tuned"])

    @property
    def minimum_detectable_effect(self) -> float:
        """The smallest difference of forgetting that this much text shows four times in five, nats per token.

        (t_0.975 + t_0.8) · stderr, with documents − 1 degrees of freedom, and at least `floor`; nan for one document.
        """
        kl = self.kl_base_tuned
        effect = (t_quantile(0.975, kl.n - 1) + t_quantile(POWER, kl.n - 1)) * kl.stderr
        return effect if math.isnan(effect) else max(self.floor, effect)

    def verdict(self, max_forgetting: float | None = None) -> Verdict:
        """Whether forgetting is within a budget, as far as this much text can tell.

        `within budget` and `over budget` are said with 95 % confidence each. Without a budget: `forgetting measured`
        when it is at least the minimum detectable effect. Whatever cannot be told apart is `not measurable with this
        much text`, never nothing; only a model that moved no prediction at all is `identical`.
        """
        if self.identical:
            return "identical" if max_forgetting is None else "within budget"
        kl = self.kl_base_tuned
        if max_forgetting is None:
            return "forgetting measured" if kl.value >= self.minimum_detectable_effect else UNMEASURABLE
        low, high = kl.interval(2 * SIDE - 1)
        low, high = low - self.floor, high + self.floor
        return "within budget" if high <= max_forgetting else "over budget" if low > max_forgetting else UNMEASURABLE

    def quantile(self, probability: float) -> Estimate:
        """What the KL of single tokens stays below with this probability, clustered by document.

        The error is Woodruff's: the share of tokens below the value has a clustered error, and half the distance
        between the values at either end of its 95 % interval, in units of t, is the value's. nan where an end lies
        outside 0 to 1; the value too where no token lies above it: too few for so far a tail.

        Raises:
            ValueError: the report carries no single tokens (one made during training).
        """
        tokens = self._single_tokens()
        values = np.sort(tokens.kl_base_tuned)
        if math.ceil(probability * len(values)) >= len(values):
            return Estimate(value=math.nan, stderr=math.nan, n=self.documents)
        value = _value_at(values, probability)
        below = np.bincount(tokens.document[tokens.kl_base_tuned <= value], minlength=len(self.count))
        share = ratio_of_sums(below, self.count)
        margin = t_quantile(0.975, share.n - 1) * share.stderr
        low, high = probability - margin, probability + margin
        known = margin > 0 and low > 0 and high < 1
        width = float(_value_at(values, high) - _value_at(values, low)) if known else math.nan
        return Estimate(value=float(value), stderr=width / 2 / t_quantile(0.975, share.n - 1), n=share.n)

    def by_kind(self) -> dict[str, tuple[Estimate, int]]:
        """Forgetting by kind of token, with how many there are; kinds in the order of `KINDS`, absent ones left out.

        Raises:
            ValueError: the report carries no single tokens.
        """
        tokens = self._single_tokens()
        kind = np.where(_common(tokens), KINDS.index("common word"), tokens.kind)
        found = {}
        for index, name in enumerate(KINDS):
            document, kl = tokens.document[kind == index], tokens.kl_base_tuned[kind == index]
            if len(kl):
                counts = np.bincount(document, minlength=len(self.count))
                found[name] = (ratio_of_sums(np.bincount(document, kl, minlength=len(self.count)), counts), len(kl))
        return found

    def compare(self, other: CorpusReport) -> tuple[Estimate, float]:
        """How much more this model forgot than `other` did on the same documents, and a two-sided p-value.

        Paired: what makes a document hard is in both and cancels. The p-value is that of Student's t on the
        document-clustered difference. Only documents that both were measured on count.

        Raises:
            ValueError: they have no document in common, or one of a different length.
        """
        mine = {place: i for i, place in enumerate(self.places)}
        pairs = [(mine[place], j) for j, place in enumerate(other.places) if place in mine]
        a, b = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
        if not pairs or (self.count[a] != other.count[b]).any():
            raise ValueError(f"got measurements of {self.corpus} on other documents, expected the same text and plan")
        return paired_difference(self.sums["kl_base_tuned"][a], other.sums["kl_base_tuned"][b], self.count[a])

    def _single_tokens(self) -> ScoredTokens:
        if self.tokens is None:
            raise ValueError(f"got a report on {self.corpus} without single tokens, expected one made by measure")
        return self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Estimates, not sums: what JSON can hold."""
        single = self.tokens is not None
        tails = {f"{q:g}": self.quantile(q).to_dict() for q in QUANTILES} if single else {}
        kinds = self.by_kind().items() if single else ()
        return {
            "corpus": self.corpus,
            "role": self.role,
            "documents": self.documents,
            "scored_tokens": self.scored_tokens,
            **{quantity: self.estimate(quantity).to_dict() for quantity in QUANTITIES},
            "kl_quantiles": tails,
            "kl_by_kind": {name: {**kl.to_dict(), "scored_tokens": n} for name, (kl, n) in kinds},
            "minimum_detectable_effect": _or_none(self.minimum_detectable_effect),
            "passages": [{**vars(passage), "fall": passage.fall} for passage in self.passages],
        }

    def __str__(self) -> str:
        return (
            f"{self.corpus}: forgetting {self.kl_base_tuned} nats/token, agreement {self.agreement} "
            f"({self.documents} documents, {self.scored_tokens:,} tokens)"
        )


def joined(parts: Sequence[CorpusReport], *, passages: int) -> CorpusReport:
    """Reports of one model on disjoint documents of one text, as one; the so many passages that fell most are kept."""
    first = parts[0]
    places = tuple(place for part in parts for place in part.places)
    starts = np.cumsum([0, *(len(part.places) for part in parts)])
    tables = [part.tokens for part in parts if part.tokens is not None]
    tokens = None
    if len(tables) == len(parts):
        columns = {
            name: np.concatenate([getattr(table, name) for table in tables])
            for name in ("target", "kind", "kl_base_tuned")
        }
        document = np.concatenate([table.document + start for table, start in zip(tables, starts, strict=False)])
        tokens = ScoredTokens(document=document, **columns)
    return replace(
        first,
        places=places,
        count=np.concatenate([part.count for part in parts]),
        sums={name: np.concatenate([part.sums[name] for part in parts]) for name in first.sums},
        tokens=tokens,
        passages=most_fallen([passage for part in parts for passage in part.passages], most=passages),
    )


def most_fallen(passages: Iterable[Passage], *, most: int) -> tuple[Passage, ...]:
    """The so many that fell most, one of each alike: what every document says again, a template, is shown once."""
    alike: dict[tuple[str, str], Passage] = {}
    for passage in sorted(passages, key=lambda passage: -passage.fall):
        alike.setdefault((passage.before[-ALIKE:], passage.token), passage)
    return tuple(alike.values())[:most]


def _value_at(ordered: np.ndarray, probability: float) -> Any:
    """The smallest value that at least this share of them does not exceed."""
    return ordered[min(max(math.ceil(probability * len(ordered)) - 1, 0), len(ordered) - 1)]


def _common(tokens: ScoredTokens) -> np.ndarray:
    """Which tokens are common words: the most frequent targets that make up half of all words, ties by number."""
    words = tokens.kind == KINDS.index("rarer word")
    names, counts = np.unique(tokens.target[words], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    reached = np.cumsum(counts[order]) - counts[order]  # words before this one
    common = names[order][reached < counts.sum() / 2]
    found: np.ndarray = words & np.isin(tokens.target, common)
    return found


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
