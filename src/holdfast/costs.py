"""What a run costs: tokens trained on, floating-point operations, and time at a speed that was measured."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.display import duration
from holdfast.errors import ConfigError
from holdfast.stats import as_dict

FROZEN_FLOP = 4
"""Per token and frozen parameter: 2 forward, 2 backward to pass the gradient on."""

FORWARD_FLOP = 2
"""Per token and frozen parameter below everything that is trained: nothing asks for a gradient there."""

TRAINED_FLOP = 6
"""Per token and trained parameter: those 4, and 2 for the parameter's own gradient."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training takes, without measuring. None where what it follows from is not known."""

    tokens: int | None
    """Trained on, padding and prompts included: steps times tokens per step."""
    flop: float | None
    seconds: float | None
    """At the speed that was measured, on the machine it was measured on."""

    def __str__(self) -> str:
        """The known parts as a person says them: 1,638,400 tokens, 4.3e16 FLOP, 12 min at the measured speed."""
        parts = [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        if self.flop is not None:
            parts.append(f"{self.flop:.2g} FLOP".replace("e+", "e"))
        if self.seconds is not None:
            parts.append(f"{duration(self.seconds)} at the measured speed")
        return ", ".join(parts) or "unknown"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return as_dict(self)


def flop_per_token(*, base_params: float, trainable_params: float, forward_params: float = 0) -> float:
    """Floating-point operations to train on one token, with `base_params` frozen and `trainable_params` on top.

        flop = 4 · base_params + 6 · trainable_params + 2 · forward_params

    A matrix takes 2 operations a parameter and token (multiply, add) each for its output, for passing the gradient on
    to its input, and for its own gradient; what is frozen has no need of the third. So adapters of a thousandth of the
    base's size cost two thirds of full fine-tuning, which is 6 · n: `base_params=0, trainable_params=n`. Frozen layers
    below everything that is trained, `forward_params`, pass no gradient on either.

    `base_params` counts what multiplies: without the input embedding, unless it is also the output head. Not counted
    are attention scores, which grow with the context, normalisation, the optimiser, and anything computed twice to
    save memory (gradient checkpointing adds 2 a parameter).

    Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1, whose 6 is 2 + 2 + 2.
    """
    return FROZEN_FLOP * base_params + TRAINED_FLOP * trainable_params + FORWARD_FLOP * forward_params


def cost(
    *,
    steps: float,
    tokens_per_step: float | None,
    trainable_params: float,
    base_params: float | None,
    seconds_per_token: float | None,
) -> Cost:
    """What `steps` update steps of `tokens_per_step` tokens cost; what is None is not known, nor what follows from it.

    Operations as `flop_per_token`, all that is trained taken to multiply: too many where an input embedding that is not
    the head is trained as well. `seconds_per_token` is of training alone, and taken as the same for every rank.

    Raises:
        ConfigError: something known that is not a positive number.
    """
    known = {"tokens_per_step": tokens_per_step, "base_params": base_params, "seconds_per_token": seconds_per_token}
    for name, value in known.items():
        none_frozen = name == "base_params" and value == 0  # full fine-tuning
        if value is not None and not none_frozen and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"got {name} {value}, expected a positive number, at the cost of training")
    if tokens_per_step is None:
        return Cost(tokens=None, flop=None, seconds=None)
    tokens = round(steps * tokens_per_step)
    per_token = (
        None if base_params is None else flop_per_token(base_params=base_params, trainable_params=trainable_params)
    )
    return Cost(
        tokens=tokens,
        flop=None if per_token is None else tokens * per_token,
        seconds=None if seconds_per_token is None else tokens * seconds_per_token,
    )


@dataclass(frozen=True, kw_only=True)
class SweepCost:
    """What making the `runs` of a study that are not made yet takes on this machine.

    `tokens` are trained on; `flop` are of training. `disk_bytes` is what the finished runs take, and what the largest
    of them needs on the way; `memory_bytes` the most that was in use while trying (of the GPU, where it trains), and
    `device_memory_bytes` the same of each process that holds the base with others, or of the one there is.
    """

    runs: int
    seconds: float
    tokens: int
    flop: float
    memory_bytes: int
    device_memory_bytes: Sequence[int]
    disk_bytes: int
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)
