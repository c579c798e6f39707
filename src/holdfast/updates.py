"""One update step of a run, or of several runs that share a base, in one pass over their batches together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from holdfast import checkpoints, models
from holdfast.config import Optimizer, RunConfig
from holdfast.corpora import Block
from holdfast.errors import out_of_memory
from holdfast.lora import can_share_a_pass
from holdfast.losses import batch_losses
from holdfast.models import Tuned
from holdfast.sharding import Shard

log = logging.getLogger(__name__)


class Diverged(Exception):  # noqa: N818  (a state of a run, not a mistake)
    """A loss or gradient that is NaN or infinite; ends the run, never becomes a number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """An update step that a run asks for: number `step` (from 0), on `blocks`, `rows` of a block at once.

    Of a run that several processes make, each asks for it, of its own `shard`, and passes its own share of the rows.
    """

    tuned: Tuned
    optimizer: torch.optim.Optimizer
    blocks: Sequence[Block]
    config: RunConfig
    step: int
    rows: int
    random: Mapping[str, Tensor] | None = None
    """The run's own state of the generators, as `checkpoints.random_state` gives it; None: as they stand."""
    shard: Shard | None = None


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What came of it: the mean loss per scored token before it, in nats, and rows of a block that fit in memory."""

    loss: float
    rows: int
    random: Mapping[str, Tensor]
    """Of the generators, after it."""


def learning_rate(config: Optimizer, *, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) of `steps`: linear warm-up, then constant or a half cosine down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / (steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(config: Optimizer, tuned: Tuned) -> torch.optim.Optimizer:
    """The update rule over the trainable parameters; the learning rate is set anew at every step."""
    parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return models.adafactor(parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay)


def update(asked: Sequence[Update]) -> list[Updated | Exception]:
    """Make the update steps of one run or several; what came of each, in their order.

    Several make one pass if they differ in plain LoRA alone, nothing is dropped out, and their batches have one shape
    and fit in memory together; else one after another: the same numbers but for rounding. Each has its own loss,
    clipping, learning rate, optimiser and random numbers.

    Gradients are summed over micro-batches and divided once by a step's scored tokens, so how a batch is cut into
    micro-batches does not change what is learned: where memory runs out with `rows` at once, half as many are tried,
    but not where other processes make the same passes.

    A run whose loss or gradient is NaN or infinite has `Diverged`, one of several for which one row alone is too much
    what torch said, and none of its parameters was moved.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: what torch says when one row of the only run is too much.
    """
    shapes = {tuple(block.ids.shape for block in one.blocks) for one in asked}
    if len(asked) > 1 and (len(shapes) > 1 or not can_share_a_pass([one.tuned for one in asked])):
        return _in_turn(asked)
    rows = min(one.rows for one in asked)
    random = asked[0].random or checkpoints.random_state(asked[0].tuned)
    while True:
        checkpoints.set_random_state(random, asked[0].tuned)
        try:
            totals = _backward(asked, rows)
            break
        except (RuntimeError, MemoryError) as error:
            for one in asked:
                one.optimizer.zero_grad(set_to_none=True)
            if asked[0].shard or not out_of_memory(error) or rows == len(asked) == 1:
                raise
        if rows == 1:
            return _in_turn([replace(one, rows=1) for one in asked])
        log.warning("step %d: out of memory with %d rows at once, %d are tried", asked[0].step + 1, rows, -(-rows // 2))
        rows = -(-rows // 2)
    return [_step(one, total, rows) for one, total in zip(asked, totals, strict=True)]


def _in_turn(asked: Sequence[Update]) -> list[Updated | Exception]:
    """One run after another: what is too much for one is not too much for all."""
    made: list[Updated | Exception] = []
    for one in asked:
        try:
            made += update([one])
        except (RuntimeError, MemoryError) as error:
            made.append(error)
    return made


def _scored(one: Update) -> int:
    return max(1, sum(int(block.scored.sum()) for block in one.blocks))


def _backward(asked: Sequence[Update], rows: int) -> list[float]:
    """Make the gradient of each run's mean loss; gives its summed loss."""
    tuned, totals, shard = [one.tuned for one in asked], [0.0] * len(asked), asked[0].shard
    for blocks in zip(*(one.blocks for one in asked), strict=True):
        ours = [_share(block, shard) for block in blocks]
        for parts in zip(*(_parts(block, rows) for block in ours), strict=True):
            with shard.own_noise() if shard else nullcontext():
                losses = batch_losses(tuned, parts)
                _sum([loss / _scored(one) for loss, one in zip(losses, asked, strict=True)]).backward()
            totals = [total + loss.item() for total, loss in zip(totals, losses, strict=True)]
    return totals if shard is None else _over_all(shard, tuned, totals)


def _over_all(shard: Shard, tuned: Sequence[Tuned], totals: Sequence[float]) -> list[float]:
    """Summed losses over all processes, and every gradient put in place of this one's part of it."""
    gradients = [parameter.grad for one in tuned for parameter in one.parameters() if parameter.grad is not None]
    shard.sum(gradients)
    summed = torch.tensor(totals, dtype=torch.float64)
    shard.sum([summed])
    return summed.tolist()


def _sum(losses: Sequence[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum()


def _step(one: Update, total: float, rows: int) -> Updated | Exception:
    """Move a run's parameters by the gradient they have, and let it go."""
    loss, random = total / _scored(one), checkpoints.random_state(one.tuned)
    parameters = [parameter for group in one.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, one.config.optimizer.max_grad_norm or math.inf)
    if not (math.isfinite(total) and torch.isfinite(norm)):
        return Diverged(f"step {one.step + 1}: got loss {loss:g} and gradient norm {norm.item():g}")
    for group in one.optimizer.param_groups:
        group["lr"] = learning_rate(one.config.optimizer, step=one.step, steps=one.config.steps)
    one.optimizer.step()
    one.optimizer.zero_grad(set_to_none=True)
    return Updated(loss=loss, rows=rows, random=random)


def _share(block: Block, shard: Shard | None) -> Block:
    """The rows of a block that this process passes."""
    if shard is None:
        return block
    return list(_parts(block, len(block.ids) // shard.of))[shard.number]


def _parts(block: Block, rows: int) -> Iterator[Block]:
    """A block in blocks of so many rows, the last with what is left."""
    for start in range(0, len(block.ids), rows):
        columns = {field.name: getattr(block, field.name)[start : start + rows] for field in fields(block)}
        yield Block(**columns)
