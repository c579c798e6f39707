"""One run on several devices: the base's blocks divided between processes, a process a device, adapters whole in each.

Every process makes the same passes in the same order: a training pass each of its own rows of a batch, a measuring pass
all of the same. A block of the base is put together for the time of a pass through it (FSDP2) and divided again. Losses
and the adapters' gradients are summed over the processes, so adapters, optimiser, clipping, checkpoints and results are
those of one process; the first alone owns the run and writes. Sockets are on loopback, and whoever can read the
meeting's file alone can join.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from holdfast.config import Study, refusal
from holdfast.errors import ConfigError, Interrupted, ModelError, as_ours
from holdfast.interrupts import Stop
from holdfast.methods import Ia3, Lora
from holdfast.mistakes import Key, show
from holdfast.models import Base
from holdfast.thawed import blocks

_PATIENCE = timedelta(days=365)
"""The first may wait for a run that another sweep owns, and all others with it; deaths are seen by who started them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One of the processes that hold a base together: number `number`, from 0, of `of`, on its own `device`.

    A class with behaviour because it is a place in a process group; every method is called by all at the same point.
    """

    number: int
    of: int
    device: str

    def told(self, content: Any = None) -> Any:
        """What the first process says, as JSON holds it."""
        said = json.dumps(content).encode() if self.number == 0 else b""
        size = torch.tensor([len(said)])
        dist.broadcast(size, 0)
        letters = torch.frombuffer(bytearray(said or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(letters, 0)
        return json.loads(letters.numpy().tobytes())

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in each tensor's place; all of one precision and device."""
        if tensors:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            for tensor, whole in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(whole.view_as(tensor))

    def each(self, value: float) -> list[float]:
        """What every process has of a number, in their order."""
        values = torch.zeros(self.of, dtype=torch.float64)
        values[self.number] = value
        dist.all_reduce(values)
        return values.tolist()

    def check(self, stop: Stop) -> None:
        """Stop here, all of them, if any was asked to.

        Raises:
            Interrupted: one was.
        """
        try:
            stop.check()
            asked = 0.0
        except Interrupted:
            asked = 1.0
        if any(self.each(asked)):
            stop.asked = stop.asked or signal.SIGTERM
            stop.check()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside is one process at a time: the whole base is in the machine's memory once."""
        for turn in range(self.of):
            if turn == self.number:
                yield
            self.each(turn)

    @contextmanager
    def own_noise(self) -> Iterator[None]:
        """Inside, dropout draws what it draws in no other process; outside, all draw the same, before and after."""
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng():
            torch.manual_seed(seed + self.number)
            yield

    def divide(self, base: Base) -> None:
        """Keep this process's part of every decoder block, and all the rest; block by block, so never the whole there.

        Raises:
            ModelError: a block cannot be divided.
        """
        mesh = init_device_mesh(torch.device(self.device).type, (self.of,))
        with as_ours(ModelError, lambda why: f"got {base.config.model_type}, which cannot be divided: {why}"):
            for block in blocks(base):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            torch.nn.Module.to(base, self.device)
            whole = {weight for weight in base.parameters() if not isinstance(weight, DTensor)}
            if self.device == "cpu":
                for weight in whole:
                    weight.data = weight.data.clone()  # what is mapped from a file keeps all of it in memory
            fully_shard(base.get_decoder(), mesh=mesh, ignored_params=whole)  # has each block fetched ahead of its pass


def told(shard: Shard | None, find: Callable[[], Any]) -> Any:
    """What is found, in JSON's types; where processes share a base, by the first of them for all."""
    if shard is None:
        return find()
    return shard.told(find() if shard.number == 0 else None)


@contextmanager
def joined(meeting: Path, *, number: int, of: int, device: str) -> Iterator[Shard]:
    """Be one of the processes that hold a base together: they find each other by a file that nobody had before."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.update({"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback})
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store = dist.FileStore(str(meeting), of)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=of, timeout=_PATIENCE)
    yield Shard(number=number, of=of, device=device)
    dist.destroy_process_group()  # after an error others may wait where this would wait for them: then the end does it


def check(study: Study, *, shard: int, device: str, workers: int = 1, pack: int = 1) -> None:
    """Refuse what cannot be divided between so many devices, each at the place where it was written.

    Raises:
        ConfigError: a batch they do not divide, weights of the base's own or a base in 4 bits to be trained, a method
            that PEFT alone knows, fewer GPUs than that, or several runs side by side.
    """
    found: list[tuple[Key, str, str]] = []
    for run in study.runs:
        if run.batch_size % shard:
            found.append((("batch_size",), str(run.batch_size), f"a multiple of {shard}, as --shard divides its rows"))
        if not isinstance(run.adapter, Lora | Ia3):
            name = getattr(run.adapter, "peft_type", run.adapter.method)
            found.append(
                (("adapter", "method"), show(name), "lora or ia3: --shard divides the base, not what is trained")
            )
        if run.dtype == "nf4":
            found.append((("dtype",), "'nf4'", "bfloat16 or float32: --shard divides no base in 4 bits"))
    if found:
        raise refusal(study, list(dict.fromkeys(found)))
    if workers > 1 or pack > 1:
        side = f"--workers {workers}" if workers > 1 else f"--pack {pack}"
        raise ConfigError(f"got {side} with --shard {shard}, expected 1: all processes make one run, at --shard")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"got device {device} with --shard {shard}, expected cpu, cuda or auto, at --device")
    if device == "cuda" and torch.cuda.device_count() < shard:
        raise ConfigError(f"got {torch.cuda.device_count()} GPUs, expected {shard}, one a process, at --shard")
