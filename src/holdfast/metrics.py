"""Pure tensor maths: final hidden states and an output head in, per-token quantities out.

Nothing here knows a model, a file or a device, and a (tokens x vocabulary) tensor never exists: every product with the
head is taken a slice of the vocabulary at a time, in float32, and reduced on the spot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Columns of the head multiplied at once. 1,024 tokens x 8,192 columns x 4 bytes = 32 MiB.
_SLICE = 8192


@dataclass(frozen=True, kw_only=True)
class BaseCache:
    """All that measuring forgetting needs of the base model: a (d + 4)-vector a token.

    With p = softmax(W h) the base's next-token distribution at a token, W the head, h the base's final hidden state:

        mean_head   sum_v p_v W_v           entropy   -sum_v p_v ln p_v
        top         argmax_v p_v            nll       -ln p[target]

    Because the cross-entropy of any q = softmax(W g) against p is logsumexp(W g) - g . mean_head, a tuned model whose
    head is the base's own needs nothing else of the base: not its weights, not its logits. Invalid for another W.
    float32; `top` int64. Rows follow the scored tokens in the order they were given.
    """

    mean_head: Float[Tensor, "t d"]
    entropy: Float[Tensor, " t"]
    nll: Float[Tensor, " t"]
    top: Int[Tensor, " t"]

    def __getitem__(self, rows: slice) -> BaseCache:
        """The same cache for a range of its tokens."""
        return BaseCache(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def concatenate(parts: list[BaseCache]) -> BaseCache:
        """One cache from the caches of consecutive tokens."""
        return BaseCache(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(BaseCache)})


@dataclass(frozen=True, kw_only=True)
class TokenQuantities:
    """What the tuned model keeps of the base at each scored token, nats; float32 (`agreement` bool).

    With p the base's and q the tuned model's next-token distribution:

        nll            -ln q[target]              base_nll              -ln p[target]
        cross_entropy  -sum_v p ln q              hard_cross_entropy    -ln q[argmax p]
        base_entropy   -sum_v p ln p              kl_base_tuned         cross_entropy - base_entropy
        agreement      argmax p == argmax q
    """

    nll: Float[Tensor, " t"]
    base_nll: Float[Tensor, " t"]
    cross_entropy: Float[Tensor, " t"]
    hard_cross_entropy: Float[Tensor, " t"]
    base_entropy: Float[Tensor, " t"]
    kl_base_tuned: Float[Tensor, " t"]
    agreement: Bool[Tensor, " t"]


def base_cache(
    *, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], targets: Int[Tensor, " t"]
) -> BaseCache:
    """What `token_quantities` needs of the base at each scored token; see `BaseCache`.

    One pass over the head: each slice's own softmax mean, then these weighted by the slices' shares. The normaliser comes
    from the very expression that `token_quantities` uses, so an unchanged model has a KL of exactly 0.
    Source: derived in docs/theory.md, section 2.
    """
    hidden = hidden.float()
    mean_head = torch.zeros_like(hidden)
    so_far = hidden.new_full((len(hidden),), -torch.inf)
    slices, top = [], _Argmax(hidden)
    for columns, logits in _logit_slices(hidden, head):
        top.update(logits)
        slices.append(logits.logsumexp(-1))
        together = torch.logaddexp(so_far, slices[-1])
        mean_head *= (so_far - together).exp_()[:, None]
        mean_head += logits.sub_(together[:, None]).exp_() @ columns
        so_far = together
    normaliser = torch.stack(slices).logsumexp(0)
    return BaseCache(
        mean_head=mean_head,
        entropy=normaliser - _dots(hidden, mean_head),
        nll=normaliser - _dots(hidden, head[targets]),
        top=top.index,
    )


def token_quantities(
    *, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], base: BaseCache, targets: Int[Tensor, " t"]
) -> TokenQuantities:
    """What the tuned model keeps of the base's next-token distributions, at each scored token.

    `hidden` are the tuned model's final hidden states (after the last norm), `head` the output head it shares with the
    base, `targets` the text's own next tokens. Formulas in `TokenQuantities`; nats.

    One product with the head, reduced to its logsumexp a slice at a time; logits in float32 whatever the inputs'
    precision (bf16 logits would add 0.06 nats of noise a token). kl_base_tuned carries rounding of about 1e-6, so single
    tokens may be that far below 0; it is exactly 0 where hidden states equal the base's bit for bit.

    Equals the naive two-model computation with full logits; exact because the head is shared.
    Source: Kalajdzievski 2024, arXiv 2401.05605, section 3.1 (`hard_cross_entropy`); the rest in docs/theory.md.
    """
    hidden = hidden.float()
    slices, top = [], _Argmax(hidden)
    for _, logits in _logit_slices(hidden, head):
        top.update(logits)
        slices.append(logits.logsumexp(-1))
    normaliser = torch.stack(slices).logsumexp(0)
    cross_entropy = normaliser - _dots(hidden, base.mean_head)
    return TokenQuantities(
        nll=normaliser - _dots(hidden, head[targets]),
        base_nll=base.nll,
        cross_entropy=cross_entropy,
        hard_cross_entropy=normaliser - _dots(hidden, head[base.top]),
        base_entropy=base.entropy,
        kl_base_tuned=cross_entropy - base.entropy,
        agreement=top.index == base.top,
    )


def _dots(left: Float[Tensor, "t d"], right: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
    return (left * right.float()).sum(-1)


def _logit_slices(
    hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"]
) -> Iterator[tuple[Float[Tensor, "s d"], Float[Tensor, "t s"]]]:
    """Slices of the head in float32, each with the logits it gives; a slice may be overwritten by its reader."""
    for part in head.split(_SLICE):
        columns = part.float()
        yield columns, hidden @ columns.T


class _Argmax:
    """Argmax over slices that arrive one after another; ties go to the lowest index, as in torch.argmax."""

    def __init__(self, hidden: Tensor) -> None:
        self.index = hidden.new_zeros(len(hidden), dtype=torch.int64)
        self._best = hidden.new_full((len(hidden),), -torch.inf)
        self._seen = 0

    def update(self, logits: Float[Tensor, "t s"]) -> None:
        highest, index = logits.max(-1)
        self.index = torch.where(highest > self._best, index + self._seen, self.index)
        self._best = torch.maximum(self._best, highest)
        self._seen += logits.shape[1]
