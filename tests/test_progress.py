"""How runs stand, as anybody sees it from outside while other processes work."""

import json
import multiprocessing
from pathlib import Path

import pytest

from holdfast import archive, progress, store
from holdfast.errors import StoreError
from test_store import config, made, measured


def _work(root: Path, ready: multiprocessing.Queue, leave: multiprocessing.Event) -> None:  # type: ignore[type-arg]
    with store.owning(config(r=1), root=root) as recorder:
        assert recorder is not None
        recorder.begin({"trainable_params": 10})
        recorder.append(measured(0))
        recorder.append(measured(2, 0.25))
        recorder.note({"loss": 1.5, "pid": 123, "seconds": 30.0, "share": 0.6, "share_before": 0.0, "step": 3})
        ready.put(True)
        leave.wait(60)


def test_every_run_says_how_it_stands(tmp_path: Path) -> None:
    made(tmp_path, r=2, rows=(measured(0), measured(4)))
    made(tmp_path, r=3, rows=(measured(0), measured(1)), end="in progress")
    made(tmp_path, r=5, end="failed")
    made(tmp_path, r=6, end="diverged")
    with store.owning(config(r=7), root=tmp_path):
        pass
    damaged = made(tmp_path, r=8, rows=(measured(0), measured(4)))
    (damaged / "done.json").write_text("{}")
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Event()
    owner = context.Process(target=_work, args=(tmp_path, ready, leave))
    owner.start()
    try:
        ready.get(timeout=60)
        found = {run.about.get("r", 8): run for run in progress.status(tmp_path)}
    finally:
        leave.set()
        owner.join(60)
    assert {r: run.standing for r, run in found.items()} == {
        1: "running", 2: "done", 3: "stopped", 5: "failed", 6: "diverged", 7: "waiting", 8: "damaged",
    }  # fmt: skip
    running = found[1]
    assert (running.step, running.steps, running.share, running.pid) == (3, 4, 0.6, 123)
    assert running.seconds_left == pytest.approx(20)  # 0.6 of it took 30 s
    assert running.forgetting == {"keep": (1 / 3, 0.25)}
    assert (found[3].step, found[3].share) == (1, 0.25)
    assert found[5].reason == "because"
    assert "done.json" in str(found[8].reason)
    json.dumps([run.to_dict() for run in found.values()], allow_nan=False)
    after = {run.about.get("r"): run.standing for run in progress.status(tmp_path)}
    assert after[1] == "stopped"


def test_runs_of_an_archive_stand_as_they_stood(tmp_path: Path) -> None:
    made(tmp_path / "runs", r=2, rows=(measured(0), measured(4)))
    made(tmp_path / "runs", r=5, end="failed")
    (tmp_path / "study").mkdir()
    archive.write_archive(archive.read_runs(tmp_path / "runs"), tmp_path / "study" / archive.FILE)
    stood, stands = ({run.run: run for run in progress.status(tmp_path / name)} for name in ("runs", "study"))
    assert {name: (run.standing, run.losses, run.forgetting, run.reason) for name, run in stands.items()} == {
        name: (run.standing, run.losses, run.forgetting, run.reason) for name, run in stood.items()
    }


def test_what_is_left_follows_from_what_was_made(tmp_path: Path) -> None:
    def run(standing: str, share: float, *, left: float | None = None, took: float | None = None) -> progress.RunStatus:
        return progress.RunStatus(
            run="r", standing=standing, reason=None, about={}, step=0, steps=4, share=share, seconds_left=left,
            seconds=took, pid=None, losses=(), forgetting={},
        )  # type: ignore[arg-type]  # fmt: skip

    done, waiting = run("done", 1, took=100), run("waiting", 0)
    assert progress.seconds_left([done, done]) == 0
    assert progress.seconds_left([waiting]) is None
    assert progress.seconds_left([done, waiting, run("stopped", 0.75)]) == pytest.approx(125)
    assert progress.seconds_left([run("running", 0.5, left=40), waiting]) == pytest.approx(40 + 80)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got no run folders"):
        progress.status(tmp_path)
