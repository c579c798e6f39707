"""Pure tensor maths: final hidden states and an output head in, per-token quantities out.

Nothing here knows a model, a file or a device, and a (tokens x vocabulary) tensor never exists: every product with the
head is taken a slice of the vocabulary at a time, in float32, and reduced on the spot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    `mean_head` is float32, `entropy` and `nll` float64, `top` int64. Rows follow the scored tokens as they were given.
    """

    mean_head: Float[Tensor, "t d"]
    entropy: Float[Tensor, " t"]
    nll: Float[Tensor, " t"]
    top: Int[Tensor, " t"]


@dataclass(frozen=True, kw_only=True)
class TokenQuantities:
    """What the tuned model keeps of the base at each scored token, nats; float64 (`agreement` bool).

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


def base_cache(*, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], targets: Int[Tensor, " t"]) -> BaseCache:
    """What `token_quantities` needs of the base at each scored token; see `BaseCache`.

    One pass over the head, the mean rescaled as the normaliser grows and divided once by the very sum of its weights.
    The entropy is the cross-entropy of the base with itself, by the expression that `token_quantities` uses, so an
    unchanged model has a KL of exactly 0.
    Source: derived in docs/theory.md, section 2.
    """
    hidden = hidden.float()
    mean_head = torch.zeros_like(hidden)
    so_far = _Normaliser(hidden)
    for columns, logits in _logit_slices(hidden, head):
        kept, added, weights = so_far.add(logits)
        mean_head.mul_(kept[:, None]).addcmul_(added[:, None], weights @ columns)
    mean_head /= so_far.total[:, None].float()
    return BaseCache(
        mean_head=mean_head,
        entropy=so_far.logsumexp() - _dots(hidden, mean_head),
        nll=so_far.logsumexp() - _dots(hidden, head[targets]),
        top=so_far.argmax,
    )


def token_quantities(
    *, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], base: BaseCache, targets: Int[Tensor, " t"]
) -> TokenQuantities:
    """What the tuned model keeps of the base's next-token distributions, at each scored token.

    `hidden` are the tuned model's final hidden states (after the last norm), `head` the output head it shares with the
    base, `targets` the text's own next tokens. Formulas in `TokenQuantities`; nats.

    One product with the head, reduced to its logsumexp a slice at a time; logits in float32 whatever the inputs'
    precision (bf16 logits would add 0.06 nats of noise a token), everything per token in float64. kl_base_tuned carries
    the logits' rounding, about 1e-6, so single tokens may be that far below 0; it is exactly 0 where hidden states
    equal the base's bit for bit.

    Equals the naive two-model computation with full logits; exact because the head is shared.
    Source: Kalajdzievski 2024, arXiv 2401.05605, section 3.1 (`hard_cross_entropy`); the rest in docs/theory.md.
    """
    hidden = hidden.float()
    so_far = _Normaliser(hidden)
    for _, logits in _logit_slices(hidden, head):
        so_far.add(logits)
    cross_entropy = so_far.logsumexp() - _dots(hidden, base.mean_head)
    return TokenQuantities(
        nll=so_far.logsumexp() - _dots(hidden, head[targets]),
        base_nll=base.nll,
        cross_entropy=cross_entropy,
        hard_cross_entropy=so_far.logsumexp() - _dots(hidden, head[base.top]),
        base_entropy=base.entropy,
        kl_base_tuned=cross_entropy - base.entropy,
        agreement=so_far.argmax == base.top,
    )


def _dots(left: Float[Tensor, "t d"], right: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
    return (left.double() * right.double()).sum(-1)


def _logit_slices(
    hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"]
) -> Iterator[tuple[Float[Tensor, "s d"], Float[Tensor, "t s"]]]:
    """Slices of the head in float32, each with the logits it gives, which its reader may overwrite."""
    for part in torch.split(head, _SLICE):
        columns = part.float()
        yield columns, hidden @ columns.T


class _Normaliser:
    """Logsumexp and argmax over slices of logits that arrive one after another.

    The largest logit and the sum of exponentials below it are kept apart, the sum in float64, because a difference is
    taken later of numbers far larger than it. Ties go to the lowest index, as in torch.argmax.
    """

    def __init__(self, hidden: Float[Tensor, "t d"]) -> None:
        self.argmax = hidden.new_zeros(len(hidden), dtype=torch.int64)
        self.total = hidden.new_zeros(len(hidden), dtype=torch.float64)
        self._highest = hidden.new_full((len(hidden),), -torch.inf)
        self._seen = 0

    def add(
        self, logits: Float[Tensor, "t s"]
    ) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"], Float[Tensor, "t s"]]:
        """Take in a slice; returns what earlier weights and these are to be multiplied by, and these."""
        highest, index = logits.max(-1)
        self.argmax = torch.where(highest > self._highest, index + self._seen, self.argmax)
        self._seen += logits.shape[1]
        together = torch.maximum(highest, self._highest)
        kept, added = (self._highest - together).exp_(), (highest - together).exp_()
        weights = logits.sub_(highest[:, None]).exp_()
        self.total = self.total * kept + weights.sum(-1, dtype=torch.float64) * added
        self._highest = together
        return kept, added, weights

    def logsumexp(self) -> Float[Tensor, " t"]:
        """Of all logits taken in, float64."""
        return self._highest.double() + self.total.log()
