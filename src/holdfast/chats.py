"""Conversations as a tokenizer's chat template writes them, and which characters of that anyone wrote."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from holdfast.errors import DataError, as_ours
from holdfast.models import Tokenizer

_PLACEHOLDER = "\ue000"  # for private use: in no text


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text; all characters outside the ranges are the template's.

    `answers` are the ranges the assistant wrote, end-of-turn marks included; `others` those of everyone else.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, int], ...]


def render(messages: list[dict[str, str]], tokenizer: Tokenizer, *, place: str) -> Rendered:
    """A conversation through the tokenizer's chat template.

    An answer is what rendering through it adds to rendering up to it, so no marks in the template are needed.

    Raises:
        DataError: no chat template, one that fails on this conversation, or one that rewrites earlier turns.
    """
    if tokenizer.chat_template is None:
        raise DataError(f"got a conversation, but the model's tokenizer has no chat template, at {place}")
    with as_ours(DataError, lambda why: f"got a chat template that fails ({why}), expected a text, at {place}"):
        return _render(messages, tokenizer, place)


def _render(messages: list[dict[str, str]], tokenizer: Tokenizer, place: str) -> Rendered:
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    answers = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if not index:
            raise DataError(f"got a conversation that the assistant begins, expected something to answer, at {place}")
        before = str(tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True))
        through = str(tokenizer.apply_chat_template(messages[: index + 1], tokenize=False))
        if not (text.startswith(through) and through.startswith(before)):
            raise DataError(
                f"got a chat template that rewrites turn {index + 1} when later turns follow, expected one that only "
                f"appends; split the conversation into one answer a row, at {place}"
            )
        answers.append((len(before), len(through.rstrip())))
    return Rendered(text=text, answers=tuple(answers), others=tuple(_others(messages, tokenizer, text)))


def _others(messages: list[dict[str, str]], tokenizer: Tokenizer, text: str) -> list[tuple[int, int]]:
    """Where in a rendered conversation stands what anyone but the assistant wrote, white space around it left out.

    Found by rendering once more with a placeholder for each message. None where the template does more to a message
    than to trim it: its words then cannot be told from the template's own.
    """
    said = [message["content"].strip() for message in messages if message["role"] != "assistant"]
    said = [content for content in said if content]
    replaced = [message if message["role"] == "assistant" else _hidden(message) for message in messages]
    between = str(tokenizer.apply_chat_template(replaced, tokenize=False)).split(_PLACEHOLDER)
    pieces = [piece for pair in itertools.zip_longest(between, said, fillvalue="") for piece in pair]
    if len(between) != len(said) + 1 or "".join(pieces) != text:
        return []
    ends = list(itertools.accumulate(map(len, pieces)))
    return list(zip(ends[0:-2:2], ends[1:-2:2], strict=True))


def _hidden(message: dict[str, str]) -> dict[str, str]:
    """A message with the placeholder for its words; white space around them stays, for the template to trim."""
    content = message["content"]
    return {**message, "content": content.replace(content.strip(), _PLACEHOLDER)} if content.strip() else message
