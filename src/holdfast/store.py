"""Run folders on disk: append rows, finish, list, read back as one table.

    runs/<name>/config.json       what the run is; canonical, its hash is the name
                provenance.json   where the numbers came from: versions, hardware, fingerprints
                records.jsonl     one measured number a line, checksummed, on disk before it is acknowledged
                adapter/          the result, an ordinary PEFT folder
                done.json         written last  |  failed.json  why, when it failed or diverged

A file that others trust appears by rename, whole or not at all. No torch here: results can be read on a laptop.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import pandas as pd
import pydantic

from holdfast.config import RunConfig
from holdfast.errors import ResourceError, StoreError

State = Literal["done", "failed", "diverged", "in progress"]
Role = Literal["target", "retain"]

QUANTITIES = (
    "nll", "base_nll", "cross_entropy", "hard_cross_entropy",
    "base_entropy", "kl_base_tuned", "excess_nll", "agreement",
)  # fmt: skip
"""Every measured quantity, nats per scored token (`agreement`: share of them). Formulas in docs/theory.md."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number: `quantity` of one run, after `step` update steps, on one corpus.

    `value` in nats per scored token (`agreement`: share of them), `stderr` clustered over `documents`; `tokens` were
    trained on so far, `scored_tokens` measured. With one document there is no standard error: nan, null on disk.
    """

    step: int
    tokens: int
    corpus: str
    role: Role
    quantity: str
    value: float
    stderr: float
    documents: int
    scored_tokens: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as it stands. `reason` says why a failed or diverged run ended, `summary` what a done one took."""

    folder: Path
    config: RunConfig
    provenance: Mapping[str, Any]
    state: State
    reason: str | None
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The folder's name, which is the config's hash."""
        return self.config.name


class Recorder:
    """Writes one run folder, up to `finish` or `fail`; made by `recording`, the only way rows get on disk.

    A class because it holds the open file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = (folder / "records.jsonl").open("ab")

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows of one measurement; when this returns they are on disk."""
        for row in rows:
            fields = asdict(row) | {"stderr": None if math.isnan(row.stderr) else row.stderr}
            payload = json.dumps(fields, sort_keys=True, allow_nan=False)
            self._records.write(f'{{"crc32":"{zlib.crc32(payload.encode()):08x}","row":{payload}}}\n'.encode())
        self._records.flush()
        os.fsync(self._records.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run done. Nothing is written after this."""
        write_json(self.folder / "done.json", summary)

    def fail(self, state: Literal["failed", "diverged"], reason: str) -> None:
        """Mark the run ended without a result, and why. Its rows stay for the record; no fit uses them."""
        write_json(self.folder / "failed.json", {"state": state, "reason": reason})


@contextmanager
def recording(config: RunConfig, *, root: Path, provenance: Mapping[str, Any]) -> Iterator[Recorder]:
    """Own a run's folder and start it from nothing; whatever an unfinished attempt left in it is removed first.

    Raises:
        StoreError: another process owns the run.
        ResourceError: the folder cannot be written.
    """
    folder = root / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / f".{config.name}.lock")
        with lock.acquire(blocking=False):
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            write_text(folder / "config.json", config.canonical() + "\n")
            write_json(folder / "provenance.json", provenance)
            recorder = Recorder(folder)
            try:
                yield recorder
            finally:
                recorder._records.close()
    except filelock.Timeout as error:
        raise StoreError(f"run {config.name} is being written by another process, at {folder}") from error
    except OSError as error:
        raise ResourceError(
            f"run folder cannot be written: {error.strerror or error}, at {error.filename or folder}"
        ) from error


def read_run(folder: Path) -> Run:
    """A run folder as it stands, every record checked.

    Raises:
        StoreError: a file is missing or damaged, or the config is not the one the folder is named after.
    """
    try:
        config = RunConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        raise StoreError(f"got no readable config.json, expected a run folder, at {folder}") from error
    if config.name != folder.name:
        raise StoreError(f"got a config that hashes to {config.name}, expected the folder's own name, at {folder}")
    failed = _read_json(folder / "failed.json") if (folder / "failed.json").is_file() else None
    done = (folder / "done.json").is_file()
    summary = _read_json(folder / "done.json") if done else {}
    rows = tuple(_read_rows(folder / "records.jsonl", finished=done))
    provenance = _read_json(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    state: State = "done" if done else failed["state"] if failed else "in progress"
    return Run(
        folder=folder, config=config, provenance=provenance, state=state, reason=failed["reason"] if failed else None,
        summary=summary, rows=rows,
    )  # fmt: skip


def read_runs(root: Path) -> list[Run]:
    """Every run folder under `root`, by name.

    Raises:
        StoreError: there is none, or one is damaged.
    """
    folders = sorted(path.parent for path in Path(root).glob("*/config.json"))
    if not folders:
        raise StoreError(f"got no run folders, expected some made by holdfast sweep, at {root}")
    return [read_run(folder) for folder in folders]


def table(root: Path | str) -> pd.DataFrame:
    """All runs under a folder as one table: a row per run, measured step and corpus.

    Columns: the run's `run, state, reason` and config; `step, tokens, corpus, role, documents, scored_tokens`; each
    quantity and its `<quantity>_stderr`, nats per scored token. A run that ended before its first measurement has one
    row with neither step nor quantities, so that it is seen; use `state` to leave runs out.
    """
    return tabulate(read_runs(Path(root)))


def full_name(table: pd.DataFrame, run: str) -> str:
    """The run of a table whose name begins like this.

    Raises:
        StoreError: none does, or several do.
    """
    found = sorted({name for name in table["run"] if str(name).startswith(run)})
    if len(found) != 1:
        raise StoreError(f"got run {run!r}, which {', '.join(found) or 'none'} begins with, expected one, at the runs")
    return str(found[0])


def seconds_per_token(root: Path | str) -> float | None:
    """Training time per token over all finished runs under a folder, measurements not counted; None if none says.

    Not in the table: a study made again, or resumed, gives the same table, and takes another time.
    """
    done = [run for run in read_runs(Path(root)) if "training_s" in run.summary]
    tokens = sum(run.config.steps * run.config.batch_tokens for run in done)
    return sum(float(run.summary["training_s"]) for run in done) / tokens if tokens else None


def tabulate(runs: Iterable[Run]) -> pd.DataFrame:
    """The table of some runs; see `table`."""
    lines: list[dict[str, Any]] = []
    for run in runs:
        about = _about(run)
        measurements: dict[tuple[int, str], dict[str, Any]] = {}
        for row in run.rows:
            line = measurements.setdefault((row.step, row.corpus), {**about, **_place(row)})
            line[row.quantity], line[f"{row.quantity}_stderr"] = row.value, row.stderr
        lines += measurements.values() or [about]
    return pd.DataFrame(lines)


def _about(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "run": run.name,
        "state": run.state,
        "reason": run.reason,
        "model": config.model,
        "target": config.target.data,
        "method": config.adapter.method,
        "r": config.adapter.r,
        "lora_alpha": config.adapter.lora_alpha,
        "use_rslora": config.adapter.use_rslora,
        "optimizer": config.optimizer.name,
        "learning_rate": config.optimizer.learning_rate,
        "schedule": config.optimizer.schedule,
        "dtype": config.dtype,
        "seed": config.seed,
        "batch_tokens": config.batch_tokens,
        "total_steps": config.steps,
        "trainable_params": run.provenance.get("trainable_params", math.nan),
        "base_params": run.provenance.get("base_params", math.nan),
    }


def _place(row: Row) -> dict[str, Any]:
    names = ("step", "tokens", "corpus", "role", "documents", "scored_tokens")
    return {name: getattr(row, name) for name in names}


def _read_rows(path: Path, *, finished: bool) -> Iterator[Row]:
    """The rows of a records file; an unfinished run's torn last line is what a crash leaves and is passed over."""
    if not path.is_file():
        if finished:
            raise StoreError(f"got no records of a finished run, expected some, at {path}")
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            payload = json.dumps(record["row"], sort_keys=True, allow_nan=False)
            if f"{zlib.crc32(payload.encode()):08x}" != record["crc32"]:
                raise ValueError("checksum")
            fields = record["row"]
            yield Row(**fields | {"stderr": math.nan if fields["stderr"] is None else fields["stderr"]})
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"got a damaged record, expected a row that matches its checksum, at {path}:{number}"
            ) from error
    if lines[-1] and finished:
        raise StoreError(f"got half a record at the end of a finished run, at {path}:{len(lines)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"got an unreadable file, expected JSON, at {path}") from error
    if not isinstance(content, dict):
        raise StoreError(f"got a {type(content).__name__}, expected an object, at {path}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object; see `write_text`."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that its name stands for the whole content or does not exist: elsewhere, flush, rename."""
    made = path.with_name(f".{path.name}.making")
    with made.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
