"""The SLURM script of the documents, run with the real command. SLURM is not here: `scontrol` is a stand-in."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import crashes

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "on-a-cluster.md"
TOLD = '#!/bin/sh\necho "$@" >> "$TOLD"\n'
REAL = f"#!{sys.executable}\nimport sys\nfrom holdfast.cli import main\nsys.argv[0] = 'holdfast'\nmain()\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (text,) = (block for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) if "#SBATCH" in block)
    (tmp_path / "bin").mkdir()
    for name, content in (("holdfast", REAL), ("scontrol", TOLD)):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "sweep.sbatch").write_text(text)
    return tmp_path / "sweep.sbatch"


def submitted(script: Path, study: Path, runs: str) -> subprocess.Popen[str]:
    """As SLURM runs a batch script: in a process group of its own, the signal to the shell alone (`B:`)."""
    given = {
        "PATH": f"{script.parent / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "17", "STUDY": str(study),
        "RUNS": str(script.parent / runs), "TOLD": str(script.parent / "told"), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    return subprocess.Popen(["bash", str(script)], env=os.environ | given, stderr=subprocess.PIPE, text=True)


def test_a_job_whose_time_is_up_keeps_its_work_and_asks_to_be_queued_again(script: Path, tiny: Path) -> None:
    study = crashes.study(tiny, script.parent)
    study.write_text(study.read_text().replace("steps: 24", "steps: 100000"))
    with submitted(script, study, "long") as job:
        end = time.monotonic() + 240
        while not list((script.parent / "long").glob("*/records.jsonl")):
            assert job.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        said = job.stderr.read() if job.stderr else ""
    assert job.returncode == 75, said
    assert (script.parent / "told").read_text() == "requeue 17\n"
    assert list((script.parent / "long").glob("*/checkpoint/step-*"))


def test_a_sweep_that_ends_is_not_queued_again(script: Path, tiny: Path) -> None:
    study = crashes.study(tiny, script.parent)
    with submitted(script, study, "short") as job:
        said = job.stderr.read() if job.stderr else ""
    assert job.returncode == 0, said
    study.write_text("steps: none")
    with submitted(script, study, "wrong") as job:
        job.communicate()
    assert job.returncode == 2
    assert not (script.parent / "told").exists()


def test_the_script_is_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=True).stderr == b""
