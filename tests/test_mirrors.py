"""Runs kept in an object store: a real S3 service, a machine lost with its disk, objects that are not whole."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

import crashes
from holdfast import archive, store, sweeps
from holdfast.config import read_study
from holdfast.errors import ResourceError, StoreError
from holdfast.mirrors import Mirror
from test_cli import run
from test_publishing import made

HERE = Path(__file__).parent
MORE = ["grid.adapter.r=[2]", "steps=160", "measure.points=8"]

SWEEP = """
import sys, crashes
from pathlib import Path
from holdfast import sweeps
from holdfast.config import read_study
study, out, mirror = sys.argv[1:]
read = read_study(Path(study), overrides=["grid.adapter.r=[2]", "steps=160", "measure.points=8"])
print(crashes.canonical(sweeps.sweep(read, out=out, mirror=mirror, checkpoint_every_s=1.0)))
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a service that speaks S3 over HTTP; clients are told of it by the usual variables."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: no test of an object store")
    server = pytest.importorskip("moto.server", reason="moto is not installed: no test of an object store")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another service, at another port
        bucket = f"studies-{port}"  # services of one process have their buckets in common
        fsspec.filesystem("s3").mkdir(bucket)
        yield f"s3://{bucket}"
        running.stop()


def objects(url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(fs.find(root)) if fs.exists(root) else []


def started(study: Path, out: Path, mirror: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(HERE), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(study), str(out), mirror], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def test_a_machine_lost_with_its_disk_costs_what_came_after_its_last_checkpoint(
    tiny: Path, tmp_path: Path, s3: str
) -> None:
    """Killed, its folder removed; the same study on another disk goes on from the store, to the very same table."""
    study, url = crashes.study(tiny, tmp_path), f"{s3}/lost"
    lost = started(study, tmp_path / "disk", url)
    end = time.monotonic() + 120
    while not (there := objects(url)) or "-begun-" not in there[-1] or int(there[-1].split("-begun-")[1][:8]) < 20:
        assert lost.poll() is None, lost.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate()
    shutil.rmtree(tmp_path / "disk")
    other = started(study, tmp_path / "other", url)
    said, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    alone = sweeps.sweep(read_study(study, overrides=MORE), out=tmp_path / "alone")
    assert said.strip() == crashes.canonical(alone)
    (made_there,) = archive.read_runs(tmp_path / "other")
    assert [
        resumed["started_at"] > made_there.provenance["started_at"] for resumed in made_there.provenance["resumed"]
    ] == [True]
    (whole,) = objects(url)
    assert "-done-" in whole
    assert Mirror(url).fetch(tmp_path / "laptop") == [made_there.name]
    assert crashes.canonical(archive.table(tmp_path / "laptop")) == said.strip()
    result = (tmp_path / "other" / made_there.name / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "laptop" / made_there.name / "adapter" / "adapter_model.safetensors").read_bytes() == result
    assert Mirror(url).fetch(tmp_path / "laptop") == []


def folder(root: Path, **how: object) -> Path:
    """One run's folder, see `test_publishing.made`."""
    made(root, r=4, **how)  # type: ignore[arg-type]
    (path,) = (config.parent for config in root.glob("*/config.json"))
    return path


def test_the_furthest_is_kept_and_what_is_whole_is_never_replaced(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    ahead, behind, whole = (
        folder(tmp_path / name, **how)
        for name, how in {"a": {"end": "begun"}, "b": {"end": "begun", "points": 2}, "c": {}}.items()
    )
    for path in (behind, ahead, behind, ahead):
        Mirror(url).push(path)
    assert Mirror(url).stands(ahead.name) == Mirror(url).stands(behind.name)
    assert len(objects(url)) == 1
    assert Mirror(url).pull(behind)
    assert (behind / "records.jsonl").read_bytes() == (ahead / "records.jsonl").read_bytes()
    Mirror(url).push(whole)
    Mirror(url).push(ahead)
    (kept,) = objects(url)
    assert "-done-" in kept
    assert Mirror(url).pull(ahead)
    assert store.read_run(ahead).state == "done"
    assert not Mirror(url).pull(whole)


def test_a_failed_run_that_is_tried_again_is_further_than_its_failure(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    path = folder(tmp_path / "a", end="diverged")
    Mirror(url).push(path)
    assert Mirror(url).fetch(tmp_path / "b") == [path.name]
    assert store.read_run(tmp_path / "b" / path.name).state == "diverged"
    (path / "failed.json").unlink()
    Mirror(url).push(path)
    assert Mirror(url).fetch(tmp_path / "c") == [path.name]
    assert store.read_run(tmp_path / "c" / path.name).state == "in progress"


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_an_object_that_is_not_whole_is_passed_over_for_the_one_before(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = (tmp_path / "store").as_uri()
    first, then = folder(tmp_path / "a", end="begun", points=2), folder(tmp_path / "b", end="begun")
    Mirror(url).push(first)
    (kept,) = map(Path, objects(url))
    before = kept.read_bytes()
    Mirror(url).push(then)
    kept.write_bytes(before)
    newest = Path(objects(url)[-1])
    content = newest.read_bytes()
    newest.write_bytes(content[:-600] if harm == "cut" else content[:600] + b"x" + content[601:])
    assert Mirror(url).fetch(tmp_path / "c") == [first.name]
    records = (tmp_path / "c" / first.name / "records.jsonl").read_bytes()
    assert records == (first / "records.jsonl").read_bytes()
    assert ("not whole, passed over" in caplog.text) == (harm == "changed")
    if harm == "cut":  # what was cut off while it was put is put again
        Mirror(url).push(then)
        assert Mirror(url).pull(tmp_path / "c" / first.name)


def hostile(entry: tarfile.TarInfo, content: bytes = b"") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def linked(target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("records.jsonl")
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (hostile(tarfile.TarInfo("../../evil"), b"x"), "no readable archive"),
        (hostile(tarfile.TarInfo("/evil-of-nobody"), b"x"), "no readable config.json"),
        (hostile(linked("/etc/passwd")), "which is no file"),
        (hostile(tarfile.TarInfo("config.json"), b"{}"), "no readable config.json"),
        (b"no archive at all", "no readable archive"),
    ],
)
def test_what_an_archive_holds_stays_in_its_folder_or_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    name = "0a" * 6
    there = tmp_path / "store" / name
    there.mkdir(parents=True)
    digest = hashlib.sha256(content).hexdigest()
    (there / f"000001-begun-00000000-000000-{len(content)}-{digest}.tar").write_bytes(content)
    with pytest.raises(StoreError, match=words):
        Mirror((tmp_path / "store").as_uri()).fetch(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []
    assert not (tmp_path / "evil").exists()
    assert not Path("/evil-of-nobody").exists()


def test_a_store_that_cannot_be_reached_stops_a_run_at_its_end_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    path, url = folder(tmp_path / "a", end="begun"), (tmp_path / "store").as_uri()
    Mirror(url).push(path, must=False)
    assert f"run {path.name} goes on and is kept here alone" in caplog.text
    with pytest.raises(ResourceError, match="expected an object store that can be used"):
        Mirror(url).push(path)


def test_a_kind_of_store_that_nobody_knows_is_refused_and_a_password_is_not_said() -> None:
    with pytest.raises(ResourceError, match="expected an object store that can be used, at nowhere://host/x") as said:
        Mirror("nowhere://me:secret@host/x")
    assert "secret" not in json.dumps(str(said.value))


def test_a_sweep_refuses_a_store_it_cannot_write_before_it_begins_and_fetch_one_that_has_no_runs(
    tiny: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = crashes.study(tiny, tmp_path)
    out = ["--output-dir", str(tmp_path / "runs")]
    code, _, said = run(["sweep", str(study), *out, "--mirror", "s3://no-such-bucket/x"], monkeypatch, capsys)
    assert code == ResourceError.exit_code
    assert "expected an object store that can be used, at s3://no-such-bucket/x" in " ".join(said.split())
    assert not (tmp_path / "runs").exists()
    code, _, said = run(["fetch", f"{s3}/nothing", str(tmp_path / "runs")], monkeypatch, capsys)
    assert code == StoreError.exit_code
    assert "got no runs" in said
    few = ["--set", "steps=4", "--set", "measure.points=2"]
    code, _, said = run(["sweep", str(study), *out, *few, "--mirror", f"{s3}/cli"], monkeypatch, capsys)
    assert code == 0, said
    code, _, said = run(["fetch", f"{s3}/cli", str(tmp_path / "laptop")], monkeypatch, capsys)
    assert code == 0, said
    assert "2 runs brought from" in said
    assert crashes.canonical(archive.table(tmp_path / "laptop")) == crashes.canonical(archive.table(tmp_path / "runs"))
