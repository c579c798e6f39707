"""Runs placed on a real Ray cluster of several nodes, whose workers, nodes and driver are really killed."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import filelock
import pytest

import crashes
from holdfast import archive, sharing
from holdfast.config import read_study
from holdfast.errors import ConfigError, ResourceError
from test_cli import run

pytest.importorskip("ray")

from holdfast.integrations import ray as on_ray

HERE = Path(__file__).parent
RUNS = 3

DRIVER = """
import logging, sys, crashes
from pathlib import Path
from holdfast.config import read_study
from holdfast.integrations.ray import sweep_on_ray
from holdfast.interrupts import stopping
logging.basicConfig(level=logging.INFO)
study, out, address, workers = sys.argv[1:]
read = read_study(Path(study), overrides=["grid.adapter.r=[1,2,4]", "steps=120", "measure.points=6"])
with stopping() as stop:
    table = sweep_on_ray(
        read, out=Path(out), address=address, workers=int(workers), checkpoint_every_s=0.1, stop=stop, aloud=False
    )
print(crashes.canonical(table))
"""
ALONE = """
import sys, crashes
from pathlib import Path
from holdfast import sweeps
from holdfast.config import read_study
read = read_study(Path(sys.argv[1]), overrides=["grid.adapter.r=[1,2,4]", "steps=120", "measure.points=6"])
print(crashes.canonical(sweeps.sweep(read, out=sys.argv[2])))
"""

PURSUIT = """
import sys, crashes, test_pursuit
from pathlib import Path
from holdfast import pursuit, sweep_screens
from holdfast.config import read_study
study, out, where = sys.argv[1:]
pursuit.look_ahead = test_pursuit.Few(2)
read = read_study(Path(study), overrides=["grid.adapter.r=[2,4,8]", "steps=6", "measure.points=4", "measure.first=2"])
goal = pursuit.Goal(max_forgetting=0.05, interval=1e-6, budget_s=3600)
options = {"output_dir": Path(out), "device": "cpu", "retry_failed": False, "keep_adapters": False, "pack": 1}
options |= {"goal": goal, "workers": 1, "report_to": []}
if where == "ray":
    table, ended = sweep_screens.sweep_until_on_cluster(read, address=None, **options)
else:
    table, ended = sweep_screens.sweep_until(read, shard=1, **options)
print(ended.ended, ended.made)
print(crashes.canonical(table))
"""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A thread a process, as a worker of one core has; a token of our own, by which our processes are known as well."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    paths = os.pathsep.join([str(HERE), *sys.path])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    token |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_worker_niceness": "0",
    }  # on loopback, no slower than others
    return os.environ | token | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    return crashes.study(tiny, tmp_path)


def processes(mark: str) -> dict[int, str]:
    """Pids and titles of the living processes that have something in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    return {pid: title for pid, title in found.items() if title}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until(holds: Callable[[], Any], driver: subprocess.Popen[str] | None = None, seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert driver is None or driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


@contextmanager
def cluster(nodes: int, environment: dict[str, str]) -> Iterator[tuple[str, list[int], IO[str]]]:
    """Address, pids of the nodes' raylets, and where a line adds a node."""
    command = [sys.executable, str(HERE / "clusters.py"), str(nodes)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        address = json.loads(holder.stdout.readline())["address"]
        yield address, [json.loads(holder.stdout.readline())["raylet"] for _ in range(nodes)], holder.stdin


def acknowledged(out: Path) -> dict[str, list[bytes]]:
    """Every whole line on record, by run."""
    files = out.glob("*/records.jsonl")
    return {path.parent.name: path.read_bytes().split(b"\n")[:-1] for path in files}


@pytest.mark.skipif("HOLDFAST_KILLS" not in os.environ, reason="part of make test-crash")
def test_workers_nodes_and_drivers_die_and_nothing_acknowledged_is_lost(
    study: Path, tmp_path: Path, environment: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    out, token = tmp_path / "runs", environment["RAY_AUTH_TOKEN"]
    safe: list[dict[str, list[bytes]]] = []
    hit: set[str] = set()

    def drive(address: str, workers: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(study), str(out), address, str(workers)]
        with (tmp_path / "said").open("a") as said:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)

    def mourned(many: int) -> bool:
        return (tmp_path / "said").read_text().count("a worker died at") >= many

    def at_work() -> list[int]:
        return [pid for pid, title in processes(token).items() if title.startswith("ray::Worker.make")]

    def runs_of(pid: int) -> set[str]:
        """The runs a process owns that have a checkpoint and are not done: a kill would make one go on elsewhere."""
        locks = {os.path.realpath(fd) for fd in Path(f"/proc/{pid}/fd").glob("*")}
        begun = {path.parent.parent for path in out.glob("*/checkpoint/step-*")}
        owned = {folder for folder in begun if str(folder.with_name(f".{folder.name}.lock")) in locks}
        return {folder.name for folder in owned if not (folder / "done.json").exists()}

    def victim() -> int | None:
        """A worker in the middle of a run, if more is on record than when the last kill was made."""
        more = not safe or acknowledged(out) != safe[-1]
        return next((pid for pid in at_work() if more and runs_of(pid)), None)

    @contextmanager
    def others_held(pid: int) -> Iterator[None]:
        """All other workers stand still meanwhile, or they would end the sweep while a new one comes up."""
        held = set(at_work()) - {pid}
        for other in held:
            os.kill(other, signal.SIGSTOP)
        try:
            yield
        finally:
            for other in held:
                os.kill(other, signal.SIGCONT)

    def killed(pid: int, at: int) -> None:
        """Kill a process, while the worker `at` is in a run; where it is another, that worker may yet end the run."""
        if pid == at:
            hit.update(runs_of(at))
        safe.append(acknowledged(out))
        os.kill(pid, signal.SIGKILL)

    with cluster(2, environment) as (address, _, nodes):
        first = drive(address, 2)
        worker = until(victim, first)
        with others_held(worker):
            killed(worker, at=worker)
            until(lambda: mourned(1) and victim(), first)
        worker = until(victim, first)
        with others_held(worker):
            killed(parent(worker), at=worker)  # its node
            until(lambda: mourned(2), first)
        killed(first.pid, at=until(victim, first))
        first.communicate()
        until(lambda: not at_work(), seconds=60)  # nobody is left behind
        nodes.write("\n")
        nodes.flush()
        second = drive(address, 1)
        table, _ = second.communicate(timeout=300)
        assert second.returncode == 0, (tmp_path / "said").read_text()
    until(lambda: not processes(token), seconds=60)
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, str(study), str(tmp_path / "alone")],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert table.strip() == alone.stdout.strip()
    runs = archive.read_runs(out)
    assert [run.state for run in runs] == ["done"] * RUNS
    assert hit
    assert hit <= {run.name for run in runs if "resumed" in run.provenance}
    at_the_end = acknowledged(out)
    lost = sum(set(lines) - set(at_the_end[run]) != set() for before in safe for run, lines in before.items())
    assert lost == 0
    assert all(len({json.loads(line)["crc32"] for line in lines}) == len(lines) for lines in at_the_end.values())
    known = sum(len(lines) for before in safe for lines in before.values())
    assert known > 0
    record_property(
        "Durability",
        "on a Ray cluster of three nodes a worker, a node and the driver killed with SIGKILL | 3 kills, 1 sweep of "
        f"{RUNS} runs | {lost} of {known} acknowledged measurements lost, the table that of one process",
    )


def test_a_cluster_of_this_machine_is_on_loopback_behind_a_token_and_stops_as_asked(
    study: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    ours = environment | {"HOLDFAST_TEST": secrets.token_hex(16)}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        del ours[name]
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "sweep", str(study), "--executor", "ray"]
    command += ["--output-dir", str(tmp_path / "runs"), "--workers", "1", "--set", "grid.adapter.r=[2]"]
    long = ["--set", "steps=4000", "--set", "measure.points=40"]
    with subprocess.Popen([*command, *long], env=ours, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        until(lambda: acknowledged(tmp_path / "runs"), driver)
        everyone = processes(ours["HOLDFAST_TEST"])
        listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
        listening = [line for line in listening if any(f"pid={pid}," in line for pid in everyone)]
        assert len(listening) > 3
        for line in listening:
            assert line.split()[3].rpartition(":")[0] in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"), line
        gcs = next(line.split()[3].rpartition(":")[2] for line in listening if "gcs_server" in line)
        stranger = subprocess.run(
            [sys.executable, "-c", f"import ray; ray.init(address='127.0.0.1:{gcs}'); print(ray.cluster_resources())"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert stranger.returncode != 0
        assert "uthenticat" in stranger.stderr
        (raylet,) = (pid for pid, title in everyone.items() if "/raylet/raylet" in title)
        secret = Path(f"/proc/{raylet}/environ").read_bytes().partition(b"RAY_AUTH_TOKEN=")[2].partition(b"\0")[0]
        assert len(secret) == 64
        driver.send_signal(signal.SIGTERM)
        said = driver.stderr.read()
        assert driver.wait(timeout=60) == 75, said
    assert "stopped by SIGTERM; the same command goes on from here" in " ".join(said.split())
    assert "Traceback" not in said
    assert secret.decode() not in said
    assert list((tmp_path / "runs").glob("*/checkpoint/step-*"))
    assert not any(secret in path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    until(lambda: not processes(ours["HOLDFAST_TEST"]), seconds=30)


def test_runs_of_its_own_choice_are_made_on_a_cluster_as_on_this_machine(
    study: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The study's own three runs and one that was chosen after them; then the budget is spent."""
    made = [
        subprocess.run(
            [sys.executable, "-c", PURSUIT, str(study), str(tmp_path / where), where],
            capture_output=True, text=True, env=environment, check=False,
        )
        for where in ("ray", "here")
    ]  # fmt: skip
    assert [one.returncode for one in made] == [0, 0], made[0].stderr
    assert made[0].stdout.startswith("budget 4\n")
    assert made[0].stdout == made[1].stdout


def test_a_node_that_does_not_share_the_folder_or_its_locks_is_refused(tmp_path: Path) -> None:
    look = "import sys; from pathlib import Path; from holdfast.sharing import check_shared\n"
    look += "check_shared(Path(sys.argv[1]), sys.argv[2])"

    def elsewhere(folder: Path, mark: str) -> str:
        command = [sys.executable, "-c", look, str(folder), mark]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with sharing.marked(tmp_path / "runs") as mark:
        assert elsewhere(tmp_path / "runs", mark) == ""
        assert "expected a file system shared by all nodes" in elsewhere(tmp_path, mark)
    assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "runs" / ".shared-0.lock").touch()  # a lock that is held is not seen: nobody seems to hold it
    assert "whose locks are not seen by other nodes" in elsewhere(tmp_path / "runs", ".shared-0.lock")
    with filelock.FileLock(tmp_path / "runs" / ".shared-0.lock"):
        assert elsewhere(tmp_path / "runs", ".shared-0.lock") == ""


def test_cores_are_shared_out_and_a_gpu_is_for_one() -> None:
    def shares(*nodes: dict[str, float], workers: int | None = None, most: int = 99, device: str = "auto") -> Any:
        many, place = on_ray.shares(nodes, workers=workers, most=most, device=device)
        return many, place.cores, place.gpus, place.device

    two = {"CPU": 8.0}, {"CPU": 5.0}
    assert shares(*two) == (13, 1, 0, "cpu")
    assert shares(*two, workers=3) == (3, 4, 0, "cpu")  # 4 and 4 on the one, 4 on the other
    assert shares(*two, workers=2) == (2, 5, 0, "cpu")
    assert shares(*two, most=1) == (1, 8, 0, "cpu")
    assert shares(*two, workers=40) == (40, 1, 0, "cpu")
    assert shares({"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}) == (2, 1, 1, "cuda")
    assert shares({"CPU": 8.0, "GPU": 2.0}, device="cpu", workers=2) == (2, 4, 0, "cpu")
    assert shares({}) == (1, 1, 0, "cpu")
    with pytest.raises(ConfigError, match="Ray says which GPU"):
        shares({"CPU": 8.0, "GPU": 2.0}, device="cuda:1")


def test_what_cannot_be_is_refused_at_once(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, why in (
        (["--executor", "ray", "--dry-run"], "for one machine"),
        (["--executor", "ray", "--until-interval", "0.1", "--budget-hours", "1", "--set", "dtype=auto"], "dtype auto"),
        (["--output-dir", "s3://bucket/runs"], "expected a folder of a file system"),
    ):
        code, _, said = run(["sweep", str(study), *more], monkeypatch, capsys)
        assert code == 2
        assert why in " ".join(said.split())
    with pytest.raises(ResourceError, match=r"got no Ray cluster .*at 127\.0\.0\.1:1"):
        on_ray.sweep_on_ray(read_study(study), out=tmp_path / "runs", address="127.0.0.1:1")
    with pytest.raises(ConfigError, match="expected HOST:PORT or auto"):
        on_ray.sweep_on_ray(read_study(study), out=tmp_path / "runs", address="ray://127.0.0.1:10001")
    assert not (tmp_path / "runs").exists()
