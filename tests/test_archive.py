"""One file says of a study all that its folders do."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from holdfast import archive, progress
from holdfast.errors import StoreError
from holdfast.publishing import publish
from holdfast.store import read_run, run_folders
from test_publishing import made


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for r in (1, 4, 16):
        made(tmp_path / "runs", r=r)
    made(tmp_path / "runs", r=64, end="diverged", points=2)
    return tmp_path / "runs"


def test_runs_come_back_as_they_were(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    before = archive.read_runs(runs)
    archive.write_archive(before, folder / archive.FILE)
    after = archive.read_runs(folder)
    assert [one.name for one in after] == [one.name for one in before]
    for mine, theirs in zip(after, before, strict=True):
        for what in ("config", "provenance", "state", "reason", "summary", "measurements"):
            assert getattr(mine, what) == getattr(theirs, what), what
    pd.testing.assert_frame_equal(archive.table(folder), archive.table(runs))
    assert progress.seconds_per_token(folder) == progress.seconds_per_token(runs)


def test_the_page_is_made_again_from_what_it_left_without_torch(runs: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    publish(runs, output_dir=left, commands=["holdfast report"])
    first = (left / "report.html").read_bytes()
    (left / "report.html").unlink()
    program = (
        "import sys; from pathlib import Path; from holdfast.publishing import publish;"
        "publish(Path(sys.argv[1]), output_dir=Path(sys.argv[1]), commands=['holdfast report']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(left)], check=True)
    assert (left / "report.html").read_bytes() == first


def test_folders_are_read_where_both_are(runs: Path) -> None:
    archive.write_archive(archive.read_runs(runs)[:1], runs / archive.FILE)
    assert len(archive.read_runs(runs)) == 4


def test_a_damaged_archive_is_named(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / archive.FILE
    archive.write_archive(archive.read_runs(runs), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"got no readable archive of runs .*, at .*runs\.parquet"):
        archive.read_runs(tmp_path)
    table = pd.read_parquet(io.BytesIO(whole))
    table["config"] = table["config"].str.replace('"steps":60', '"steps":61')
    table.to_parquet(path)
    with pytest.raises(StoreError, match="hashes to"):
        archive.read_runs(tmp_path)


def test_archived_runs_become_folders_again_but_for_their_weights(runs: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir()
    before = archive.read_runs(runs)
    archive.write_archive(before, root / archive.FILE)
    archive.restore(root)
    archive.restore(root)
    after = [read_run(folder) for folder in run_folders(root)]
    assert [replace(run, folder=Path()) for run in after] == [replace(run, folder=Path()) for run in before]
    assert {run.state for run in after} == {"done", "diverged"}
    assert sorted(path.name for path in root.iterdir()) == sorted([archive.FILE, *(run.name for run in before)])


def test_a_folder_that_is_there_is_left_as_it_is(runs: Path) -> None:
    first, *others = archive.read_runs(runs)
    archive.write_archive([first, *others], runs / archive.FILE)
    (first.folder / "done.json").unlink()
    archive.restore(runs)
    assert read_run(first.folder).state == "in progress"
