"""How probable a model holds each of several continuations of one text: choices of a question, openings of an answer.

What the continuations share is passed through the model once. A question's row holds its text and then each choice, and
attention lets a choice see the text and itself but no other choice:

    Question: … Answer: | The sun | A lamp | Fire          positions   0 … 9 | 10 11 | 10 11 | 10
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast.errors import DataError, ModelError
from holdfast.meter import measuring
from holdfast.metrics import log_probabilities
from holdfast.models import Base, Tokenizer, Tuned, causal, head_of, hidden_states, output_head

Tell: TypeAlias = Callable[[float], None]
"""Given the share that is done."""

BATCH_TOKENS = 2048
"""In one forward pass, padding included."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Tokens of a text and of each of its possible continuations; neither is empty."""

    text: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    def alone(self) -> tuple[Asked, ...]:
        """The same, a continuation each: for models whose tokens cannot be told what not to see."""
        return tuple(Asked(text=self.text, continuations=(one,)) for one in self.continuations)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A batch for one forward pass, and which of its hidden states predicts which token.

    The n-th of `targets` is predicted at `predicting[n]`, an index into the flattened batch; they follow the asked
    items' continuations in order, item by item. Without `sees` a token sees all before it.
    """

    ids: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    sees: Bool[np.ndarray, "b t t"] | None
    predicting: Int[np.ndarray, " n"]
    targets: Int[np.ndarray, " n"]


def asked(tokenizer: Tokenizer, text: str, continuations: Sequence[str], *, place: str) -> Asked:
    """A text and its continuations as tokens, each cut where text and continuation together are cut.

    A continuation's tokens are those that its text and it have together beyond the text's own, as
    lm-evaluation-harness has it; spaces at the text's end belong to the continuation.

    Raises:
        DataError: a continuation adds no token, or its text has none.
    """
    bare = text.rstrip(" ")
    moved = text[len(bare) :]
    ids = tuple(tokenizer(bare)["input_ids"])
    whole = [tuple(tokenizer(bare + moved + continuation)["input_ids"]) for continuation in continuations]
    found = Asked(text=ids, continuations=tuple(together[len(ids) :] for together in whole))
    if not ids or not all(found.continuations):
        raise DataError(f"got a text or choice without a token of its own, expected at least one, at {place}")
    return found


Batches: TypeAlias = Sequence[tuple[list[int], Rows]]
"""Which items go together, and how."""


def batches(items: Sequence[Asked], *, shared: bool) -> Batches:
    """The batch plan: which items go together, and how; base and tuned are asked with the same one.

    Items of similar length stand together. Not `shared`, each continuation gets a row of its own: for models that
    cannot be told what not to see, see `shares`.
    """
    order = sorted(range(len(items)), key=lambda index: -_width(items[index], shared))
    plan: list[tuple[list[int], Rows]] = []
    while order:
        width = _width(items[order[0]], shared)
        rows = max(1, BATCH_TOKENS // (width if shared else width * len(items[order[0]].continuations)))
        together, order = order[:rows], order[rows:]
        plan.append((together, _rows([items[index] for index in together], shared=shared)))
    return plan


def plan_digest(plan: Batches) -> str:
    """Hex SHA-256 of every token a batch plan passes through a model, where, and what it predicts."""
    digest = hashlib.sha256()
    for together, rows in plan:
        digest.update(f"{together}{rows.sees is None}".encode())
        for part in (rows.ids, rows.positions, rows.predicting, rows.targets):
            digest.update(f"{part.shape}{part.dtype}".encode())
            digest.update(part.tobytes())
    return digest.hexdigest()


def log_likelihoods(
    model: Base | Tuned, items: Sequence[Asked], plan: Batches, *, tell: Tell = lambda _share: None
) -> list[list[float]]:
    """Log-likelihood of every continuation of every item after its text, in nats; see `token_log_likelihoods`."""
    found = token_log_likelihoods(model, items, plan, tell=tell)
    return [[sum(tokens) for tokens in continuations] for continuations in found]


def token_log_likelihoods(
    model: Base | Tuned, items: Sequence[Asked], plan: Batches, *, tell: Tell = lambda _share: None
) -> list[list[list[float]]]:
    """The same of every token, given its text and the continuation before it; `tell` is told the share that is done.

    Logits and their sums are float32 and float64 whatever the model's precision. The model's mode and every random
    state are as before afterwards.

    Equals one forward pass for each continuation with its text before it.

    Raises:
        ModelError: a number is NaN or infinite, or the tokenizer has more tokens than the model.
    """
    found: list[list[list[float]]] = [[] for _ in items]
    done, total = 0, sum(len(together) for together, _ in plan)
    with measuring(model):
        for together, rows in plan:
            each = iter(_token_log_probabilities(model, rows).tolist())
            for index in together:
                found[index] = [[next(each) for _ in one] for one in items[index].continuations]
            done += len(together)
            tell(done / total)
    if not all(math.isfinite(value) for values in found for tokens in values for value in tokens):
        raise ModelError("got NaN or infinity, expected finite log-likelihoods")
    return found


def shares(model: Base | Tuned) -> bool:
    """Whether a text's continuations can stand in one row: not where a state passes from token to token.

    Found by asking: a continuation must be exactly as probable after one neighbour as after another, whatever the
    model's precision, for what is masked has no weight at all; and, up to rounding, as probable in the first place as
    in the second, so that positions are those it was given.
    """
    ids = [int(token) for token in np.arange(4, 16) % min(64, int(causal(model).config.get_text_config().vocab_size))]
    text, one = tuple(ids[:3] * 3), tuple(ids[:3])  # said before, so that it is probable and little is lost to rounding
    neighbours = tuple(ids[6:9]), tuple(ids[9:12])

    def worth(*continuations: tuple[int, ...]) -> list[float]:
        item = Asked(text=text, continuations=continuations)
        return log_likelihoods(model, [item], batches([item], shared=True))[0]

    try:
        after, after_another, before = (
            worth(neighbours[0], one)[1],
            worth(neighbours[1], one)[1],
            worth(one, *neighbours)[0],
        )
    except (RuntimeError, ValueError, TypeError):  # a model's own way to say that it takes no such mask
        return False
    return abs(after - after_another) < LEAK and abs(after - before) < LEAK + ROUNDING * abs(after)


LEAK, ROUNDING = 1e-3, 0.02
"""Nats by which a neighbour may move a continuation, and the share of itself by which its place in a row may."""


def _width(item: Asked, shared: bool) -> int:
    lengths = [len(one) - 1 for one in item.continuations]
    return len(item.text) + (sum(lengths) if shared else max(lengths))


def _rows(items: Sequence[Asked], *, shared: bool) -> Rows:
    """Every item as one row, or each of its continuations as one; the last token of each is only predicted."""
    rows = [row for item in items for row in ([item] if shared else item.alone())]
    width = max(_width(row, shared) for row in rows)
    shape = (len(rows), width)
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segment = np.full(shape, -1)  # -1 padding, 0 the text, then each continuation
    predicting: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        start = len(row.text)
        ids[number, :start], positions[number, :start], segment[number, :start] = row.text, np.arange(start), 0
        last = number * width + start - 1
        for part, continuation in enumerate(row.continuations, 1):
            end = start + len(continuation) - 1
            ids[number, start:end], segment[number, start:end] = continuation[:-1], part
            positions[number, start:end] = len(row.text) + np.arange(end - start)
            predicting += [last, *range(number * width + start, number * width + end)]
            targets += continuation
            start = end
    same = segment[:, :, None] == segment[:, None, :]
    sees = np.tril(np.ones((width, width), dtype=bool)) & (same | (segment[:, None, :] == 0))
    return Rows(
        ids=ids, positions=positions, sees=sees if shared else None, predicting=np.array(predicting, dtype=np.int64),
        targets=np.array(targets, dtype=np.int64),
    )  # fmt: skip


def _token_log_probabilities(model: Base | Tuned, rows: Rows) -> Float[Tensor, " n"]:
    known, largest = causal(model).get_input_embeddings().weight.shape[0], int(rows.ids.max())
    if largest >= known:
        raise ModelError(
            f"got an item with token {largest}, expected one below the model's {known} (another tokenizer?)"
        )
    device = output_head(model).device
    states = hidden_states(
        model,
        ids=torch.from_numpy(rows.ids).to(device),
        positions=torch.from_numpy(rows.positions).to(device),
        sees=None if rows.sees is None else torch.from_numpy(rows.sees).to(device),
    )
    used, which = np.unique(rows.predicting, return_inverse=True)
    return log_probabilities(
        hidden=states.flatten(0, 1)[torch.from_numpy(used).to(device)],
        head=head_of(model),
        rows=torch.from_numpy(which).to(device),
        targets=torch.from_numpy(rows.targets).to(device),
    )
