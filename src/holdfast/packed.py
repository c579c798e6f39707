"""Attention of packed rows for training on a CPU: each document by itself, the triangle above the diagonal left out.

torch's own multiplies whole rows by whole rows and masks afterwards, so that a row of five documents costs five times
what they need, and forward and backward took a third of a LoRA step of a small model (LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Query tokens multiplied at once: more compute more of what lies above the diagonal, fewer make smaller products.
_TOKENS = 128


def documents_of(mask: Bool[Tensor, "b 1 t t"]) -> list[int] | None:
    """Lengths, row after row, of the documents in which each token sees itself and all before it, and nothing else.

    None where the mask says anything else (a sliding window, padding, a prefix seen both ways).
    """
    seen, length = mask[:, 0], mask.shape[-1]
    at = torch.arange(length)
    first = seen.to(torch.uint8).argmax(-1)
    begins = first == at
    same = torch.equal(torch.where(begins, at, 0).cummax(-1).values, first)
    if not same or not torch.equal(seen, (at >= first[..., None]) & (at <= at[:, None])):
        return None
    starts = begins.flatten().nonzero().flatten()
    return torch.diff(starts, append=torch.tensor([begins.numel()])).tolist()


class PackedAttention(torch.autograd.Function):
    """softmax(scale · query · key') · value within each document, earlier positions only; h / g heads share a key.

    Arguments: query (b, h, t, d), key (b, g, t, d), value (b, g, t, e), all of one precision; `documents`, their
    lengths in tokens, the rows laid end to end; scale. Products are in the inputs' precision, the softmax and sums over
    query blocks in float32. Probabilities are kept for the backward pass: half a square a document, in the inputs'
    precision. A class because torch asks for one.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, documents: list[int], scale: float) -> Tensor:
        """See the class."""
        rows, shared = len(query), query.shape[1] // key.shape[1]
        asked, keys, values = _by_key(query * scale, shared), _by_key(key, 1)[:, :, 0], _by_key(value, 1)[:, :, 0]
        found = query.new_empty(*asked.shape[:3], values.shape[-1])
        exact = torch.promote_types(query.dtype, torch.float32)
        future = torch.full((_TOKENS, _TOKENS), -torch.inf).triu(1)[:, None]
        kept = []
        for start, low, high in _blocks(documents):
            scores = torch.bmm(asked[:, low:high].flatten(1, 2), keys[:, start:high].transpose(1, 2)).to(exact)
            scores.unflatten(1, (-1, shared))[..., low - start :].add_(future[: high - low, :, : high - low])
            kept.append(scores.softmax(-1).to(query.dtype))
            found[:, low:high] = torch.bmm(kept[-1], values[:, start:high]).unflatten(1, (-1, shared))
        ctx.save_for_backward(asked, keys, values, *kept)
        ctx.documents, ctx.scale, ctx.rows = documents, scale, rows
        return _by_row(found, rows)

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, "b h t e"]) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        asked, keys, values, *kept = ctx.saved_tensors
        shared = asked.shape[2]
        wanted = _by_key(upstream, shared)
        of_asked = torch.empty_like(asked)
        exact = torch.promote_types(asked.dtype, torch.float32)
        of_keys, of_values = (torch.zeros_like(each, dtype=exact) for each in (keys, values))
        for (start, low, high), seen in zip(_blocks(ctx.documents), kept, strict=True):
            block, queries = wanted[:, low:high].flatten(1, 2), asked[:, low:high].flatten(1, 2)
            of_values[:, start:high] += torch.bmm(seen.transpose(1, 2), block)
            of_seen = torch.bmm(block, values[:, start:high].transpose(1, 2)).to(exact)
            probabilities = seen.to(exact)
            of_seen -= (of_seen * probabilities).sum(-1, keepdim=True)
            of_scores = of_seen.mul_(probabilities).to(seen.dtype)
            of_asked[:, low:high] = torch.bmm(of_scores, keys[:, start:high]).unflatten(1, (-1, shared))
            of_keys[:, start:high] += torch.bmm(of_scores.transpose(1, 2), queries)
        of_query = _by_row(of_asked, ctx.rows) * ctx.scale
        of_key, of_value = (_by_row(each[:, :, None].to(keys.dtype), ctx.rows) for each in (of_keys, of_values))
        return of_query, of_key, of_value, None, None


def _by_key(states: Float[Tensor, "b h t d"], shared: int) -> Float[Tensor, "g bt n d"]:
    """Rows laid end to end, the heads of each key side by side."""
    apart: Tensor = states.transpose(1, 2).flatten(0, 1).unflatten(1, (-1, shared))
    return apart.transpose(0, 1).contiguous()


def _by_row(states: Float[Tensor, "g bt n d"], rows: int) -> Float[Tensor, "b h t d"]:
    together: Tensor = states.transpose(0, 1).flatten(1, 2).unflatten(0, (rows, -1))
    return together.transpose(1, 2)


def _blocks(documents: list[int]) -> Iterator[tuple[int, int, int]]:
    """(the document's first token, a block's first, its end), the rows laid end to end."""
    start = 0
    for length in documents:
        for low in range(start, start + length, _TOKENS):
            yield start, low, min(low + _TOKENS, start + length)
        start += length
