"""What several commands take and do alike: their options, their JSON, and how they were typed."""

from __future__ import annotations

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def _finite(value: float | None) -> float | None:
    """No number is above NaN, so no model would ever be over such a budget."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"got {value}, expected a finite number")
    return value


Runs = Annotated[Path, typer.Argument(help="Folder of runs made by `holdfast sweep`.")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Corpus = Annotated[str | None, typer.Option(help="Retained text to fit, where runs measured several.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="COLUMN=VALUE", help="Runs of one kind, such as target=gsm8k; repeatable."),
]
SKIP_FRACTION = 50 / 260
"""`points.SKIP_FRACTION`, without loading what computes."""

Skip = Annotated[float, typer.Option(help="Share of each run's first steps left out of the fits.")]
Budget = Annotated[float | None, typer.Option(help="Most forgetting to accept, nats per token.", callback=_finite)]
Goal = Annotated[
    float | None, typer.Option(help="Loss on the held-out target to reach, nats per token.", callback=_finite)
]
Risk = Annotated[float, typer.Option(help="Accepted probability of exceeding --max-forgetting.", callback=_finite)]
Retry = Annotated[
    bool, typer.Option("--retry-failed", help="Try failed and damaged runs again, from what is sound of them.")
]


def typed() -> str:
    """The command as it was typed, to type it again."""
    return shlex.join(["holdfast", *sys.argv[1:]])


def print_json(content: Any) -> None:
    """All that a command prints on stdout with `--json`."""
    print(json.dumps(content, indent=2, allow_nan=False))
