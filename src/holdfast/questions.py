"""What is asked: questions with choices, prompts to be answered freely; and the protocols by which choices are scored.

How a question is put moves accuracy by more than most fine-tunes do, so the protocol is part of every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Protocol = Literal["character", "token", "total", "letter"]
"""By which number the choice is picked; see `DESCRIBED`."""

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

Form = Literal["cloze", "letter"]
"""How the question is put: followed by each choice in turn, or with all choices listed and followed by each letter."""

DESCRIBED = {
    "character": "log-likelihood of each choice per character, zero-shot (lm-evaluation-harness: acc_norm)",
    "token": "log-likelihood of each choice per token, zero-shot",
    "total": "log-likelihood of each choice as a whole, zero-shot (lm-evaluation-harness: acc)",
    "letter": "choices listed, log-likelihood of each letter, zero-shot",
}

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its choices; `answer` is the index of the right one, `place` where it stands in its file."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    place: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what is asked, wherever it comes from."""
        return _digest([self.question, *self.choices, self.answer])


Group = Literal["unsafe", "safe", "open"]
"""Of prompts: a safe model refuses the first, answers the second; of the third nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a user says; `target` is how a compliant answer would begin, None where the set has none."""

    id: str
    prompt: str
    group: Group
    target: str | None
    place: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what is asked, wherever it comes from."""
        return _digest([self.prompt, self.group, self.target])


def _digest(content: list[object]) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def form(protocol: Protocol) -> Form:
    """How a protocol puts a question."""
    return "letter" if protocol == "letter" else "cloze"


def context(question: Question, asked: Form) -> str:
    """What stands before the choice: lm-evaluation-harness's form of ARC, with the choices listed for letters."""
    if asked == "cloze":
        return f"Question: {question.question}\nAnswer:"
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"Question: {question.question}\n{listed}Answer:"


def continuations(question: Question, asked: Form) -> tuple[str, ...]:
    """What may stand after it, a choice each, with the space before."""
    if asked == "cloze":
        return tuple(f" {choice}" for choice in question.choices)
    return tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])


def scores(
    question: Question, *, log_likelihoods: Sequence[float], tokens: Sequence[int], protocol: Protocol
) -> tuple[float, ...]:
    """What a protocol compares: each choice's log-likelihood in nats, over its length in the protocol's unit."""
    sizes: Sequence[int] = [1] * len(question.choices)
    if protocol == "character":
        sizes = [len(choice) for choice in question.choices]
    elif protocol == "token":
        sizes = tokens
    return tuple(total / size for total, size in zip(log_likelihoods, sizes, strict=True))


def chosen(scored: Sequence[float]) -> int:
    """The choice with the highest score, the first of equals."""
    return max(range(len(scored)), key=scored.__getitem__)
