"""Several processes on one study: the table of one, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import crashes
from holdfast import sweeps, workers
from holdfast.config import read_study
from holdfast.errors import Interrupted, ResourceError
from holdfast.interrupts import Stop


@pytest.fixture
def study(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STARTED_BY", str(tmp_path))
    return crashes.study(tiny, tmp_path)


def of_worker() -> Iterator[int]:
    """Workers that this test started: another test may run beside it."""
    started = f"STARTED_BY={os.environ['STARTED_BY']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"holdfast.workers" in (process / "cmdline").read_bytes()
            if is_worker and started in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)
        except OSError:
            continue


def test_two_workers_make_the_table_of_one(study: Path, tmp_path: Path) -> None:
    read = read_study(study, overrides=["grid.adapter.r=[1,2,4,8]"])
    together = workers.sweep_in_processes(read, out=tmp_path / "together", workers=2)
    command = (
        "import sys, crashes, torch; from pathlib import Path; from holdfast import sweeps; torch.set_num_threads(1)\n"
        "from holdfast.config import read_study\n"
        "read = read_study(Path(sys.argv[1]), overrides=['grid.adapter.r=[1,2,4,8]'])\n"
        "print(crashes.canonical(sweeps.sweep(read, out=sys.argv[2])))"
    )
    paths = os.pathsep.join([str(Path(crashes.__file__).parent), *sys.path])
    alone = subprocess.run(
        [sys.executable, "-c", command, str(study), str(tmp_path / "alone")],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert crashes.canonical(together) == alone.stdout.strip()
    assert len(json.loads(alone.stdout)) == 4 * 6 * 2


def test_a_stop_is_passed_on_and_the_study_goes_on_later(study: Path, tmp_path: Path) -> None:
    read = read_study(study, overrides=["steps=4000", "measure.points=40"])
    stop = Stop()
    stop.working = True

    def look() -> None:
        if len(list((tmp_path / "runs").glob("*/records.jsonl"))) == 2:
            stop.asked = signal.SIGINT

    with pytest.raises(Interrupted):
        workers.sweep_in_processes(read, out=tmp_path / "runs", workers=2, stop=stop, look=look)
    assert not list(of_worker())
    kept = list((tmp_path / "runs").glob("*/checkpoint/step-*"))
    assert len(kept) == 2


def test_workers_end_when_the_one_who_started_them_is_killed(study: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "sweep", str(study), "--workers", "2"]
    command += ["--output-dir", str(tmp_path / "runs"), "--set", "steps=4000", "--set", "measure.points=40"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "forgetting" in line:
                break
        assert len(list(of_worker())) == 2
        process.kill()
        for _ in range(600):
            if not list(of_worker()):
                break
            time.sleep(0.1)
    assert not list(of_worker())
    assert list((tmp_path / "runs").glob("*/checkpoint/step-*"))


def test_a_worker_that_fails_is_told_of(study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read = read_study(study)
    sweeps.sweep(read, out=tmp_path / "runs")
    (done, *_) = (tmp_path / "runs").glob("*/done.json")
    done.write_text("{}")
    with pytest.raises(ResourceError, match="got 2 of 2 workers ended with 3"):
        workers.sweep_in_processes(read, out=tmp_path / "runs", workers=2)
    said = capfd.readouterr().err
    assert "done.json" in said
    assert "Traceback" not in said
