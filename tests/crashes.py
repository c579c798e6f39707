"""Real processes of one small study, really killed: by tests/test_kills.py, and for long by `make test-crash`.

    python tests/crashes.py MODEL FOLDER KILLS SEED

A parent that has everything imported forks a process group for each attempt at the sweep. The child says on a pipe what
it is about to do and what was acknowledged; the parent waits for the moment that is to be hit, a random time longer,
and kills the whole group. Whatever was acknowledged must then be in the folder. It ends with a sweep that nobody kills.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from holdfast import archive, checkpoints, files, sweeps, training
from holdfast.store import Recorder

MOMENTS = ("training", "measuring", "appending", "checkpointing", "finishing")
"""Where kills are aimed, in turn."""


def study(model: Path, folder: Path) -> Path:
    """A study with all that resuming could get wrong: two epochs and more, dropout, accumulation, measurements."""
    sums = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}."} for a in range(5) for b in range(5)]
    kelp = [{"text": f"The {i}th stalk of kelp moves with the tide, and stalk {i + 1} with it."} for i in range(4)]
    for name, rows in (("sums", sums), ("kelp", kelp)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "model": str(model),
        "dtype": "float32",
        "target": {"data": str(folder / "sums.jsonl"), "held_out": 4},
        "retain": [str(folder / "kelp.jsonl")],
        "adapter": {"lora_dropout": 0.1, "lora_alpha": 8},
        "optimizer": {"learning_rate": 3e-3},
        "steps": 24,
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "context": 32,
        "measure": {"points": 5, "first": 2, "documents": 4},
        "grid": {"adapter.r": [2, 8]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


def said(pipe: int, word: str, **more: Any) -> None:
    os.write(pipe, json.dumps({"word": word, **more}).encode() + b"\n")


def announced(pipe: int, word: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A function that says what it is about to do."""

    def announcing(*arguments: Any, **named: Any) -> Any:
        said(pipe, word)
        return call(*arguments, **named)

    return announcing


def child(study_file: Path, out: Path, pipe: int) -> None:
    """The sweep, in a process group of its own."""
    os.setpgid(0, 0)
    training.update = announced(pipe, "training", training.update)
    training.measure_on = announced(pipe, "measuring", training.measure_on)
    files.append = announced(pipe, "appending", files.append)
    checkpoints.save_snapshot = announced(pipe, "checkpointing", checkpoints.save_snapshot)
    Recorder.finish = announced(pipe, "finishing", Recorder.finish)  # type: ignore[method-assign]

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.report:
            kl = at.event.report.kl_base_tuned.value
            said(pipe, "measured", run=at.run.name, step=at.event.step, corpus=at.event.report.corpus, kl=kl)
        elif at.event is None and at.state == "done":
            said(pipe, "done", run=at.run.name)

    sweeps.sweep(study_file, out=out, checkpoint_every_s=0.1, tell=tell)
    os._exit(0)


def attempt(study_file: Path, out: Path, *, moment: str | None, wait: int, delay: float) -> tuple[bool, list[Any]]:
    """One life of the sweep: (whether it was killed, what it had been told is safe). Killed at the `wait`-th moment."""
    ours, theirs = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(ours)
        child(study_file, out, theirs)
    os.close(theirs)
    acknowledged, seen, text, deadline = [], 0, b"", None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([ours], [], [], left)[0]:
            os.killpg(process, signal.SIGKILL)
            deadline = None
        read = os.read(ours, 65536)
        if not read:
            break
        *lines, text = (text + read).split(b"\n")
        for line in map(json.loads, lines):
            acknowledged += [line] if line["word"] in ("measured", "done") else []
            seen += line["word"] == moment
            if deadline is None and line["word"] == moment and seen == wait:
                deadline = time.monotonic() + delay
    os.close(ours)
    _, ended = os.waitpid(process, 0)
    if not os.WIFSIGNALED(ended):
        assert os.waitstatus_to_exitcode(ended) == 0, "the sweep ended by itself, and not well"
    return os.WIFSIGNALED(ended), acknowledged


def lost(out: Path, acknowledged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was acknowledged and is not in the folder."""
    runs = {run.name: run for run in archive.read_runs(out)} if acknowledged else {}
    there = {
        (name, *one.place, one.values["kl_base_tuned"][0]) for name, run in runs.items() for one in run.measurements
    }
    return [
        one for one in acknowledged
        if not (runs[one["run"]].state == "done" if one["word"] == "done"
                else (one["run"], one["step"], one["corpus"], one["kl"]) in there)
    ]  # fmt: skip


def canonical(table: pd.DataFrame) -> str:
    """Every value of a table, floats exactly."""
    return json.dumps(table.to_dict("records"), sort_keys=True)


def campaign(model: Path, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """So many kills over as many sweeps as it takes; what came of it."""
    chance = random.Random(seed)  # noqa: S311
    study_file = study(model, folder)
    attempt(study_file, folder / "whole", moment=None, wait=0, delay=0)
    expected = canonical(archive.table(folder / "whole"))
    hit: Counter[str] = Counter()
    acknowledged_in_all, sweeps_made, began = 0, 0, time.monotonic()
    while hit.total() < kills:
        out, sweeps_made = folder / f"runs-{sweeps_made}", sweeps_made + 1
        acknowledged: list[dict[str, Any]] = []
        killed = True
        while killed:
            moment = MOMENTS[hit.total() % len(MOMENTS)] if hit.total() < kills else None
            wait, delay = chance.randint(1, 2 if moment == "finishing" else 6), chance.choice([0, 0.001, 0.01, 0.05])
            killed, now = attempt(study_file, out, moment=moment, wait=wait, delay=delay * chance.random())
            hit[moment or ""] += killed
            again = [one for one in now if one in acknowledged and one["word"] == "measured"]
            acknowledged += now
            assert not again, f"measured again: {again}"
            assert not lost(out, acknowledged), f"lost after kill {hit.total()} ({moment}): {lost(out, acknowledged)}"
        assert canonical(archive.table(out)) == expected, f"sweep {sweeps_made} ended with another table"
        acknowledged_in_all += len(acknowledged)
    return {
        "kills": hit.total(), "by_moment": dict(sorted(hit.items())), "sweeps": sweeps_made,
        "acknowledged": acknowledged_in_all, "lost": 0, "different_tables": 0,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


if __name__ == "__main__":
    model, folder, kills, seed = sys.argv[1:]
    print(json.dumps(campaign(Path(model), Path(folder), kills=int(kills), seed=int(seed))))
