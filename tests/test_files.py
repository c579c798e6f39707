"""Files appear whole or not at all; the places where a crash could come are in tests/test_crash_points.py."""

import json
import math
import tempfile
from pathlib import Path

import pytest

from holdfast import files
from holdfast.errors import ResourceError, StoreError


def test_a_folder_that_another_process_makes_first_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(path: Path) -> None:
        path.mkdir()
        raise FileExistsError(17, "File exists", str(path))

    monkeypatch.setattr(files, "_mkdir", slower)
    files.make_folder(tmp_path / "runs")
    assert (tmp_path / "runs").is_dir()
    monkeypatch.setattr(files, "_mkdir", lambda path: (path.touch(), slower(tmp_path / "x")))
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file")


def test_an_object_comes_back_and_a_refused_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 0.1, "c": ["ü", None]})
    assert files.read_json(path) == {"b": 0.1, "c": ["ü", None]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"b": math.nan})
    assert files.read_json(path)["b"] == 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_every_changed_value_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"trainable_params": 1474560, "deep": {"er": [1, 2]}})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (0x01, 0x04, 0x20):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                read = files.read_json(path)
            except StoreError:
                continue
            assert read == {"trainable_params": 1474560, "deep": {"er": [1, 2]}}, place  # white space only


def test_a_folder_stands_for_all_of_its_files(tmp_path: Path) -> None:
    files.write_folder(tmp_path / "a", [("one", b"1"), ("two", b"2")])
    files.write_folder(tmp_path / "a", [("three", b"3")])
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {"three": b"3"}

    def broken():  # type: ignore[no-untyped-def]
        yield "one", b"1"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.write_folder(tmp_path / "b", broken())
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_appending_and_cutting(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.append(path, b"one\n")
    files.append(path, b"two\n")
    files.cut(path, 5)
    assert path.read_bytes() == b"one\nt"


def test_removing_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    files.remove(tmp_path / "gone")
    files.remove(tmp_path / "never there")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_room_is_checked_where_the_folder_will_be(tmp_path: Path) -> None:
    files.check_room(tmp_path / "not" / "there", 1)
    with pytest.raises(ResourceError, match=r"expected .* MiB of room, at .*there"):
        files.check_room(tmp_path / "not" / "there", 2**62)


def test_a_read_that_fails_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"b": 1}))
    with pytest.raises(StoreError, match=r"changed or damaged.*a\.json"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match=r"unreadable.*b\.json"):
        files.read_json(tmp_path / "b.json")


def test_what_passes_through_another_disk_needs_room_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert files.passing_bytes(tmp_path / "not" / "there", 10**18) == 10**18
    elsewhere = Path("/dev/shm")  # noqa: S108
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    assert files.passing_bytes(tmp_path, 1) == 0
    with pytest.raises(ResourceError, match=r"MiB of room, at /dev/shm"):
        files.passing_bytes(tmp_path, 10**18)
