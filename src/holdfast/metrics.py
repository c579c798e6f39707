"""Pure tensor maths: final hidden states and an output head in, per-token quantities out.

Nothing here knows a model, a file or a device, and a (tokens x vocabulary) tensor never exists: every product with the
head is taken a slice of the vocabulary at a time, in float32, and reduced on the spot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import linear

from holdfast.kernels import bf16_units

# Logits that exist at once: 2 Mi x 4 bytes = 8 MiB, less than a CPU's caches hold; a GPU wants fewer, larger slices.
_LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}
_PART = 64


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns final hidden states into logits: softcap · tanh((W h + bias) / softcap), the last two where given."""

    weight: Float[Tensor, "v d"]
    bias: Float[Tensor, " v"] | None
    softcap: float | None

    @property
    def plain(self) -> bool:
        """Logits are W h and nothing else, which `token_quantities` rests on."""
        return self.bias is None and self.softcap is None

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256: models of the same head can be compared by cached vectors."""
        digest = hashlib.sha256(f"{tuple(self.weight.shape)}{self.weight.dtype}{self.softcap}".encode())
        for part in (self.weight, self.bias):
            if part is not None:
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """All of them at once, float32: for a few tokens."""
        logits: Tensor = _logits(hidden.flatten(0, -2), self, slice(None)).unflatten(0, hidden.shape[:-1])
        return logits


@dataclass(frozen=True, kw_only=True)
class BaseCache:
    """All that measuring forgetting needs of the base model: a (d + 5)-vector a token.

    With p = softmax(W h) the base's next-token distribution at a token, W the head, h the base's final hidden state:

        mean_head   sum_v p_v W_v           entropy   -sum_v p_v ln p_v
        top         argmax_v p_v            nll       -ln p[target]        top_nll   -ln p[top]

    Because the cross-entropy of any q = softmax(W g) against p is logsumexp(W g) - g . mean_head, a tuned model whose
    head is the base's own needs nothing else of the base: not its weights, not its logits. Invalid for another W.
    `mean_head` is float32, `entropy`, `nll` and `top_nll` float64, `top` int64. Rows follow the scored tokens as they
    were given.
    """

    mean_head: Float[Tensor, "t d"]
    entropy: Float[Tensor, " t"]
    nll: Float[Tensor, " t"]
    top: Int[Tensor, " t"]
    top_nll: Float[Tensor, " t"]


@dataclass(frozen=True, kw_only=True)
class BaseStates:
    """What measuring needs of the base where the tuned model has another head: final hidden states and its own head."""

    hidden: Float[Tensor, "t d"]
    head: Head


@dataclass(frozen=True, kw_only=True)
class TokenQuantities:
    """What the tuned model keeps of the base at each scored token, nats; float64 (`agreement` bool, tops int64).

    With p the base's and q the tuned model's next-token distribution:

        nll            -ln q[target]              base_nll              -ln p[target]
        cross_entropy  -sum_v p ln q              hard_cross_entropy    -ln q[argmax p]
        base_entropy   -sum_v p ln p              kl_base_tuned         cross_entropy - base_entropy
        agreement      argmax p == argmax q       top, top_nll          argmax q, -ln q[argmax q]
                                                  base_top, base_top_nll  the same of p
    """

    nll: Float[Tensor, " t"]
    base_nll: Float[Tensor, " t"]
    cross_entropy: Float[Tensor, " t"]
    hard_cross_entropy: Float[Tensor, " t"]
    base_entropy: Float[Tensor, " t"]
    kl_base_tuned: Float[Tensor, " t"]
    agreement: Bool[Tensor, " t"]
    top: Int[Tensor, " t"]
    top_nll: Float[Tensor, " t"]
    base_top: Int[Tensor, " t"]
    base_top_nll: Float[Tensor, " t"]


def base_cache(*, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], targets: Int[Tensor, " t"]) -> BaseCache:
    """What `token_quantities` needs of the base at each scored token; see `BaseCache`.

    One pass over the head, the mean rescaled as the normaliser grows and divided once by the very sum of its weights.
    The entropy is the cross-entropy of the base with itself, by the expression that `token_quantities` uses, so an
    unchanged model has a KL of exactly 0.
    Source: derived in docs/theory.md, section 2.
    """
    mean_head = torch.zeros_like(hidden, dtype=torch.float32)
    so_far = _Normaliser(hidden)
    for columns, logits in _logit_slices(hidden, head):
        kept, added, weights = so_far.add(logits)
        mean_head.mul_(kept[:, None]).addcmul_(added[:, None], weights @ columns.float())
    mean_head /= so_far.total[:, None].float()
    return BaseCache(
        mean_head=mean_head,
        entropy=so_far.logsumexp() - _dots(hidden, mean_head),
        nll=so_far.logsumexp() - _dots(hidden, head[targets]),
        top=so_far.argmax,
        top_nll=so_far.total.log(),
    )


def token_quantities(
    *, hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"], base: BaseCache, targets: Int[Tensor, " t"]
) -> TokenQuantities:
    """What the tuned model keeps of the base's next-token distributions, at each scored token, from cached vectors.

    `hidden` are the tuned model's final hidden states (after the last norm), `head` the output head it shares with the
    base, `targets` the text's own next tokens. Formulas in `TokenQuantities`; nats.

    One product with the head, reduced to its logsumexp a slice at a time; logits in float32 whatever the inputs'
    precision (bf16 logits would add 0.06 nats of noise a token), everything per token in float64. kl_base_tuned carries
    the logits' rounding, about 1e-7 of their size, so single tokens may be that far below 0; it is exactly 0 where
    hidden states equal the base's bit for bit.

    Equals the naive two-model computation with full logits; exact because the head is shared.
    Source: Kalajdzievski 2024, arXiv 2401.05605, section 3.1 (`hard_cross_entropy`); the rest in docs/theory.md.
    """
    so_far = _Normaliser(hidden)
    for _, logits in _logit_slices(hidden, head):
        so_far.add(logits)
    normaliser = so_far.logsumexp()
    cross_entropy = normaliser - _dots(hidden, base.mean_head)
    return TokenQuantities(
        nll=normaliser - _dots(hidden, head[targets]),
        base_nll=base.nll,
        cross_entropy=cross_entropy,
        hard_cross_entropy=normaliser - _dots(hidden, head[base.top]),
        base_entropy=base.entropy,
        kl_base_tuned=cross_entropy - base.entropy,
        agreement=so_far.argmax == base.top,
        top=so_far.argmax,
        top_nll=so_far.total.log(),
        base_top=base.top,
        base_top_nll=base.top_nll,
    )


def log_probabilities(
    *, hidden: Float[Tensor, "t d"], head: Head, rows: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Ln of the probability of `targets[i]` at the hidden state `hidden[rows[i]]`; nats, float64.

    One product with the head for each hidden state, however many targets are asked of it.
    """
    so_far = _Normaliser(hidden)
    columns = _columns(len(hidden), hidden.device)
    for start in range(0, len(head.weight), columns):
        so_far.add(_logits(hidden, head, slice(start, start + columns)))
    return _logit_at(hidden[rows], head, targets) - so_far.logsumexp()[rows]


def paired_quantities(
    *, hidden: Float[Tensor, "t e"], head: Head, base: BaseStates, targets: Int[Tensor, " t"]
) -> TokenQuantities:
    """The same as `token_quantities`, for heads that differ or are not plain, from both models' final hidden states.

    Two products with a head, slices of both side by side; no backbone of the base. The models number their tokens
    alike. Where one has more rows (a resized vocabulary), p is taken over the rows both have, renormalised, because no
    KL exists over rows that q lacks; q keeps all of its own, so mass it gives to new tokens counts as moved.

    Every weight sums exp(base logit) times a base and a tuned logit, so an unchanged model has a KL of exactly 0.
    """
    shared = min(len(base.head.weight), len(head.weight))
    p, q = _Normaliser(base.hidden), _Normaliser(hidden)
    mean_p, mean_q = (hidden.new_zeros(len(targets), dtype=torch.float64) for _ in range(2))
    columns = _columns(len(targets), hidden.device)
    for start in range(0, shared, columns):
        rows = slice(start, min(start + columns, shared))
        base_logits, tuned_logits = _logits(base.hidden, base.head, rows), _logits(hidden, head, rows)
        unweighted = base_logits.clone()
        kept, added, weights = p.add(base_logits)
        mean_p.mul_(kept).add_(added * (weights * unweighted).sum(-1).double())
        mean_q.mul_(kept).add_(added * (weights * tuned_logits).sum(-1).double())
        q.add(tuned_logits)
    for start in range(shared, len(head.weight), columns):
        q.add(_logits(hidden, head, slice(start, start + columns)))
    entropy = p.logsumexp() - mean_p / p.total
    cross_entropy = q.logsumexp() - mean_q / p.total
    return TokenQuantities(
        nll=q.logsumexp() - _logit_at(hidden, head, targets),
        base_nll=p.logsumexp() - _logit_at(base.hidden, base.head, targets),
        cross_entropy=cross_entropy,
        hard_cross_entropy=q.logsumexp() - _logit_at(hidden, head, p.argmax),
        base_entropy=entropy,
        kl_base_tuned=cross_entropy - entropy,
        agreement=p.argmax == q.argmax,
        top=q.argmax,
        top_nll=q.total.log(),
        base_top=p.argmax,
        base_top_nll=p.total.log(),
    )


def _dots(left: Float[Tensor, "t d"], right: Float[Tensor, "t d"]) -> Float[Tensor, " t"]:
    return (left.double() * right.double()).sum(-1)


def _columns(tokens: int, device: torch.device) -> int:
    """Rows of the head multiplied at once, in whole parts of `_highest`."""
    return max(256, _LOGITS_AT_ONCE.get(device.type, 1 << 21) // max(tokens, 1) // _PART * _PART)


def _logit_slices(
    hidden: Float[Tensor, "t d"], head: Float[Tensor, "v d"]
) -> Iterator[tuple[Float[Tensor, "s d"], Float[Tensor, "t s"]]]:
    """Slices of a plain head, each with the float32 logits it gives, which its reader may overwrite."""
    for part in torch.split(head, _columns(len(hidden), hidden.device)):
        yield part, _product(hidden, part)


def _product(hidden: Float[Tensor, "t d"], rows: Float[Tensor, "s d"]) -> Float[Tensor, "t s"]:
    """Logits in float32, their sums too. Products of bf16 numbers are exact there, so bf16 units may make them."""
    both_bf16 = hidden.dtype == rows.dtype == torch.bfloat16
    if both_bf16 and hidden.is_cuda:
        return torch.mm(hidden, rows.T, out_dtype=torch.float32)
    if both_bf16:
        with bf16_units():
            return hidden.float() @ rows.float().T
    return linear(hidden.float(), rows.float())


def _logits(hidden: Float[Tensor, "t d"], head: Head, rows: slice) -> Float[Tensor, "t s"]:
    logits = _product(hidden, head.weight[rows])
    if head.bias is not None:
        logits += head.bias[rows].float()
    return logits if head.softcap is None else (logits / head.softcap).tanh_().mul_(head.softcap)


def _logit_at(hidden: Float[Tensor, "t d"], head: Head, index: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
    """One logit a token, in float64."""
    logits = _dots(hidden, head.weight[index])
    if head.bias is not None:
        logits += head.bias[index].double()
    return logits if head.softcap is None else (logits / head.softcap).tanh_().mul_(head.softcap)


def _highest(logits: Float[Tensor, "t s"]) -> tuple[Float[Tensor, " t"], Int[Tensor, " t"]]:
    """The largest of each row and the first place that has it: `logits.max(-1)` at a fraction of its time on a CPU.

    The value alone is found fast; the place is looked for in the first part of the row that contains it.
    """
    if logits.shape[1] % _PART:
        highest, place = logits.max(-1)
        return highest, place
    parts = logits.unflatten(-1, (-1, _PART))
    highest, part = parts.amax(-1).max(-1)
    return highest, part * _PART + parts[torch.arange(len(parts), device=parts.device), part].argmax(-1)


class _Normaliser:
    """Logsumexp and argmax over slices of logits that arrive one after another.

    The largest logit and the sum of exponentials below it are kept apart, the sum over slices in float64, because a
    difference is taken later of numbers far larger than it. Ties go to the lowest index, as in torch.argmax.
    """

    def __init__(self, hidden: Float[Tensor, "t d"]) -> None:
        self.argmax = hidden.new_zeros(len(hidden), dtype=torch.int64)
        self.total = hidden.new_zeros(len(hidden), dtype=torch.float64)
        self._highest = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        self._seen = 0

    def add(
        self, logits: Float[Tensor, "t s"]
    ) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"], Float[Tensor, "t s"]]:
        """Take in a slice; returns what earlier weights and these are to be multiplied by, and these."""
        highest, index = _highest(logits)
        self.argmax = torch.where(highest > self._highest, index + self._seen, self.argmax)
        self._seen += logits.shape[1]
        together = torch.maximum(highest, self._highest)
        kept, added = (self._highest - together).exp_(), (highest - together).exp_()
        weights = logits.sub_(highest[:, None]).exp_()
        # One slice's sum in float32 is good to 1e-7 and a twentieth of the time of a float64 one.
        self.total = self.total * kept + weights.sum(-1) * added.double()
        self._highest = together
        return kept, added, weights

    def logsumexp(self) -> Float[Tensor, " t"]:
        """Of all logits taken in, float64."""
        return self._highest.double() + self.total.log()
