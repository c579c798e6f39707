"""Which precision this machine is fast in, and the two costliest operations of a forward pass, faster than torch's own.

Every model, adapter and library calls torch's `linear` and `scaled_dot_product_attention`; inside `fast_kernels` these
two are answered here. Measured on one AMD CPU (LOG.md). On a GPU all is torch's own; with gradients, all but attention.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from holdfast.packed import PackedAttention, documents_of

# Query rows multiplied at once, all heads that share keys counted: their scores stay in a core's cache.
_ROWS = {torch.float32: 96, torch.bfloat16: 192}
# From here on torch's own attention, which also cuts the keys, is as fast.
_LONGEST = 1024
# Below so many numbers a row, copying into oneDNN's layout and back costs more than its faster product saves.
_NARROWEST = 128


def fastest_dtype(device: str) -> str:
    """`bfloat16` where this machine multiplies it faster than float32, else `float32`; one probe of about 50 ms.

    A CPU without native bf16 emulates it tens of times slower, and no flag says so portably: hence the stopwatch. Each
    is timed in turn and its best time counts, so that a busy moment does not decide.
    """
    left, right = torch.randn(256, 576, device=device), torch.randn(576, 1536, device=device)
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(6):
        for dtype, best in seconds.items():
            a, b = left.to(dtype), right.to(dtype)
            start = time.perf_counter()
            (a @ b).sum().item()
            seconds[dtype] = min(best, time.perf_counter() - start)
    return "bfloat16" if seconds[torch.bfloat16] < seconds[torch.float32] else "float32"


class fast_kernels(TorchFunctionMode):  # noqa: N801  (a context, named like torch.no_grad)
    """Inside: float32 matrix products by oneDNN without gradients, causal attention by ours with and without.

    The same sums in another order: errors against float64 are those of torch's own. Base and tuned model must both be
    run inside, or both outside. A class because torch's documented way to answer a function's calls is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: tuple[Tensor | None, list[int] | None] = (None, None)  # a mask is every layer's

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """What torch calls for every function; all but two go through."""
        ours: dict[Callable[..., Any], Callable[..., Any]] = {
            linear: _linear,
            scaled_dot_product_attention: self._attention,
        }
        return ours.get(func, func)(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        plain = query.ndim == 4 and query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
        same = query.dtype == key.dtype == value.dtype and query.shape[2] == key.shape[2] <= _LONGEST
        grouped = enable_gqa or query.shape[1] == key.shape[1]
        if plain and same and grouped and dropout_p == 0:
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            learning = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
            if not torch.is_grad_enabled() and is_causal and attn_mask is None:
                return causal_attention(query, key, value, scale=factor)
            documents = self._documents(query, attn_mask, is_causal=is_causal) if learning else None
            if documents is not None:
                attended: Tensor = PackedAttention.apply(query, key, value, documents, factor)  # type: ignore[no-untyped-call]
                return attended
        return scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip

    def _documents(self, query: Tensor, mask: Tensor | None, *, is_causal: bool) -> list[int] | None:
        """Lengths of the documents in which a causal model attends, None where it attends otherwise."""
        batch, _, length, _ = query.shape
        if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
            return None
        if mask is None:
            return [length] * batch if is_causal else None
        if mask.dtype != torch.bool or mask.shape != (batch, 1, length, length):
            return None
        if self._known[0] is not mask:
            self._known = (mask, documents_of(mask))
        return self._known[1]


@contextlib.contextmanager
def bf16_units() -> Iterator[None]:
    """Let a CPU that has them (AMX) multiply float32 matrices by bf16 units; rounds what is not bf16 already.

    Another CPU multiplies in float32 all the same, but by oneDNN, which is faster than torch's first choice.
    """
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch's stubs lack it
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    plain = input.dtype == weight.dtype == torch.float32 and input.device.type == weight.device.type == "cpu"
    wide = weight.ndim == 2 and weight.shape[1] >= _NARROWEST and torch.backends.mkldnn.is_available()
    if plain and wide and input.numel() and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")):
        product: Tensor = linear(input.to_mkldnn(), weight, bias).to_dense()
        return product
    return linear(input, weight, bias)


def causal_attention(
    query: Float[Tensor, "b h t d"], key: Float[Tensor, "b g t d"], value: Float[Tensor, "b g t e"], *, scale: float
) -> Float[Tensor, "b h t e"]:
    """softmax(scale · query · key', earlier positions only) · value; h / g heads share each key and value.

    A block of queries against the keys up to its end, so what lies above the diagonal is hardly computed, and all
    heads that share keys in one product. Everything in float32, the result rounded to the inputs' precision; of bf16
    inputs `bf16_units` may make the products: the scores are the same, probabilities are rounded as torch's own are.
    """
    with bf16_units() if query.dtype == torch.bfloat16 else contextlib.nullcontext():
        return _causal_attention(query, key, value, scale=scale)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    (batch, heads, length, width), groups = query.shape, key.shape[1]
    keys = key.reshape(batch * groups, length, width).float().transpose(1, 2)
    values = value.reshape(batch * groups, length, -1).float()
    out = query.new_empty(batch, length, heads, values.shape[-1]).transpose(1, 2)
    asked, answered = (states.unflatten(1, (groups, heads // groups)) for states in (query, out))
    rows = max(16, _ROWS[query.dtype] * groups // heads)
    future = torch.full((rows, rows), -torch.inf).triu(1)
    for start in range(0, length, rows):
        end = min(start + rows, length)
        block = asked[..., start:end, :].reshape(batch * groups, -1, width).float()
        scores = torch.bmm(block, keys[..., :end]).mul_(scale)
        scores.unflatten(1, (-1, end - start))[..., start:].add_(future[: end - start, : end - start])
        found = torch.bmm(scores.softmax(-1), values[:, :end])
        answered[..., start:end, :] = found.view(batch, groups, heads // groups, end - start, -1)
    return out
