"""Every change to a run folder goes through here: nothing is acknowledged that a crash or a power cut could take back.

The functions are made of a few primitives (`_write`, `_fsync`, `_rename`, `_unlink`, …), one system call each, which is
where tests/test_crash_points.py stops a sweep, before and after every one of them. No torch here.

What a disk promises without fsync is nothing: a renamed file may be empty, a new name may be gone. So contents are
flushed before a rename, and the folder is flushed after it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.errors import ResourceError, StoreError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, content: bytes) -> None:
    """Write a file so that its name stands for the whole content or for what it stood for before."""
    made = path.with_name(f".{path.name}.making")
    with _cleared_on_failure(made):
        _write_new(made, content)
        _rename(made, path)
    flush(path.parent)


def note(path: Path, content: bytes) -> None:
    """Write a file whole, that nothing depends on: a power cut may take it back."""
    made = path.with_name(f".{path.name}.making")
    made.write_bytes(content)
    made.replace(path)


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; when this returns the content is on disk."""
    new = not path.exists()
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        _write(file, content)
        _fsync(file)
    if new:
        flush(path.parent)


def cut(path: Path, size: int) -> None:
    """Leave only the first bytes of a file. Not flushed: what is appended next flushes this with it."""
    with _opened(path, os.O_WRONLY) as file:
        _truncate(file, size)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing."""
    if path.is_dir():
        return
    if path.is_file():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    make_folder(path.parent)
    try:
        _mkdir(path)
    except FileExistsError:
        if not path.is_dir():  # otherwise another process was faster
            raise
    flush(path.parent)


def write_folder(path: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write a folder of named files so that its name stands for all of them or does not exist.

    Contents are taken one at a time, so that they need not be in memory at once. What stood there before is removed
    first: a crash in between leaves neither.
    """
    made = path.with_name(f".{path.name}.making")
    remove(made)
    with _cleared_on_failure(made):
        _mkdir(made)
        for name, content in contents:
            _write_new(made / name, content)
        flush(made)
        remove(path)
        _rename(made, path)
    flush(path.parent)


def move(path: Path, to: Path) -> None:
    """Give a file or folder another name. Not flushed: for what may as well keep its old one."""
    _rename(path, to)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Not flushed: for what may as well stay."""
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.iterdir()):
            remove(inside)
        _rmdir(path)
    elif path.exists() or path.is_symlink():
        _unlink(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of what it says; see `write` and `read_json`."""
    write(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON object with its checksum, for `read_json`."""
    checked = {"crc32": checksum(content), **content}
    return (json.dumps(checked, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        StoreError: unreadable, not an object, or changed since.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"got an unreadable file, expected JSON, at {path}") from error
    if not isinstance(content, dict):
        raise StoreError(f"got a {type(content).__name__}, expected an object, at {path}")
    found = content.pop("crc32", None)
    if found != checksum(content):
        raise StoreError(f"got a file that was changed or damaged, expected one that matches its checksum, at {path}")
    return content


def checksum(content: Mapping[str, Any]) -> str:
    """CRC-32 of an object's canonical JSON, as hex: against accidents, not against anyone."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True, allow_nan=False).encode()):08x}"


@contextmanager
def refusing(place: Path) -> Iterator[None]:
    """Trouble with the disk, told as what it is.

    Raises:
        ResourceError: the disk is full, read-only, gone, or not ours to write to.
    """
    try:
        yield
    except ResourceError:
        raise
    except OSError as error:
        where = error.filename or place
        full = f"; {free_bytes(place) / 2**20:.0f} MiB are free" if error.errno in FULL else ""
        raise ResourceError(f"cannot be written: {error.strerror or error}{full}, at {where}") from error


def check_writable(folder: Path) -> None:
    """Write and remove a small file: what a folder's permissions promise is not what a disk allows."""
    probe = folder / f".{os.getpid()}.probe"
    write(probe, b"holdfast")
    remove(probe)


def check_room(place: Path, needed: int) -> None:
    """Refuse work that the disk has no room for, before it is begun.

    Raises:
        ResourceError: fewer than `needed` bytes are free.
    """
    free = free_bytes(place)
    if free < needed:
        raise ResourceError(f"got {free / 2**20:.0f} MiB free, expected {needed / 2**20:.0f} MiB of room, at {place}")


def passing_bytes(place: Path, needed: int) -> int:
    """How much of what goes through the temporary folder is on a place's own disk: all of it, or nothing.

    Raises:
        ResourceError: the temporary folder is elsewhere, and has not the room.
    """
    temporary = Path(tempfile.gettempdir())
    if _existing(place).stat().st_dev == temporary.stat().st_dev:
        return needed
    check_room(temporary, needed)
    return 0


def free_bytes(place: Path) -> int:
    """Free bytes on the disk that holds a place, or will hold it."""
    return shutil.disk_usage(_existing(place)).free


def _existing(place: Path) -> Path:
    """A place, or the nearest above it that is there."""
    while not place.exists():
        place = place.parent
    return place


@contextmanager
def _cleared_on_failure(made: Path) -> Iterator[None]:
    """What was half written when a disk was full must not keep it full."""
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            remove(made)
        raise


def _write_new(path: Path, content: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        _write(file, content)
        _fsync(file)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def flush(path: Path) -> None:
    """Put a folder's list of names, or what a file holds, on disk."""
    with _opened(path, os.O_RDONLY) as file:
        _fsync(file)


def _write(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


_fsync = os.fsync
_truncate = os.ftruncate
_rename = os.replace
_unlink = os.unlink
_mkdir = os.mkdir
_rmdir = os.rmdir
