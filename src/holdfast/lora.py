"""LoRA's map as three matrix products each way, for one adapter or for several at once over one frozen map.

PEFT copies a map's input into float32 and, under autocast, back, scales the small product and adds it to the large one,
each in a pass over memory of its own; on a small model that is a tenth of a step (LOG.md). Here the small product is
accumulated into the large one, forward and backward.

In 16 bits PEFT's sum is of two rounded numbers, and whatever the adapter adds below half a unit in the last place of
the frozen product is lost: of a young adapter half of what it forgot (LOG.md). Here the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn.functional import linear


class LoraMap(torch.autograd.Function):
    """x W' + bias + scale · x A' B', with gradients of x, A and B; products in the precision of W.

    Arguments: x (k · n, …, d), W (o, d) and bias (o) of the frozen map, the scales of k adapters, and A (r, d) and B
    (o, r) of each in turn, in their own precision and with their own r. The first n of x are the first adapter's, and
    so on. A class because torch asks for one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "kn ... d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, " o"] | None,
        scales: Sequence[float], *factors: Tensor,
    ) -> Float[Tensor, "kn ... o"]:  # fmt: skip
        """See the class."""
        rows = x.flatten(0, -2).to(weight.dtype)
        narrow = [down.to(weight.dtype) for down in factors[::2]]
        wide = [(up * scale).to(weight.dtype) for up, scale in zip(factors[1::2], scales, strict=True)]
        inner = [part @ down.T for part, down in zip(rows.chunk(len(scales)), narrow, strict=True)]
        mapped = _sum_of_products(rows, weight, inner, wide, bias)
        ctx.save_for_backward(rows, weight, *narrow, *wide, *inner)
        ctx.scales, ctx.shape, ctx.dtypes = scales, x.shape, (x.dtype, *(factor.dtype for factor in factors))
        return mapped.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, "kn ... o"]) -> tuple[Tensor | None, ...]:
        """Gradients of x, where asked for, and of every A and B."""
        count = len(ctx.scales)
        rows, weight, *kept = ctx.saved_tensors
        narrow, wide, inner = kept[:count], kept[count : 2 * count], kept[2 * count :]
        arriving = upstream.flatten(0, -2)
        parts, entered = arriving.chunk(count), rows.chunk(count)
        of_inner = [part @ up for part, up in zip(parts, wide, strict=True)]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_rows = _sum_of_products(arriving, weight.T, of_inner, [down.T for down in narrow])
            of_x = of_rows.view(ctx.shape).to(ctx.dtypes[0])
        of_factors: list[Tensor] = []
        for k, scale in enumerate(ctx.scales):
            of_factors.append((of_inner[k].T @ entered[k]).to(ctx.dtypes[1 + 2 * k]))
            of_factors.append((parts[k].T @ inner[k]).to(ctx.dtypes[2 + 2 * k]).mul_(scale))
        return of_x, None, None, None, *of_factors


def _sum_of_products(
    rows: Float[Tensor, "kn d"], weight: Float[Tensor, "o d"], inner: Sequence[Tensor], wide: Sequence[Tensor],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "kn o"]:  # fmt: skip
    """The product rows weight' + bias, and to each kth of it inner (n, r) wide' (o, r); rounded once.

    In 16 bits that is one product of both laid side by side. Where all of `wide` is 0, as at step 0, it is the frozen
    map's own, to the bit.
    """
    if rows.element_size() > 2:
        mapped: Tensor = linear(rows, weight, bias)
        for part, small, up in zip(mapped.chunk(len(wide)), inner, wide, strict=True):
            part.addmm_(small, up.T)
        return mapped
    if not any(up.any() for up in wide):
        return linear(rows, weight, bias)
    parts = [
        linear(torch.cat([part, small], 1), torch.cat([weight, up], 1), bias)
        for part, small, up in zip(rows.chunk(len(wide)), inner, wide, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def quicken(model: torch.nn.Module) -> None:
    """Have every plain LoRA map of a model computed by `LoraMap`; others stay PEFT's.

    Plain: one adapter on a linear map, without dropout, bias or a variant such as DoRA. Whatever else PEFT is told to
    do with the layer (disable it, merge it, add another adapter) it does itself.
    """
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = partial(_forward, (layer,))  # type: ignore[method-assign]


def can_share_a_pass(models: Sequence[torch.nn.Module]) -> bool:
    """Whether models of one base differ in plain LoRA maps alone, of the same frozen maps: see `sharing_a_pass`.

    Not where anything is dropped out: each run draws its own.
    """
    if any(_drops_out(part) for part in models[0].modules()):
        return False
    adapted = [[layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)] for model in models]
    plain = all(layers and all("forward" in vars(layer) for layer in layers) for layers in adapted)
    if not plain or len(set(map(len, adapted))) > 1:
        return False
    return all(
        len({layer.get_base_layer().weight.data_ptr() for layer in layers}) == 1
        for layers in zip(*adapted, strict=True)
    )


def _drops_out(part: torch.nn.Module) -> bool:
    probability = (
        getattr(part, "p", 0.0) if "Dropout" in type(part).__name__ else getattr(part, "attention_dropout", 0.0)
    )
    return isinstance(probability, float) and probability > 0


@contextmanager
def sharing_a_pass(models: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, a pass through the first of k models takes k parts of its batch, each through the adapter of one model.

    Frozen maps, norms and attention see one large batch; LoRA's maps alone know whose rows are whose.
    """
    adapted = [[layer for layer in model.modules() if isinstance(layer, Linear)] for model in models]
    for layers in zip(*adapted, strict=True):
        layers[0].forward = partial(_forward, layers)
    try:
        yield
    finally:
        for layer in adapted[0]:
            layer.forward = partial(_forward, (layer,))  # type: ignore[method-assign]


def _is_plain(layer: Linear) -> bool:
    name = layer.active_adapters[0]
    frozen = layer.get_base_layer()
    bare = type(frozen) is torch.nn.Linear and not layer.lora_variant and not layer.fan_in_fan_out
    return bare and isinstance(layer.lora_dropout[name], torch.nn.Identity) and layer.lora_B[name].bias is None


def _forward(layers: tuple[Linear, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The map of the first layer, for the adapters of all."""
    first, names = layers[0], layers[0].active_adapters
    if args or kwargs or first.disable_adapters or first.merged or len(names) != 1 or names[0] not in first.lora_A:
        told: Tensor = Linear.forward(first, x, *args, **kwargs)
        return told
    frozen = first.get_base_layer()
    factors = [side[names[0]].weight for layer in layers for side in (layer.lora_A, layer.lora_B)]
    scales = [layer.scaling[names[0]] for layer in layers]
    mapped: Tensor = LoraMap.apply(x, frozen.weight, frozen.bias, scales, *factors)  # type: ignore[no-untyped-call]
    return mapped
