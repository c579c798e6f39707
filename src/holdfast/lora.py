"""LoRA's map as three matrix products each way, nothing between them: PEFT's, of the same parameters, is slower.

PEFT copies a map's input into float32 and, under autocast, back, scales the small product and adds it to the large one,
each in a pass over memory of its own; on a small model that is a tenth of a step (LOG.md). Here the small product is
accumulated into the large one, forward and backward.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import linear


class LoraMap(torch.autograd.Function):
    """x W' + bias + scale · x A' B', with gradients of x, A and B; products in the precision of W.

    Arguments: x (…, d), W (o, d) and bias (o) of the frozen map, A (r, d) and B (o, r) in their own precision; scale.
    A class because torch asks for one.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "... d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, " o"] | None,
        down: Float[Tensor, "r d"], up: Float[Tensor, "o r"], scale: float,
    ) -> Float[Tensor, "... o"]:  # fmt: skip
        """See the class."""
        rows = x.flatten(0, -2).to(weight.dtype)
        narrow, wide = down.to(weight.dtype), (up * scale).to(weight.dtype)
        inner = rows @ narrow.T
        ctx.save_for_backward(rows, weight, narrow, wide, inner)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, down.dtype, up.dtype)
        mapped: Tensor = linear(rows, weight, bias).addmm_(inner, wide.T)
        return mapped.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: Float[Tensor, "... o"]) -> tuple[Tensor | None, ...]:
        """Gradients of x, where asked for, A and B."""
        rows, weight, narrow, wide, inner = ctx.saved_tensors
        of_x, of_down, of_up = ctx.dtypes
        arriving = upstream.flatten(0, -2)
        of_inner = arriving @ wide
        found = (
            (arriving @ weight).addmm_(of_inner, narrow).view(ctx.shape).to(of_x) if ctx.needs_input_grad[0] else None
        )
        up = (arriving.T @ inner).to(of_up).mul_(ctx.scale)
        return found, None, None, (of_inner.T @ rows).to(of_down), up, None


def quicken(model: torch.nn.Module) -> None:
    """Have every plain LoRA map of a model computed by `LoraMap`; others stay PEFT's.

    Plain: one adapter on a linear map, without dropout, bias or a variant such as DoRA. Whatever else PEFT is told to
    do with the layer (disable it, merge it, add another adapter) it does itself.
    """
    for layer in model.modules():
        if type(layer) is Linear and _is_plain(layer):
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]


def _is_plain(layer: Linear) -> bool:
    name = layer.active_adapters[0]
    frozen = layer.get_base_layer()
    bare = type(frozen) is torch.nn.Linear and not layer.lora_variant and not layer.fan_in_fan_out
    return bare and isinstance(layer.lora_dropout[name], torch.nn.Identity) and layer.lora_B[name].bias is None


def _forward(layer: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = layer.active_adapters
    if args or kwargs or layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        told: Tensor = Linear.forward(layer, x, *args, **kwargs)
        return told
    down, up, frozen = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight, layer.get_base_layer()
    mapped: Tensor = LoraMap.apply(x, frozen.weight, frozen.bias, down, up, layer.scaling[names[0]])  # type: ignore[no-untyped-call]
    return mapped
