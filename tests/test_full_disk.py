"""Real disks that are too small, fill up, or cannot be written: said before training where it can be known, else a
clean stop that loses nothing. Needs to mount a tmpfs, which root may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import crashes
from holdfast import archive, cli, sweeps
from holdfast.errors import ResourceError


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    return crashes.study(tiny, tmp_path)


def fill(disk: Path, *, but: int) -> Path:
    """Take all of a disk but so many bytes."""
    hog = disk / "hog"
    with hog.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
        file.truncate(max(0, hog.stat().st_size - but))
    return hog


@pytest.mark.parametrize("room", [0, 4096, 20_480, 65_536, 131_072])
@pytest.mark.parametrize("at", [0, 7])
def test_a_disk_that_fills_up_stops_the_sweep_and_loses_nothing(
    at: int, room: int, study: Path, disk: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole = sweeps.sweep(study, out=tmp_path / "whole")
    acknowledged: list[dict[str, object]] = []
    hog: list[Path] = []

    def tell(progress: sweeps.Progress) -> None:
        event = progress.event
        if event and event.report:
            acknowledged.append(
                {
                    "word": "measured",
                    "run": progress.run.name,
                    "step": event.step,
                    "corpus": event.report.corpus,
                    "kl": event.report.kl_base_tuned.value,
                }
            )
        elif event and event.step > at and not hog:
            hog.append(fill(disk, but=room))

    full = r"cannot be written: No space left on device; \d+ MiB are free|got 0 MiB free, expected 2 MiB of room"
    with pytest.raises(ResourceError, match=full) as refused:
        sweeps.sweep(study, out=disk / "runs", tell=tell, checkpoint_every_s=0)
    assert refused.value.exit_code == 5
    assert not crashes.lost(disk / "runs", acknowledged)
    assert not list((disk / "runs").rglob("*.making")), "half of something keeps a full disk full"
    hog[0].unlink()
    made = sweeps.sweep(study, out=disk / "runs", checkpoint_every_s=0)
    assert crashes.canonical(made) == crashes.canonical(whole)
    record_property(
        "Durability",
        "a 4 MB disk filled up to 0, 4, 20, 64 and 128 kB, at the start and in the middle | 10 sweeps | exit code 5, "
        "nothing acknowledged lost; with room again, the table of the sweep never stopped",
    )


def refused(study: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `holdfast sweep` says when it ends with 5."""
    monkeypatch.setattr(sys, "argv", ["holdfast", "sweep", str(study), "--output-dir", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 5, said
    assert "Traceback" not in said
    return " ".join(said.split())


def test_a_disk_too_small_for_the_study_is_refused_before_training(
    study: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(disk, but=1_000_000)
    assert "MiB free, expected" in refused(study, disk / "runs", monkeypatch, capsys)
    assert not list((disk / "runs").glob("*/records.jsonl"))
    with pytest.raises(ResourceError, match=r"got 1 MiB free, expected 2 MiB of room"):
        sweeps.sweep(study, out=disk / "runs")
    assert not list((disk / "runs").glob("*/records.jsonl"))


def test_a_read_only_disk_is_refused_before_training(
    study: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mount("-o", "remount,ro", str(disk))
    assert "cannot be written: Read-only file system" in refused(study, disk / "runs", monkeypatch, capsys)
    mount("-o", "remount,rw", str(disk))
    sweeps.sweep(study, out=disk / "runs")
    mount("-o", "remount,ro", str(disk))
    assert [run.state for run in archive.read_runs(disk / "runs")] == ["done", "done"]  # reading needs no writing
    mount("-o", "remount,rw", str(disk))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("x" * 300, "File name too long"),
        ("study.yaml", "Not a directory"),
        ("study.yaml/runs", "Not a directory"),
        ("nowhere", "File exists"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_training(
    place: str, reason: str, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (study.parent / "nowhere").symlink_to(study.parent / "gone" / "disk")  # what is left of a disk not mounted
    said = refused(study, study.parent / place, monkeypatch, capsys)
    assert f"cannot be written: {reason}" in said
