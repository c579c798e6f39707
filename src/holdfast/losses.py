"""The loss that training lowers, and its gradient, without ever holding all logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from holdfast import models
from holdfast.corpora import Block
from holdfast.kernels import fast_kernels
from holdfast.lora import sharing_a_pass
from holdfast.meter import measuring
from holdfast.models import Base, Tuned

log = logging.getLogger(__name__)


class _TrainingLoss(torch.autograd.Function):
    """Summed next-token loss of hidden states under an output head, with logits only ever a slice of tokens at a time.

    Equals `cross_entropy(hidden @ head.T, targets, reduction="sum")`: products in the inputs' precision, all else in
    float32 at least. Gradients are made in the forward pass, so each slice of logits exists once; the head's where it
    is asked for, summed so too.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], targets: Int[Tensor, " t"]
    ) -> Float[Tensor, ""]:
        gradient = torch.empty_like(hidden)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        of_head = torch.zeros_like(head, dtype=exact) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=exact)
        for start in range(0, len(hidden), 256):
            rows, wanted = hidden[start : start + 256], targets[start : start + 256, None]
            logits = (rows @ head.T).to(exact)
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            probabilities = logits.sub_(normaliser).exp_()
            probabilities.scatter_add_(1, wanted, torch.full_like(normaliser, -1.0))
            narrow = probabilities.to(head.dtype)
            gradient[start : start + 256] = narrow @ head
            if of_head is not None:
                of_head += narrow.T @ rows
        ctx.save_for_backward(gradient, of_head)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        gradient, of_head = ctx.saved_tensors
        return gradient * upstream, None if of_head is None else of_head * upstream, None


def batch_losses(tuned: Sequence[Tuned], blocks: Sequence[Block]) -> list[Float[Tensor, ""]]:
    """Summed loss, in nats, over the scored tokens of each model's batch; the head is never applied to the others.

    Several models make one pass together, their batches of equal size one below the other: see `lora.sharing_a_pass`.
    """
    head = models.output_head(tuned[0])
    if models.prompted(tuned[0]) or not keeps_apart(tuned[0]):
        blocks = [_apart(block) for block in blocks]
    ids, positions = (
        torch.from_numpy(np.concatenate([getattr(block, name) for block in blocks])).to(head.device)
        for name in ("ids", "positions")
    )
    with fast_kernels(), sharing_a_pass(tuned) if len(tuned) > 1 else nullcontext():
        states = models.hidden_states(tuned[0], ids=ids, positions=positions)
    parts = zip(blocks, states.chunk(len(blocks)), ids.chunk(len(blocks)), strict=True)
    return [_loss(part, said, torch.from_numpy(block.scored).to(head.device), head) for block, part, said in parts]


_KEEPS_APART: WeakKeyDictionary[Base, bool] = WeakKeyDictionary()


def keeps_apart(model: Base | Tuned) -> bool:
    """Whether a model keeps documents packed in a row apart by positions that begin anew; found once for a base.

    Found by asking: what stands before a document in its row must not change its hidden states at all. Some read no
    positions where they mask (OPT, Falcon, Bloom), others pass a state from token to token (Mamba).
    """
    base = models.causal(model)
    if base not in _KEEPS_APART:
        positions = torch.arange(8).repeat(2)[None].to(base.device)
        rows = torch.stack([torch.arange(16), torch.arange(16).where(torch.arange(16) > 7, torch.arange(20, 36))])
        rows = (rows % base.config.get_text_config().vocab_size).to(base.device)
        with measuring(model), fast_kernels():
            one, other = (models.hidden_states(model, ids=row[None], positions=positions)[0, 8:] for row in rows)
        _KEEPS_APART[base] = bool((one - other).abs().max() <= LEAK * one.std())
        if not _KEEPS_APART[base]:
            log.warning(
                "%s lets documents packed in a row see each other: each is trained in a row of its own, which takes "
                "longer", base.config.model_type,
            )  # fmt: skip
    return _KEEPS_APART[base]


LEAK = 1e-3
"""Standard deviations by which what stands before a document may move it: the same passes but for what is masked."""


def _loss(
    states: Float[Tensor, "b t d"], ids: Int[Tensor, "b t"], scored: Bool[Tensor, "b t"], head: Float[Tensor, "v d"]
) -> Float[Tensor, ""]:
    loss: Tensor = _TrainingLoss.apply(  # type: ignore[no-untyped-call]
        states[:, :-1][scored[:, 1:]].to(head.dtype), head, ids[scored]
    )
    return loss


def _apart(block: Block) -> Block:
    """Packed documents in a row each, padded on the right, where nothing before one may be seen but virtual tokens."""
    starts = [(row, int(start)) for row, at in enumerate(block.positions) for start in np.flatnonzero(at == 0)]
    width = block.ids.shape[1]
    ends = [
        following if following_row == row else width
        for (row, _), (following_row, following) in pairwise([*starts, (-1, 0)])
    ]
    longest = max(end - start for (_, start), end in zip(starts, ends, strict=True))
    columns = {}
    for field in fields(block):
        packed = getattr(block, field.name)
        columns[field.name] = np.zeros((len(starts), longest), dtype=packed.dtype)
        for alone, (row, start), end in zip(columns[field.name], starts, ends, strict=True):
            alone[: end - start] = packed[row, start:end]
    return Block(**columns)
