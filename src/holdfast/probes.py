"""What can be put to a model, and what two models' answers to it amount to.

A probe is asked of the base once and of each tuned model: the same tokens in the same batches. Its answers are plain
lists, so that the base's can be kept on disk, and every result is made of two models' answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import numpy as np

from holdfast import answering
from holdfast.answering import Asked, Batches, Tell
from holdfast.behaviour import ChoiceResult, TaskResult
from holdfast.items import Items
from holdfast.models import Base, Tokenizer, Tuned
from holdfast.questions import Form, Protocol, chosen, context, continuations, form, scores

Answers = list[Any]
"""Of one model to a probe; what JSON can hold."""


class AskBase(Interface):
    """How the base is asked: what identifies the question, about how many tokens it takes, and how to ask."""

    def __call__(
        self, identity: Mapping[str, str], work: float, ask: Callable[[Base | Tuned, Tell], Answers]
    ) -> Answers:
        """The base's answers, kept or given now."""


class Prepared(Interface):
    """One task in one form, with all that is needed of the base. A class with behaviour, as kinds of task differ."""

    def results(self, model: Base | Tuned, tell: Tell) -> tuple[TaskResult, ...]:
        """Ask a tuned model: what its and the base's answers amount to."""


class Probe(Interface):
    """One task in one form. A class with behaviour, because kinds of task differ in just these."""

    @property
    def name(self) -> str:
        """Of the task."""

    @property
    def base_work(self) -> float:
        """Tokens that asking passes through the base, about, to tell how far all is."""

    @property
    def work(self) -> float:
        """The same of a tuned model."""

    def prepared(self, ask: AskBase) -> Prepared:
        """The same with the base's answers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChoiceProbe:
    """Questions with choices in one form, scored by each of the protocols that have this form.

    An answer holds the log-likelihood of each choice.
    """

    items: Items
    asked_as: Form
    protocols: tuple[Protocol, ...]
    asked: tuple[Asked, ...]
    plan: Batches

    @property
    def name(self) -> str:
        """Of the task."""
        return self.items.name

    @property
    def work(self) -> float:
        """Tokens, padding included."""
        return float(sum(rows.ids.size for _, rows in self.plan))

    @property
    def base_work(self) -> float:
        """As many."""
        return self.work

    def prepared(self, ask: AskBase) -> PreparedChoices:
        """The base's log-likelihoods."""
        return PreparedChoices(probe=self, base=ask(self.identity(), self.work, self.ask))

    def identity(self) -> dict[str, str]:
        """The items, the form, and every token of the batch plan."""
        return {
            "probe": "choices",
            "items": self.items.fingerprint,
            "form": self.asked_as,
            "plan": answering.plan_digest(self.plan),
        }

    def ask(self, model: Base | Tuned, tell: Tell) -> Answers:
        """Log-likelihoods of each question's choices, nats."""
        return answering.log_likelihoods(model, self.asked, self.plan, tell=tell)

    def results(self, base: Answers, tuned: Answers) -> tuple[ChoiceResult, ...]:
        """A result per protocol."""
        return tuple(self._result(protocol, base, tuned) for protocol in self.protocols)

    def _result(self, protocol: Protocol, base: Answers, tuned: Answers) -> ChoiceResult:
        questions = self.items.questions
        scored = [
            tuple(
                np.array(
                    scores(q, log_likelihoods=found, tokens=[len(c) for c in one.continuations], protocol=protocol)
                )
                for q, one, found in zip(questions, self.asked, answers, strict=True)
            )
            for answers in (base, tuned)
        ]
        return ChoiceResult(
            task=self.name, protocol=protocol, items=tuple(q.id for q in questions),
            questions=tuple(q.question for q in questions), choices=tuple(q.choices for q in questions),
            answers=np.array([q.answer for q in questions]),
            base=np.array([chosen(list(each)) for each in scored[0]]),
            tuned=np.array([chosen(list(each)) for each in scored[1]]),
            base_scores=scored[0], tuned_scores=scored[1],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedChoices:
    """Questions with choices, and the base's answers to them."""

    probe: ChoiceProbe
    base: Answers

    def results(self, model: Base | Tuned, tell: Tell) -> tuple[TaskResult, ...]:
        """A result per protocol."""
        return self.probe.results(self.base, self.probe.ask(model, tell))


def choice_probes(
    items: Items, protocols: Sequence[Protocol], *, tokenizer: Tokenizer, shared: bool
) -> tuple[ChoiceProbe, ...]:
    """A probe per form that the protocols need; `shared` as in `answering.batches`.

    Raises:
        DataError: a question or choice has no token.
    """
    made = []
    for asked_as in dict.fromkeys(form(protocol) for protocol in protocols):
        asked = tuple(
            answering.asked(tokenizer, context(q, asked_as), continuations(q, asked_as), place=q.place)
            for q in items.questions
        )
        made.append(
            ChoiceProbe(
                items=items, asked_as=asked_as, protocols=tuple(p for p in protocols if form(p) == asked_as),
                asked=asked, plan=answering.batches(asked, shared=shared),
            )
        )  # fmt: skip
    return tuple(made)
