"""What tuned models answer where their base answered something else: the result of `holdfast.probe`.

No torch: a report can be read, drawn and compared on a laptop. Every share is counted over items that were put to both
models in the same form, in the same batches.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast.display import visible
from holdfast.forgetting import Finding
from holdfast.proportions import (
    PairedShares,
    Share,
    chance_adjusted_agreement,
    chance_adjusted_forgetting,
    percent,
)
from holdfast.questions import DESCRIBED, Protocol
from holdfast.refusals import Picked, RefusalOdds, RefusalResult
from holdfast.stats import Estimate

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MovedAnswer:
    """What base and tuned chose for one question, and whether it was picked for its change or at random."""

    item: str
    question: str
    right: str
    base: str
    tuned: str
    picked: Picked


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceResult:
    """Questions with choices, put to base and tuned alike: what each chose, and by which scores.

    `choices` are their texts, `answers` the indices of the right ones; `base_scores` and `tuned_scores` hold a number
    per choice of each item, as the protocol compares them.
    """

    task: str
    protocol: Protocol
    items: tuple[str, ...]
    questions: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    answers: IntArray
    base: IntArray
    tuned: IntArray
    base_scores: tuple[FloatArray, ...]
    tuned_scores: tuple[FloatArray, ...]

    @property
    def name(self) -> str:
        """The task with its protocol, for the same items scored in two ways are two results."""
        return f"{self.task}, by {self.protocol}"

    @property
    def options(self) -> IntArray:
        """How many choices each item has."""
        return np.array([len(choices) for choices in self.choices])

    @property
    def accuracy(self) -> PairedShares:
        """Right choices: of each model, and the change between them."""
        return PairedShares.of(base=self.base == self.answers, tuned=self.tuned == self.answers)

    @property
    def agreement(self) -> Share:
        """Items for which the tuned model chose what the base chose, right or wrong."""
        return Share(count=int((self.base == self.tuned).sum()), n=len(self.items))

    @property
    def moved_wrong(self) -> Share:
        """Items moved from one wrong choice to another: accuracy cannot see these."""
        wrong = (self.base != self.answers) & (self.tuned != self.answers)
        return Share(count=int((wrong & (self.base != self.tuned)).sum()), n=len(self.items))

    @property
    def chance_adjusted_forgetting(self) -> Estimate:
        """Items lost, less those that guessing alone would lose; see `proportions`."""
        return chance_adjusted_forgetting(
            base=self.base == self.answers, tuned=self.tuned == self.answers, options=self.options
        )

    @property
    def chance_adjusted_agreement(self) -> Estimate:
        """Agreement above what two models that guess would have; see `proportions`."""
        return chance_adjusted_agreement(same=self.base == self.tuned, options=self.options)

    def change(self) -> FloatArray:
        """How decidedly each item's choice moved: 0 where it did not.

        By how much the base preferred its choice to the tuned model's, plus the reverse; in the protocol's scores.
        """
        moves = zip(self.base, self.tuned, self.base_scores, self.tuned_scores, strict=True)
        return np.array([(before[b] - before[t]) + (after[t] - after[b]) for b, t, before, after in moves])

    def moved(self, *, each: int, seed: int) -> tuple[MovedAnswer, ...]:
        """So many items whose choice moved most decidedly, and as many picked at random from all."""
        change = self.change()
        largest = [i for i in np.argsort(-change, kind="stable")[:each].tolist() if change[i] > 0]
        random = np.random.default_rng(seed).permutation(len(self.items))[:each].tolist()
        picks: dict[Picked, list[int]] = {"largest change": largest, "at random": random}
        return tuple(
            MovedAnswer(
                item=self.items[i], question=self.questions[i], right=self.choices[i][self.answers[i]],
                base=self.choices[i][self.base[i]], tuned=self.choices[i][self.tuned[i]], picked=picked,
            )
            for picked, indices in picks.items()
            for i in indices
        )  # fmt: skip

    def in_words(self) -> str:
        """What accuracy says, and what it hides."""
        accuracy, moved = self.accuracy, Share(count=self.agreement.n - self.agreement.count, n=self.agreement.n)
        return (
            f"{self.name}: accuracy {percent(accuracy.base)} → {percent(accuracy.tuned)} ({_verdict(accuracy)}); "
            f"{percent(moved)} of answers are no longer the base's"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; items are in `to_frame`."""
        return {
            "task": self.task,
            "kind": "choices",
            "protocol": {"scoring": self.protocol, "description": DESCRIBED[self.protocol]},
            "items": len(self.items),
            "accuracy": self.accuracy.to_dict(),
            "agreement": self.agreement.to_dict(),
            "lost": self.accuracy.lost,
            "gained": self.accuracy.gained,
            "moved_wrong": self.moved_wrong.to_dict(),
            "chance_adjusted_forgetting": self.chance_adjusted_forgetting.to_dict(),
            "chance_adjusted_agreement": self.chance_adjusted_agreement.to_dict(),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per item: what was right, what each model chose, and every score."""
        return pd.DataFrame(
            {
                "task": self.task,
                "protocol": self.protocol,
                "item": self.items,
                "question": self.questions,
                "choices": [list(choices) for choices in self.choices],
                "answer": self.answers,
                "base": self.base,
                "tuned": self.tuned,
                "base_scores": [list(scored) for scored in self.base_scores],
                "tuned_scores": [list(scored) for scored in self.tuned_scores],
            }
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class OutcomeResult:
    """Items that another tool calls right or wrong, put to base and tuned alike, with what each said where it wrote."""

    task: str
    metric: str
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    base: npt.NDArray[np.bool_]
    tuned: npt.NDArray[np.bool_]
    base_says: tuple[str, ...]
    tuned_says: tuple[str, ...]

    @property
    def name(self) -> str:
        """The task with its metric."""
        return f"{self.task}, {self.metric}"

    @property
    def accuracy(self) -> PairedShares:
        """What each model got right, and the change between them."""
        return PairedShares.of(base=self.base, tuned=self.tuned)

    @property
    def agreement(self) -> Share:
        """Items of which both models say the same, word for word."""
        same = sum(b == t for b, t in zip(self.base_says, self.tuned_says, strict=True))
        return Share(count=same, n=len(self.items))

    def in_words(self) -> str:
        """What was right and is no more."""
        accuracy = self.accuracy
        said = f"{self.name}: {percent(accuracy.base)} → {percent(accuracy.tuned)} ({_verdict(accuracy)})"
        return f"{said}; {accuracy.lost} lost, {accuracy.gained} gained"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; items are in `to_frame`."""
        return {
            "task": self.task,
            "kind": "outcomes",
            "protocol": {"metric": self.metric, "description": "as lm-evaluation-harness has it"},
            "items": len(self.items),
            "accuracy": self.accuracy.to_dict(),
            "same_words": self.agreement.to_dict(),
            "lost": self.accuracy.lost,
            "gained": self.accuracy.gained,
        }

    def to_frame(self) -> pd.DataFrame:
        """A row per item."""
        return pd.DataFrame(
            {
                "task": self.task,
                "protocol": self.metric,
                "item": self.items,
                "prompt": self.prompts,
                "base_right": self.base,
                "tuned_right": self.tuned,
                "base_text": self.base_says,
                "tuned_text": self.tuned_says,
            }
        )


TaskResult: TypeAlias = ChoiceResult | OutcomeResult | RefusalResult | RefusalOdds


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbedModel:
    """One tuned model: what was found about it, and its result on each task; `failure` says why it has none.

    `step` is the training step that a checkpoint folder names or its run ended at, None where neither is known. `run`
    is the folder it is one of several in. `forgetting` is KL from the base per text, nats per token, where one of our
    runs measured it at that step; elsewhere it is empty.
    """

    name: str
    step: int | None
    run: str
    forgetting: Mapping[str, Estimate]
    merged: bool
    findings: tuple[Finding, ...]
    results: tuple[TaskResult, ...]
    failure: str | None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "tuned": self.name,
            "step": self.step,
            "run": self.run,
            "forgetting": {corpus: kl.to_dict() for corpus, kl in self.forgetting.items()},
            "merged": self.merged,
            "findings": [vars(finding) for finding in self.findings],
            "failure": self.failure,
            "results": [result.to_dict() for result in self.results],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeReport:
    """What one or many tuned models answer where their base answered something else, on one or many tasks.

        report["arc_challenge"].agreement           # of the last model, under its first protocol
        report["arc_challenge"].accuracy.p_value    # McNemar's exact test of there being no change
        report.models[0].results[0].to_frame()      # every item

    Checkpoints of a folder are in step order.
    """

    base: str
    dtype: str
    device: str
    models: tuple[ProbedModel, ...]

    def __getitem__(self, task: str) -> TaskResult:
        results = {result.task: result for result in reversed(self._last().results)}
        if task not in results:
            raise KeyError(f"got {task!r}, expected one of {sorted(results)}")
        return results[task]

    def _last(self) -> ProbedModel:
        probed = [model for model in self.models if model.failure is None]
        if not probed:
            raise ValueError("got no model that could be probed, expected one")
        return probed[-1]

    def rows(self) -> Iterator[tuple[ProbedModel, TaskResult]]:
        """Every (model, result), in order."""
        return ((model, result) for model in self.models for result in model.results)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """About every model, each once."""
        return tuple(dict.fromkeys(finding for model in self.models for finding in model.findings))

    def to_frame(self) -> pd.DataFrame:
        """A row per model, task and item; what does not belong to a task's kind is missing.

        Raises:
            ValueError: nothing could be probed.
        """
        frames = [
            result.to_frame().assign(model=model.name, step=pd.array([model.step] * len(result.items), dtype="Int64"))
            for model, result in self.rows()
        ]
        if not frames:
            raise ValueError("got no model that could be probed, expected one")
        return pd.concat(frames, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: shares, tests, findings; the items are in `to_frame`."""
        return {
            "base": self.base,
            "dtype": self.dtype,
            "device": self.device,
            "findings": [vars(finding) for finding in self.findings],
            "models": [model.to_dict() for model in self.models],
        }

    def __str__(self) -> str:
        lines = [f"{model.name}  {result.in_words()}" for model, result in self.rows()]
        lines += [f"{model.name}  not probed: {model.failure}" for model in self.models if model.failure]
        lines += [str(finding) for finding in self.findings]
        return "\n".join(str(visible(line)) for line in lines)

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{_safe(model.name)}</td><td>{_safe(result.in_words())}</td></tr>" for model, result in self.rows()
        )
        notes = "".join(f"<li>{_safe(str(finding))}</li>" for finding in self.findings)
        head = "<tr><th>Tuned model</th><th>What changed</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><ul>{notes}</ul>"


def _safe(text: str) -> str:
    return html.escape(str(visible(text)))


def _verdict(shares: PairedShares) -> str:
    if shares.verdict == "not measurable":
        return f"not measurable {shares.unseen}"
    return shares.verdict
