"""Run folders on disk: append measurements, finish, own, list, read back as one table.

    runs/<name>/config.json       what the run is; canonical, its hash is the name
                provenance.json   where the numbers came from: versions, hardware, fingerprints; resumptions
                records.jsonl     one measurement a line, checksummed, on disk before it is acknowledged
                checkpoint/       while in progress: where to go on from, see `checkpoints`
                adapter/          the result, an ordinary PEFT folder  |  model/  a whole model's
                done.json         written last  |  failed.json  why, when it failed or diverged
    runs/.<name>.lock             held by the one process that writes the run; the system lets go of it when that dies

Every change goes through `files`. No torch here: results can be read on a laptop.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import pandas as pd
import pydantic

from holdfast import files
from holdfast.config import RunConfig
from holdfast.errors import ResourceError, StoreError
from holdfast.methods import columns

State = Literal["done", "failed", "diverged", "in progress"]
Role = Literal["target", "retain"]

QUANTITIES = (
    "nll", "base_nll", "cross_entropy", "hard_cross_entropy",
    "base_entropy", "kl_base_tuned", "excess_nll", "agreement",
)  # fmt: skip
"""Every measured quantity, nats per scored token (`agreement`: share of them). Formulas in docs/theory.md."""


log = logging.getLogger(__name__)
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # of reading a line that is none of ours


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run, after `step` update steps, measured on one corpus.

    `values` has a value and its standard error for each quantity, nats per scored token (`agreement`: share of them),
    errors clustered over `documents` (nan, null on disk, where there is but one); `tokens` were trained on so far,
    `scored_tokens` measured.
    """

    step: int
    tokens: int
    corpus: str
    role: Role
    documents: int
    scored_tokens: int
    values: Mapping[str, tuple[float, float]]

    @property
    def place(self) -> tuple[int, str]:
        """(step, corpus): a run has one measurement of each, and no other."""
        return self.step, self.corpus


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder as it stands. `reason` says why a failed or diverged run ended, `summary` what a done one took."""

    folder: Path
    config: RunConfig
    provenance: Mapping[str, Any]
    state: State
    reason: str | None
    summary: Mapping[str, Any]
    measurements: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        """The folder's name, which is the config's hash."""
        return self.config.name


class Recorder:
    """Writes one run folder, up to `finish` or `fail`; made by `owning`, the only way into a run folder.

    A class because it knows what is recorded already, so that no place is ever recorded twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoint"
        self.recorded: set[tuple[int, str]] = set()

    def begin(self, provenance: Mapping[str, Any]) -> None:
        """Begin or go on: take up what is on record, and write down where the numbers will come from.

        A torn last line, which is what a crash leaves, is cut off; damage is set aside and named. What an earlier
        beginning wrote of its provenance is kept, and what is different this time is put beside it.
        """
        self.recorded = _mend(self.folder)
        path = self.folder / "provenance.json"
        try:
            before = files.read_json(path) if path.is_file() else None
        except StoreError:
            _set_aside(path, path.read_bytes())
            before = None
        if before is None:
            files.write_json(path, provenance)
            return
        if before.get("fingerprints") != provenance.get("fingerprints"):
            raise StoreError(
                "got other weights or texts than this run was begun with, expected the same in one folder; sweep into "
                f"another with --output-dir, at {self.folder}"
            )
        other = {name: fact for name, fact in provenance.items() if before.get(name) != fact}
        files.write_json(path, before | {"resumed": [*before.get("resumed", []), other]})

    def note(self, progress: Mapping[str, Any]) -> None:
        """Leave word of how far the run is, for whoever looks; nothing depends on it."""
        files.note(self.folder / "progress.json", files.json_bytes(progress))

    def append(self, measurement: Measurement) -> None:
        """Add one measurement; when this returns it is on disk.

        Raises:
            ValueError: the place is recorded already, or a value is not a number.
        """
        if measurement.place in self.recorded:
            raise ValueError(f"got a second measurement of {measurement.corpus} at step {measurement.step}")
        if not all(math.isfinite(value) for value, _ in measurement.values.values()):
            raise ValueError(f"got {dict(measurement.values)}, expected numbers that JSON can hold")
        files.append(self.folder / "records.jsonl", _line(measurement))
        self.recorded.add(measurement.place)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run done; its checkpoints go. Nothing is written after this."""
        files.write_json(self.folder / "done.json", {**summary, "measurements": len(self.recorded)})
        self.tidy()

    def fail(self, state: Literal["failed", "diverged"], reason: str) -> None:
        """Mark the run ended without a result, and why. Its rows stay for the record; no fit uses them."""
        files.write_json(self.folder / "failed.json", {"state": state, "reason": reason})

    def retry(self) -> None:
        """Let a run that ended without a result, or is damaged, go on from what is sound of it."""
        for name in ("done.json", "failed.json"):
            files.remove(self.folder / name)

    def tidy(self) -> None:
        """Remove what only a run in progress needs."""
        files.remove(self.checkpoints)
        files.remove(self.folder / "progress.json")


@contextmanager
def owning(config: RunConfig, *, root: Path, wait: Callable[[], None] | None = None) -> Iterator[Recorder | None]:
    """Own a run's folder, made where it is missing; None while another process owns it.

    With `wait`, called about every second, it waits for the owner to end or die instead. An owner that is merely slow
    or paused keeps the run for as long as it lives: only its death lets go of the lock, and no clock is read.

    Raises:
        ResourceError: the folder cannot be written, or its file system cannot lock.
    """
    folder = root / config.name
    with files.refusing(folder):
        files.make_folder(folder)
        lock = filelock.FileLock(root / f".{config.name}.lock")
        while True:
            try:
                lock.acquire(timeout=0 if wait is None else 1)
                break
            except filelock.Timeout:
                if wait is None:
                    yield None
                    return
                wait()
            except NotImplementedError as error:
                raise ResourceError(
                    f"the file system cannot lock files, which owning a run needs, at {root}"
                ) from error
        try:
            path, content = folder / "config.json", (config.canonical() + "\n").encode()
            if not path.is_file() or path.read_bytes() != content:  # the folder's name is its hash
                files.write(path, content)
            yield Recorder(folder)
        finally:
            lock.release()


def owned(folder: Path) -> bool:
    """Whether a living process owns a run folder now."""
    path = folder.parent / f".{folder.name}.lock"
    if not path.is_file():
        return False
    try:
        with filelock.FileLock(path).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a disk that cannot be written is not being written
        return False


def standing(folder: Path) -> tuple[State, str | None]:
    """How a run folder stands and why, by its closing file alone; one that is not there is a run in progress.

    Raises:
        StoreError: the closing file is damaged.
    """
    if _json_if_there(folder / "done.json") is not None:
        return "done", None
    failed = _json_if_there(folder / "failed.json")
    return ("in progress", None) if failed is None else (failed["state"], failed["reason"])


def _line(measurement: Measurement) -> bytes:
    values = {
        name: [value, None if math.isnan(stderr) else stderr] for name, (value, stderr) in measurement.values.items()
    }
    payload = json.dumps(asdict(measurement) | {"values": values}, sort_keys=True, allow_nan=False)
    return f'{{"crc32":"{zlib.crc32(payload.encode()):08x}","measurement":{payload}}}\n'.encode()


def _measurement(line: bytes) -> Measurement:
    record = json.loads(line)
    fields = record["measurement"]
    if files.checksum(fields) != record["crc32"]:
        raise ValueError("checksum")
    values = {
        name: (value, math.nan if stderr is None else stderr) for name, (value, stderr) in fields["values"].items()
    }
    return Measurement(**fields | {"values": values})


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a records file, and what stands after the last of them."""
    *lines, torn = path.read_bytes().split(b"\n") if path.is_file() else (b"",)
    return lines, torn


def _mend(folder: Path) -> set[tuple[int, str]]:
    """The places on record in a folder to go on with; what is not sound is cut off or set aside."""
    path = folder / "records.jsonl"
    lines, torn = _lines(path)
    sound: dict[tuple[int, str], bytes] = {}
    for line in lines:
        try:
            sound.setdefault(_measurement(line).place, line)
        except _DAMAGE:
            continue
    if len(sound) < len(lines):
        _set_aside(path, b"".join(line + b"\n" for line in lines if line not in sound.values()))
        files.write(path, b"".join(line + b"\n" for line in sound.values()))
    elif torn:
        files.cut(path, sum(len(line) + 1 for line in lines))
    return set(sound)


def _set_aside(path: Path, content: bytes) -> None:
    aside = path.with_name(f"damaged-{zlib.crc32(content):08x}-{path.name}")
    files.write(aside, content)
    log.warning("damaged, set aside and made again: %s, from %s", aside.name, path)


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
    state, reason = standing(folder)
    done = _json_if_there(folder / "done.json")
    if done is not None and not (folder / "provenance.json").is_file():
        raise StoreError(f"got a finished run without its provenance, expected it, at {folder / 'provenance.json'}")
    return Run(
        folder=folder, config=config, provenance=_json_if_there(folder / "provenance.json") or {}, state=state,
        reason=reason, summary=done or {},
        measurements=_read_measurements(folder / "records.jsonl", expected=done["measurements"] if done else None),
    )  # fmt: skip


def run_folders(root: Path | str) -> list[Path]:
    """Every run folder under `root`, by name.

    Raises:
        StoreError: there is none.
    """
    folders = sorted(path.parent for path in Path(root).glob("*/config.json"))
    if not folders:
        raise StoreError(f"got no run folders, expected some made by holdfast sweep, at {root}")
    return folders


def full_name(table: pd.DataFrame, run: str) -> str:
    """The run of a table whose name begins like this.

    Raises:
        StoreError: none does, or several do.
    """
    found = sorted({name for name in table["run"] if str(name).startswith(run)})
    if len(found) != 1:
        raise StoreError(f"got run {run!r}, which {', '.join(found) or 'none'} begins with, expected one, at the runs")
    return str(found[0])


def tabulate(runs: Iterable[Run]) -> pd.DataFrame:
    """The table of some runs; see `archive.table`."""
    lines: list[dict[str, Any]] = []
    for run in runs:
        about = about_run(run)
        lines += [about | columns_of(measurement) for measurement in run.measurements] or [about | _UNMEASURED]
    return pd.DataFrame(lines)


_UNMEASURED: dict[str, Any] = {
    "role": None, "corpus": None,
    **dict.fromkeys(("step", "tokens", "documents", "scored_tokens"), math.nan),
    **{column: math.nan for name in QUANTITIES for column in (name, f"{name}_stderr")},
}  # fmt: skip


def about_run(run: Run) -> dict[str, Any]:
    """A run and its config as columns of a table."""
    config = run.config
    return {
        "run": run.name,
        "state": run.state,
        "reason": run.reason,
        "model": config.model,
        "target": config.target.data,
        **columns(config.adapter),
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


def columns_of(measurement: Measurement) -> dict[str, Any]:
    """A measurement as columns of a table."""
    columns = asdict(measurement)
    del columns["values"]
    for quantity, (value, stderr) in measurement.values.items():
        columns[quantity], columns[f"{quantity}_stderr"] = value, stderr
    return columns


def _read_measurements(path: Path, *, expected: int | None) -> tuple[Measurement, ...]:
    """The measurements of a records file in the order of their steps, whatever order a mended run made them in.

    An unfinished run's torn last line is what a crash leaves and is passed over; `expected` many a finished one has.
    """
    lines, torn = _lines(path)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_measurement(line))
        except _DAMAGE as error:
            raise StoreError(
                f"got a damaged record, expected a measurement that matches its checksum, at {path}:{number}"
            ) from error
    if expected is not None and (torn or len(found) != expected):
        half = " and half a one" if torn else ""
        raise StoreError(f"got {len(found)} records{half}, expected the {expected} of a finished run, at {path}")
    return tuple(sorted(found, key=lambda one: (one.step, one.role != "target", one.corpus)))


def _json_if_there(path: Path) -> dict[str, Any] | None:
    return files.read_json(path) if path.is_file() else None
