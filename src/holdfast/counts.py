"""What a fine-tuning trains and what it multiplies, counted on the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holdfast.costs import flop_per_token
from holdfast.models import Base, Tuned, causal, prompted
from holdfast.thawed import Thawed, blocks


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one fine-tuning, in parameters, and operations to train on a token."""

    trained: int
    """The law's P."""
    frozen: int
    """And multiplied by every token."""
    flop_per_token: float
    """As `costs.flop_per_token`; no gradient passes through blocks below everything that is trained."""


def trainable_params(model: torch.nn.Module) -> int:
    """The law's P: how many numbers training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def multiplying_params(model: Base) -> int:
    """Parameters that every token is multiplied by: all but an input embedding that is not also the output head."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    sizes = {id(parameter): _size(parameter) for parameter in model.parameters()}
    return sum(sizes.values()) - (0 if head is embedding else sizes[id(embedding)])


def count(tuned: Tuned, *, base_params: int) -> Counts:
    """Count a model that is ready to be trained; `base_params` are the base's `multiplying_params`."""
    trained, multiplied = trainable_params(tuned), trainable_params(tuned)
    frozen = base_params
    if isinstance(tuned, Thawed):
        embedding, head = (
            each.weight for each in (tuned.base.get_input_embeddings(), tuned.base.get_output_embeddings())
        )
        if tuned.thawed(embedding) and head is not embedding:  # looked up, not multiplied
            multiplied -= embedding.numel()
        frozen -= multiplied
    below = _below(tuned)
    return Counts(
        trained=trained,
        frozen=frozen,
        flop_per_token=flop_per_token(
            base_params=frozen - below, trainable_params=multiplied, forward_params=below
        ),
    )  # fmt: skip


def _below(tuned: Tuned) -> int:
    """Parameters of the decoder blocks under the lowest that has something to train."""
    if prompted(tuned):
        return 0
    below = 0
    for block in blocks(causal(tuned)):
        parameters = list(block.parameters())
        thawed = isinstance(tuned, Thawed) and any(map(tuned.thawed, parameters))
        if thawed or any(parameter.requires_grad for parameter in parameters):
            return below
        below += sum(map(_size, parameters))
    return 0


def _size(parameter: torch.nn.Parameter) -> int:
    """How many numbers it stands for: of one in 4 bits, two share a byte."""
    quantised = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantised is None else int(quantised.shape.numel())
