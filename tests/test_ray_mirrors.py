"""Workers on a cluster whose nodes share an object store and nothing else; one is really killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import archive
from test_mirrors import objects, s3

pytest.importorskip("ray")

from test_ray import ALONE, cluster, environment, processes, study, until

__all__ = ["environment", "s3", "study"]  # fixtures

DRIVER = """
import sys, crashes
from pathlib import Path
from holdfast.config import read_study
from holdfast.integrations.ray import sweep_on_ray
study, out, address, mirror = sys.argv[1:]
read = read_study(Path(study), overrides=["grid.adapter.r=[1,2,4]", "steps=120", "measure.points=6"])
table = sweep_on_ray(
    read, out=Path(out), address=address, workers=2, checkpoint_every_s=1.0, mirror=mirror, aloud=False
)
print(crashes.canonical(table))
"""


def test_a_worker_killed_with_its_folder_loses_no_run_where_nodes_share_a_store_alone(
    study: Path, tmp_path: Path, environment: dict[str, str], s3: str
) -> None:
    url, out, token = f"{s3}/cluster", tmp_path / "runs", environment["RAY_AUTH_TOKEN"]
    environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment |= {"TMPDIR": str(tmp_path / "scratch"), "RAY_TMPDIR": "/tmp"}  # noqa: S108  (sockets' names are short)
    (tmp_path / "scratch").mkdir()

    def at_work() -> list[int]:
        return [pid for pid, title in processes(token).items() if title.startswith("ray::Worker.make")]

    def begun() -> list[str]:
        return [name for name in objects(url) if "-begun-" in name and "-begun-00000000-" not in name]

    with cluster(2, environment) as (address, _, _):
        command = [sys.executable, "-c", DRIVER, str(study), str(out), address, url]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver:
            until(begun, driver)
            seen = {name.split("/")[-2] for name in begun()}
            for pid in at_work():
                os.kill(pid, signal.SIGKILL)
            table, said = driver.communicate(timeout=300)
            assert driver.returncode == 0, said
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, str(study), str(tmp_path / "alone")],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    table = table.splitlines()[-1]  # before it Ray says who died
    assert table == alone.stdout.strip()
    runs = archive.read_runs(out)
    assert [run.state for run in runs] == ["done"] * 3
    assert seen <= {run.name for run in runs if "resumed" in run.provenance}
    assert all("-done-" in name for name in objects(url))
