"""A process of several that hold a base together, as `holdfast.workers` is, in float64: run by tests/test_sharding.py.

Where $HELD names a folder, each leaves there what it holds, and the first what it said of the cost before it began.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from holdfast import models, sharding, trials, workers

load_base, divide, part = models.load_base, sharding.Shard.divide, workers._part


def exact(*arguments: Any, **named: Any) -> models.Base:
    """`models.load_base` in float64."""
    return load_base(*arguments, **named).double()


def held(base: models.Base) -> int:
    """Bytes of a base's parameters in this process."""
    local = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in base.parameters())
    return sum(weight.numel() * weight.element_size() for weight in local)


def divided(self: sharding.Shard, base: models.Base) -> None:
    """`Shard.divide`, and what came of it."""
    whole = held(base)
    divide(self, base)
    kept(f"{self.number}.json", {"whole": whole, "held": held(base), "pid": os.getpid()})


def foreseen(work: dict[str, Any], *, number: int, of: int, meeting: Path) -> Any:
    """The sweep, and before it its estimate, which spares a test the start of two more processes."""
    if "COSTS" in os.environ:
        cost = part(work | {"task": "estimate"}, number=number, of=of, meeting=Path(os.environ["COSTS"]))
        kept(f"cost-{number}.json", cost)
    return part(work, number=number, of=of, meeting=meeting)


def kept(name: str, found: dict[str, Any]) -> None:
    """Leave it for the test."""
    making = Path(os.environ["HELD"]) / f".{name}"
    making.write_text(json.dumps(found))
    making.rename(making.with_name(name))


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    models.load_base = exact
    sharding.Shard.divide = divided  # type: ignore[method-assign]
    workers._part = foreseen
    trials.TRIED_S = 0.0
    workers.main()
