"""The runs of a study, read from their folders or from one file that holds all there is to know of them.

    runs.parquet   a row per run, measured step and text: run, state, reason, config, provenance, summary (the last
                   three as JSON), and the columns of a measurement

Such a file is what a study leaves to others: tables, laws, plans and pages are made from it as from the folders, and it
holds no weights. A sweep into a folder with such a file counts its runs as made, so a study can go on elsewhere.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic

from holdfast import files
from holdfast.config import RunConfig
from holdfast.errors import ConfigError, StoreError, first_line
from holdfast.store import Measurement, Run, about_run, columns_of, owning, read_run, run_folders, tabulate

FILE = "runs.parquet"


def read_runs(root: Path | str, *, only: Sequence[str] | None = None) -> list[Run]:
    """Every run under a folder, by name: those of its run folders or, where it has none, of its `runs.parquet`.

    `only` are conditions such as "target=gsm8k" on columns of the table, all of which a run must meet. A target is also
    named by what its measurements call it.

    Raises:
        StoreError: there is none, or one is damaged.
        ConfigError: a condition that no run meets, or of no column.
    """
    runs = _read(Path(root) / FILE) if archived(root) else [read_run(folder) for folder in run_folders(root)]
    for condition in only or ():
        runs = _meeting(runs, condition, at=root)
    return runs


def archived(root: Path | str) -> bool:
    """Whether a folder's runs are those of its `runs.parquet`."""
    return (Path(root) / FILE).is_file() and not any(Path(root).glob("*/config.json"))


def _meeting(runs: Sequence[Run], condition: str, *, at: Path | str) -> list[Run]:
    column, _, wanted = condition.partition("=")
    held = {run.name: _values(run, column) for run in runs}
    if not all(held.values()):
        raise ConfigError(f"got {condition!r}, expected COLUMN=VALUE of a column of the runs, at {at}")
    met = [run for run in runs if wanted in held[run.name]]
    if not met:
        known = ", ".join(sorted({min(values, key=len) for values in held.values()}))
        raise ConfigError(f"got {condition!r}, expected one of {known}, at {at}")
    return met


def _values(run: Run, column: str) -> set[str]:
    """What a run may be called by in a column of its table."""
    about = about_run(run)
    value = about.get(column)
    names = {one.corpus for one in run.measurements if one.role == column == "target"}
    return names | ({f"{value:g}" if isinstance(value, float) else str(value)} if column in about else set())


def restore(root: Path) -> None:
    """Make the folders of archived runs that ended and have none, all but their weights.

    Raises:
        StoreError: the archive is damaged.
        ResourceError: the folder cannot be written.
    """
    if not (root / FILE).is_file():
        return
    lacking = [run for run in _read(root / FILE) if run.state != "in progress" and not (root / run.name).exists()]
    scratch = root / f".restored-{os.getpid()}"
    with files.refusing(root):
        for run in lacking:
            with owning(run.config, root=scratch) as recorder:
                if recorder is None:
                    continue
                recorder.begin(run.provenance)
                for measurement in run.measurements:
                    recorder.append(measurement)
                if run.state == "done":
                    recorder.finish(run.summary)
                elif run.state != "in progress":
                    recorder.fail(run.state, run.reason or "")
            if not (root / run.name).exists():  # another process may have done the same
                files.move(scratch / run.name, root / run.name)
        if lacking:
            files.flush(root)
            files.remove(scratch)


def table(root: Path | str, *, only: Sequence[str] | None = None) -> pd.DataFrame:
    """All runs under a folder, or those that meet `only`, as one table: a row per run, measured step and corpus.

    Columns: the run's `run, state, reason` and config; `step, tokens, corpus, role, documents, scored_tokens`; each
    quantity and its `<quantity>_stderr`, nats per scored token. A run that ended before its first measurement has one
    row with neither step nor quantities, so that it is seen; use `state` to leave runs out.
    """
    return tabulate(read_runs(root, only=only))


def write_archive(runs: Sequence[Run], path: Path) -> None:
    """Write runs to one Parquet file, numbers at full precision.

    Raises:
        ResourceError: it cannot be written.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        about = {
            "run": run.name, "state": run.state, "reason": run.reason, "config": run.config.canonical(),
            "provenance": json.dumps(run.provenance), "summary": json.dumps(run.summary),
        }  # fmt: skip
        rows += [about | columns_of(measurement) for measurement in run.measurements] or [about]
    content = io.BytesIO()
    pd.DataFrame(rows).to_parquet(content, index=False)
    with files.refusing(path):
        files.write(path, content.getvalue())


def _read(path: Path) -> list[Run]:
    try:
        rows = pd.read_parquet(path).to_dict("records")
        runs: dict[str, list[dict[Hashable, Any]]] = {}
        for row in rows:
            runs.setdefault(row["run"], []).append(row)
        return [_run(path, name, runs[name]) for name in sorted(runs)]
    except (OSError, ValueError, KeyError, TypeError, pydantic.ValidationError) as error:
        raise StoreError(f"got no readable archive of runs ({first_line(error)}), expected one, at {path}") from error


def _run(path: Path, name: str, rows: list[dict[Hashable, Any]]) -> Run:
    config = RunConfig.model_validate_json(rows[0]["config"])
    if config.name != name:
        raise ValueError(f"run {name} has a config that hashes to {config.name}")
    reason = rows[0]["reason"]
    return Run(
        folder=path.parent / name, config=config, provenance=json.loads(rows[0]["provenance"]), state=rows[0]["state"],
        reason=reason if isinstance(reason, str) else None, summary=json.loads(rows[0]["summary"]),
        measurements=tuple(_measurement(row) for row in rows if "step" in row and not math.isnan(row["step"])),
    )  # fmt: skip


def _measurement(row: dict[Hashable, Any]) -> Measurement:
    names = [str(column).removesuffix("_stderr") for column in row if str(column).endswith("_stderr")]
    values = {name: (row[name], row[f"{name}_stderr"]) for name in names if not math.isnan(row[name])}
    return Measurement(
        step=int(row["step"]), tokens=int(row["tokens"]), corpus=row["corpus"], role=row["role"],
        documents=int(row["documents"]), scored_tokens=int(row["scored_tokens"]), values=values,
    )  # fmt: skip
