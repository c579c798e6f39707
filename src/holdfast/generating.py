"""What a model says when it is asked: greedy answers, many prompts at once, each as a user would put it.

Greedy answers depend on rounding where two tokens are nearly as probable, and so on the batch: base and tuned are asked
in the same batches. They illustrate; what is measured exactly is how probable given answers are (`answering`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast.errors import DataError
from holdfast.meter import measuring
from holdfast.models import Base, Tokenizer, Tuned, autocast, causal, output_head, quiet
from holdfast.sampling import end_tokens

TOKENS_AT_ONCE = 8192
"""Prompts and answers of one batch together, padding included: what the keys and values of a batch take is bounded."""

Plan = Sequence[Sequence[int]]
"""Which prompts are answered together."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A greedy answer: its tokens up to the end token, and whether it came to one."""

    ids: tuple[int, ...]
    ended: bool


def put(tokenizer: Tokenizer, prompt: str, *, place: str) -> tuple[int, ...]:
    """A prompt as tokens, put as a user's message through the chat template, where the assistant is to speak.

    Raises:
        DataError: no chat template, or one that refuses the message.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"got a tokenizer without a chat template, expected one: without it nobody is asked anything, at {place}"
        )
    message = [{"role": "user", "content": prompt}]
    try:
        text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template's own, of a library that is not ours to import
        raise DataError(f"got a chat template that refuses a user's message ({error}), at {place}") from error
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def batches(prompts: Sequence[tuple[int, ...]], *, tokens: int) -> list[list[int]]:
    """The batch plan: prompts of similar length together, longest first."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    plan: list[list[int]] = []
    while order:
        rows = max(1, TOKENS_AT_ONCE // (len(prompts[order[0]]) + tokens))
        plan.append(order[:rows])
        order = order[rows:]
    return plan


def digest(prompts: Sequence[tuple[int, ...]], plan: Plan, *, tokens: int) -> str:
    """Hex SHA-256 of every token that is asked, in which batches, and how long an answer may be."""
    return hashlib.sha256(repr((list(map(tuple, prompts)), list(map(list, plan)), tokens)).encode()).hexdigest()


def write(
    model: Base | Tuned,
    prompts: Sequence[tuple[int, ...]],
    plan: Plan,
    *,
    tokens: int,
    tokenizer: Tokenizer,
    tell: Callable[[float], None] = lambda _share: None,
) -> list[Written]:
    """Each prompt's greedy answer of up to so many tokens; `tell` is told the share that is done.

    The most probable token each time, whatever generation settings a model came with. The model's mode, settings and
    every random state are as before afterwards.
    """
    found: dict[int, Written] = {}
    ends = end_tokens(causal(model), tokenizer)
    with measuring(model), quiet(), autocast(model):
        for together in plan:
            made = _continued(model, [prompts[index] for index in together], ends=ends, tokens=tokens)
            found |= dict(zip(together, made, strict=True))
            tell(len(found) / len(prompts))
    return [found[index] for index in range(len(prompts))]


def _continued(model: Any, prompts: Sequence[tuple[int, ...]], *, ends: list[int], tokens: int) -> list[Written]:
    width, pad = max(map(len, prompts)), ends[0] if ends else 0
    ids = torch.full((len(prompts), width), pad)
    sees = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], sees[row, width - len(prompt) :] = torch.tensor(prompt), 1
    own = model.generation_config  # a repetition penalty or length of its own would fill in for what we leave out
    plain = type(own)(
        do_sample=False, num_beams=1, max_new_tokens=tokens, use_cache=True, eos_token_id=ends or None,
        pad_token_id=pad,
    )  # fmt: skip
    device = output_head(model).device
    model.generation_config = plain
    try:
        made: Int[Tensor, "b t"] = model.generate(
            input_ids=ids.to(device), attention_mask=sees.to(device), generation_config=plain
        )
    finally:
        model.generation_config = own
    return [_cut(answer, ends) for answer in made[:, width:].tolist()]


def _cut(ids: list[int], ends: list[int]) -> Written:
    length = next((index for index, token in enumerate(ids) if token in ends), None)
    return Written(ids=tuple(ids if length is None else ids[:length]), ended=length is not None)
