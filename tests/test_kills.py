"""A small real sweep, killed at random moments with SIGKILL: nothing acknowledged is lost, and the end is the same."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crashes
from holdfast import archive

KILLS = int(os.environ.get("HOLDFAST_KILLS", "10"))
"""`make test-crash` sets more."""

HERE = Path(__file__).parent


def test_killed_at_random_nothing_acknowledged_is_lost_and_the_table_is_the_same(
    tiny: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, str(HERE / "crashes.py"), str(tiny), str(tmp_path), str(KILLS), "0"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    assert found["kills"] >= KILLS
    assert set(found["by_moment"]) >= set(crashes.MOMENTS)
    assert found["lost"] == found["different_tables"] == 0
    assert found["acknowledged"] >= 2 * 6 * 2
    aimed = ", ".join(f"{count} {moment}" for moment, count in found["by_moment"].items() if count)
    record_property(
        "Durability",
        f"a process group killed with SIGKILL: {aimed} | {found['kills']} kills, {found['sweeps']} sweeps | "
        f"{found['lost']} of {found['acknowledged']} acknowledged measurements lost, "
        f"{found['different_tables']} tables different",
    )


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    return crashes.study(tiny, tmp_path)


def started(study: Path, out: str) -> subprocess.Popen[str]:
    """`holdfast sweep` as a person starts it, in a process group of its own."""
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "sweep", str(study), "-o", out]
    command += ["--set", "steps=4000", "--set", "measure.points=40", "--set", "grid.adapter.r=[2]"]
    return subprocess.Popen(
        command, cwd=study.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def until_measured(process: subprocess.Popen[str], lines: int) -> None:
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += "forgetting" in line
        if seen == lines:
            return
    raise AssertionError(f"ended after {seen} measurements")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_within_a_step_and_the_same_command_goes_on(
    number: signal.Signals, code: int, study: Path
) -> None:
    process = started(study, "runs")
    until_measured(process, 3)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert f"stopped by {number.name}; the same command goes on from here" in " ".join(said.split())
    (run,) = archive.read_runs(study.parent / "runs")
    assert run.state == "in progress"
    (checkpoint,) = (run.folder / "checkpoint").iterdir()
    last = max(one.step for one in run.measurements)
    assert last <= int(checkpoint.name.removeprefix("step-")) < 4000
    again = started(study, "runs")
    until_measured(again, 1)
    os.killpg(again.pid, signal.SIGKILL)
    again.communicate()
    (more,) = archive.read_runs(study.parent / "runs")
    assert more.measurements[: len(run.measurements)] == run.measurements
    assert len(more.measurements) > len(run.measurements)
    assert "resumed" in more.provenance


def test_two_sweeps_of_one_study_share_the_work_and_a_dead_ones_run_is_taken_over(study: Path) -> None:
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "sweep", str(study)]
    command += ["-o", "runs", "--json"]
    processes = [
        subprocess.Popen(command, cwd=study.parent, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert processes[0].stderr is not None
    for line in processes[0].stderr:
        if "forgetting" in line:
            break
    processes[0].kill()
    processes[0].communicate()
    tables = []
    for process in processes[1:]:
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        tables.append(out)
    assert tables[0] == tables[1]
    alone = subprocess.run(
        [*command[:-3], "-o", "alone", "--json"], cwd=study.parent, capture_output=True, text=True, check=True
    )
    assert json.loads(alone.stdout) == json.loads(tables[0])
