"""A model some of whose own weights are trained: full fine-tuning, or a part of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Thawed(torch.nn.Module):
    """A frozen base, and float32 copies of some of its weights that are trained and stand in for them in every pass.

    The base itself is never changed: let go of this, and it is what it was. A pass sees each copy in the base's own
    precision, so it makes the numbers of a model of that precision, and at the start exactly the base's. Weights that
    are one in the base (a tied head) have one copy.

    A module, because optimisers, checkpoints and counts look for parameters, and find the copies alone to be trained.
    """

    def __init__(self, base: Any, trained: Iterable[str]) -> None:
        super().__init__()
        self.base = base
        self.trained = torch.nn.ParameterDict()
        self._copies: dict[int, str] = {}
        parameters = dict(base.named_parameters())
        for name in trained:
            key = name.replace(".", "/")  # torch takes no dots
            self.trained[key] = torch.nn.Parameter(parameters[name].detach().to(torch.float32, copy=True))
            self._copies[id(parameters[name])] = key

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        device: torch.device = self.base.device
        return device

    def thawed(self, weight: Tensor) -> bool:
        """Whether a weight of the base is trained."""
        return id(weight) in self._copies

    def now(self, weight: Tensor) -> Tensor:
        """What stands for a weight of the base in a pass now."""
        return self.trained[self._copies[id(weight)]].to(weight.dtype) if self.thawed(weight) else weight

    def run(self, part: torch.nn.Module, **inputs: Any) -> Any:
        """A pass through a part of the base, with the trained weights in it."""
        weights = {name: self.now(weight) for name, weight in part.named_parameters() if self.thawed(weight)}
        return torch.func.functional_call(part, weights, (), inputs)

    def whole(self) -> dict[str, Tensor]:
        """Every weight of the model as it is now, in the base's precision, by its name in the base."""
        found: dict[int, Tensor] = {}
        for weight in self.base.parameters():
            found[id(weight)] = self.now(weight).detach()
        return {name: found.get(id(weight), weight) for name, weight in self.base.state_dict(keep_vars=True).items()}


def blocks(base: Any) -> torch.nn.ModuleList:
    """A causal model's decoder blocks, the lowest first."""
    wanted = base.config.get_text_config().num_hidden_layers
    lists = (each for each in base.get_decoder().modules() if isinstance(each, torch.nn.ModuleList))
    return next(each for each in lists if len(each) == wanted)
