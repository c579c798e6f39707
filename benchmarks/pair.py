"""What the benchmarks measure: the built-in model, and a fine-tune of it that moves a KL of about 0.05 nats a token.

Not a trained one: random low-rank updates, the same in every run, cost what a trained adapter's would.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from holdfast import adapters, meter, models
from holdfast.corpora import Block, read_corpus
from holdfast.methods import Lora

BASE = "builtin:smollm2"
CONTEXT = 512
ROWS = meter.BATCH_TOKENS // CONTEXT

SIZE = 0.3
"""Standard deviation of the update's second factor at scale 1."""


def write_adapter(folder: Path, *, r: int = 16, scale: float = 1.0) -> Path:
    """A PEFT folder; `scale` times the update of scale 1."""
    tuned = adapters.attach_adapter(models.load_base(BASE, dtype="float32", device="cpu"), Lora(r=r), seed=7)
    g = torch.Generator().manual_seed(11)
    for name, parameter in sorted(tuned.named_parameters()):
        if "lora_B" in name:
            parameter.data = scale * SIZE * torch.randn(parameter.shape, generator=g)
    adapters.save_adapter(tuned, folder)
    return folder


def write_merged(adapter: Path, folder: Path, *, dtype: str = "float32") -> Path:
    """The same as a whole model, merged in float32 and then rounded to `dtype`."""
    base = models.load_base(BASE, dtype="float32", device="cpu")
    whole = adapters.merged(adapters.load_adapter(base, str(adapter)))
    if whole is None:
        raise RuntimeError("got an adapter that cannot be merged, expected plain LoRA in float32")
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    whole.config.dtype = getattr(torch, dtype)
    whole.save_pretrained(folder)
    models.load_tokenizer(BASE).save_pretrained(folder)
    return folder


def windows(ids: list[int], *, first: int) -> tuple[Block, ...]:
    """Windows of 512 tokens laid end to end, each scored from position `first` on, in batches of the meter's size."""
    rows = np.array(ids[: len(ids) // CONTEXT * CONTEXT], dtype=np.int64).reshape(-1, CONTEXT)
    scored = np.zeros(rows.shape, dtype=bool)
    scored[:, first:] = True
    return tuple(
        Block(
            ids=rows[i : i + ROWS], scored=scored[i : i + ROWS],
            positions=np.tile(np.arange(CONTEXT), (len(rows[i : i + ROWS]), 1)),
            document=np.repeat(np.arange(i, i + len(rows[i : i + ROWS])), CONTEXT).reshape(-1, CONTEXT),
            kind=np.full(rows[i : i + ROWS].shape, 0, dtype=np.int8),
        )
        for i in range(0, len(rows), ROWS)
    )  # fmt: skip


def ids(tokenizer: models.Tokenizer, *, number: int) -> list[int]:
    """Tokens of so many windows of the built-in Wikipedia, its articles laid end to end."""
    text = "\n\n".join(document.content["text"] for document in read_corpus("builtin:wikipedia").documents)
    found: list[int] = tokenizer(text)["input_ids"][: number * CONTEXT]
    return found


def peak_above(work: Callable[[], object]) -> int:
    """Bytes by which this process grows while it works (Linux: the kernel's own high-water mark, reset first)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def in_fresh_process(script: str, *arguments: str) -> str:
    """The last line that a benchmark prints when it is run anew."""
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
