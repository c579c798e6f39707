"""A sweep: the runs of a study one after another, each in its own folder, none ever dropped from the record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from holdfast import adapters, models
from holdfast.config import RunConfig, Study, read_study
from holdfast.errors import DataError, ModelError
from holdfast.store import State, read_run, recording, tabulate
from holdfast.training import Diverged, Event, Texts, Workbench, prepare, read_texts, train


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """Where a sweep is: `run` number `index` (from 0) of `runs` is in `state`, and `event` is the last thing it did."""

    run: RunConfig
    index: int
    runs: int
    state: State
    reason: str | None
    event: Event | None


def sweep(
    study: str | Path | Study,
    *,
    out: str | Path,
    device: str = "auto",
    retry_failed: bool = False,
    tell: Callable[[Progress], None] = lambda _: None,
) -> pd.DataFrame:
    """Make every run of a study that is not made yet, and return the table of them all (see `store.table`).

    Finished runs are read back; unfinished ones start over; failed and diverged ones stay as they are, or with
    `retry_failed` the failed ones start over. A run that fails or diverges is recorded with its reason and the sweep
    goes on. `tell` hears of every step, measurement and end of a run.

    Raises:
        ConfigError: the study file is wrong.
        DataError: a text cannot be used, or is no longer the one that finished runs were measured on.
        ModelError: the base cannot be used.
        ResourceError: the folder cannot be written.
    """
    if not isinstance(study, Study):
        study = read_study(Path(study))
    root = Path(out)
    place = models.choose_device(device)
    configs = _resolved(study.runs, place)
    bench: tuple[object, Workbench] | None = None
    for index, config in enumerate(configs):
        texts = read_texts(config)
        state, reason = _standing(root / config.name, texts)
        say = partial(Progress, run=config, index=index, runs=len(configs))
        if state == "in progress" or (retry_failed and state == "failed"):
            tell(say(state="in progress", reason=None, event=None))
            shared = _shared_part(config)
            if bench is None or bench[0] != shared:
                bench = None  # let the old base go before the next is loaded
                bench = shared, prepare(config, texts, device=place)
            hear = partial(_relay, tell, say)
            state, reason = _make(config, bench[1], texts, root=root, tell=hear)
        tell(say(state=state, reason=reason, event=None))
    return tabulate(read_run(root / config.name) for config in configs)


def _relay(tell: Callable[[Progress], None], say: Callable[..., Progress], event: Event) -> None:
    tell(say(state="in progress", reason=None, event=event))


def _make(
    config: RunConfig, bench: Workbench, texts: Texts, *, root: Path, tell: Callable[[Event], None]
) -> tuple[State, str | None]:
    """Make one run in its folder; returns how it ended and why."""
    started = time.monotonic()
    tuned = adapters.attach_adapter(bench.base, config.adapter, seed=config.seed)
    try:
        origin = provenance(bench, texts) | {
            "trainable_params": models.trainable_params(tuned),
            "base_params": bench.base_params,
        }
        with recording(config, root=root, provenance=origin) as recorder:
            try:
                training_s = train(tuned, config, bench, record=recorder.append, tell=tell)
                adapters.save_adapter(tuned, recorder.folder / "adapter")
            except Diverged as error:
                recorder.fail("diverged", str(error))
                return "diverged", str(error)
            except (
                ModelError,
                RuntimeError,
                MemoryError,
            ) as error:  # torch's refusals, out of memory too
                recorder.fail("failed", f"{type(error).__name__}: {error}")
                return "failed", str(error)
            took = {"wall_time_s": time.monotonic() - started, "training_s": training_s}
            recorder.finish(took | {"finished_at": datetime.now(UTC).isoformat()})
            return "done", None
    finally:
        adapters.detach_adapter(tuned)


def _resolved(configs: Sequence[RunConfig], device: str) -> list[RunConfig]:
    """The runs with `dtype: auto` replaced by what this machine is fastest in, each once: only then have they names."""
    if any(config.dtype == "auto" for config in configs):
        fastest = models.fastest_dtype(device)  # once, so that a study never mixes precisions by chance
        configs = [c.model_copy(update={"dtype": fastest}) if c.dtype == "auto" else c for c in configs]
    return list({config.name: config for config in configs}.values())


def _shared_part(config: RunConfig) -> tuple[object, ...]:
    """What a workbench is made of; runs that agree on it share one."""
    return config.model, config.dtype, config.target, config.retain, config.measure.documents, config.context


def _standing(folder: Path, texts: Texts) -> tuple[State, str | None]:
    """How a run folder stands; a folder that is not there, or holds no config yet, is a run in progress."""
    if not (folder / "config.json").is_file():
        return "in progress", None
    run = read_run(folder)
    before = {name: run.provenance.get("fingerprints", {}).get(name) for name in texts.fingerprints}
    changed = [name for name, print_ in texts.fingerprints.items() if before[name] != print_]
    if changed and run.state != "in progress":
        raise DataError(
            f"got other texts ({', '.join(changed)}) than run {run.name} was made with, expected the same in one "
            f"folder; sweep into another with --output-dir, or restore them, at {folder}"
        )
    return run.state, run.reason


def provenance(bench: Workbench, texts: Texts) -> dict[str, Any]:
    """Where numbers come from: versions, machine, fingerprints of weights and texts. Holds no secret and no name."""
    packages = ("holdfast", "torch", "transformers", "peft", "numpy", "tokenizers", "safetensors")
    device = bench.base.device
    return {
        "started_at": datetime.now(UTC).isoformat(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "fingerprints": texts.fingerprints | {"weights": bench.weights_fingerprint},
    }
