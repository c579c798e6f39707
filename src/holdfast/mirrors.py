"""Runs kept in an object store as well: of each the whole folder as it stands, one object that the next one replaces.

An object can neither be appended to, renamed nor locked, so nothing is worked on there. A run is made in a folder of a
file system, by that folder's rules, and put into the store whole after each checkpoint and at its end; who goes on with
it elsewhere begins with the furthest.

    <url>/<run>/<number>-<state>-<step>-<records>-<bytes>-<sha256>.tar      step of its newest checkpoint

Size and hash say whether an object is what was to be put. Nobody owns a run across machines here: two that make the
same one do work twice, and keep the furthest of either, which is the same run. Any store that fsspec knows. No torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import secrets
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from holdfast import files, store
from holdfast.errors import HoldfastError, ResourceError, StoreError, first_line
from holdfast.store import State

log = logging.getLogger(__name__)

_STATES: dict[State, str] = {"done": "done", "failed": "failed", "diverged": "diverged", "in progress": "begun"}
_NAMED = re.compile(r"(\d{6,})-(done|failed|diverged|begun)-(\d{8,})-(\d{6,})-(\d+)-([0-9a-f]{64})\.tar")
_OF_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"})
"""Kinds of store, as URLs begin, that have no folders."""
_PASSING = ("progress.json",)
"""Files that are of this machine alone."""


@dataclass(frozen=True, kw_only=True, order=True)
class Reach:
    """How far a run is: what of it would be lost with it."""

    done: bool
    step: int
    records: int


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """One object: which of a run's it is, and what its name says of what is in it."""

    name: str
    number: int
    state: str
    reach: Reach
    bytes: int
    sha256: str


class Mirror:
    """An object store that runs are kept in. A class because it holds the connection."""

    def __init__(self, url: str) -> None:
        """Connect; nothing is written.

        Raises:
            ResourceError: no such kind of store, or what reads it is not installed.
        """
        self.url = re.sub(r"//[^/@]*@", "//", url)  # a password in it is nobody's to read
        with self._reaching():
            self._fs, self._root = url_to_fs(url)

    def check_writable(self) -> None:
        """Put a small object and remove it: what credentials allow is known only then.

        Raises:
            ResourceError: the store cannot be written.
        """
        probe = f"{self._root}/.probe-{secrets.token_hex(8)}"
        with self._reaching():
            self._make_folder(self._root)
            self._fs.pipe_file(probe, b"holdfast")
            self._fs.rm_file(probe)

    def names(self) -> list[str]:
        """The runs that the store has something of.

        Raises:
            ResourceError: it cannot be read.
        """
        with self._reaching():
            self._fs.invalidate_cache()
            found = self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if re.fullmatch(r"[0-9a-f]{12}", name))

    def fetch(self, root: Path) -> list[str]:
        """Bring every run of the store into a folder of runs where it is further than what is there; their names.

        Those that another process owns there are left to it.

        Raises:
            ResourceError: the store cannot be read, or the folder not written.
            StoreError: an object is not a run.
        """
        with files.refusing(root):
            files.make_folder(root)
            return [name for name in self.names() if not store.owned(root / name) and self.pull(root / name)]

    def pull(self, folder: Path) -> bool:
        """Make a run's folder what the store has of it, where that is further; whether it was.

        Its owner calls this. An object that is not what its name says is passed over for the one before it.

        Raises:
            ResourceError, StoreError: as `fetch`.
        """
        begun = (folder / "provenance.json").is_file()
        for kept in self._kept(folder.name):
            if begun and kept.reach <= _reach(folder)[1]:
                return False
            with files.refusing(folder):
                if self._unpacked(kept, folder):
                    return True
            log.warning("not whole, passed over: %s of run %s, at %s", kept.name, folder.name, self.url)
        return False

    def push(self, folder: Path, *, must: bool = True) -> None:
        """Put a run's folder into the store, where it is further than what is there; its owner calls this.

        Without `must` a store that cannot be reached is logged: the next checkpoint is put there instead.

        Raises:
            ResourceError: the store cannot be written.
        """
        try:
            self._push(folder)
        except ResourceError as error:
            if must:
                raise
            log.warning("%s; run %s goes on and is kept here alone until its next checkpoint", error, folder.name)

    def stands(self, name: str) -> Reach | None:
        """How far the store has a run; None where it has none."""
        kept = self._kept(name)
        return kept[0].reach if kept else None

    def _push(self, folder: Path) -> None:
        state, reach = _reach(folder)
        there = self._kept(folder.name)
        if there:
            best = there[0]
            if best.reach > reach or (best.reach == reach and best.state == _STATES[state]):
                return
        whole = _Measured()  # read once for its name and once to be put: a copy would need the room of a run on disk
        _pack(folder, whole)
        number = max((kept.number for kept in there), default=0) + 1
        about = f"{number:06d}-{_STATES[state]}-{reach.step:08d}-{reach.records:06d}"
        with self._reaching():
            self._make_folder(f"{self._root}/{folder.name}")
            name = f"{about}-{whole.size}-{whole.digest.hexdigest()}.tar"
            with self._fs.open(f"{self._root}/{folder.name}/{name}", "wb") as file:
                _pack(folder, file)
            for kept in there:
                with contextlib.suppress(FileNotFoundError):  # another did
                    self._fs.rm_file(f"{self._root}/{folder.name}/{kept.name}")

    def _kept(self, name: str) -> list[_Kept]:
        """What the store has of a run in its whole size, that to begin with first."""
        with self._reaching():
            self._fs.invalidate_cache()
            path = f"{self._root}/{name}"
            found = self._fs.ls(path, detail=True) if self._fs.exists(path) else []
        kept = []
        for each in found:
            file = each["name"].rpartition("/")[2]
            if matched := _NAMED.fullmatch(file):
                number, state, step, records, size, sha256 = matched.groups()
                if int(size) != each["size"]:  # cut off
                    continue
                reach = Reach(done=state == "done", step=int(step), records=int(records))
                kept.append(
                    _Kept(name=file, number=int(number), state=state, reach=reach, bytes=int(size), sha256=sha256)
                )
        return sorted(kept, key=lambda one: (one.reach.done, one.number, one.name), reverse=True)

    def _unpacked(self, kept: _Kept, folder: Path) -> bool:
        """Put what an object holds in a folder's place; False where it is not whole."""
        path, scratch = f"{self._root}/{folder.name}/{kept.name}", folder.with_name(f".{folder.name}.pulled")
        archive, making = scratch / "archive.tar", scratch / folder.name
        files.check_room(folder, 2 * kept.bytes)
        files.remove(scratch)
        try:
            making.mkdir(parents=True)
            digest = hashlib.sha256()
            with self._reaching(), self._fs.open(path, "rb") as there, archive.open("wb") as here:
                while part := there.read(1 << 22):
                    digest.update(part)
                    here.write(part)
            if digest.hexdigest() != kept.sha256:
                return False
            _unpack(archive, making, f"{self.url}/{folder.name}/{kept.name}")
            store.read_run(making)
            for inside in (*making.rglob("*"), making):
                files.flush(inside)
            if folder.exists():
                files.move(folder, scratch / "before")
            files.move(making, folder)
            files.flush(folder.parent)
            return True
        finally:
            files.remove(scratch)

    def _make_folder(self, path: str) -> None:
        """Where there are folders: of a store of objects it would make the bucket, which may be a slip of the pen."""
        kinds = self._fs.protocol
        if not _OF_OBJECTS.intersection([kinds] if isinstance(kinds, str) else kinds):
            self._fs.makedirs(path, exist_ok=True)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Whatever a store raises, and there are many, told as what it is."""
        try:
            yield
        except HoldfastError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            raise ResourceError(f"got {said}, expected an object store that can be used, at {self.url}") from error


class _Measured(io.RawIOBase):
    """What would be written, by its size and SHA-256. A class because tarfile writes to files."""

    def __init__(self) -> None:
        self.size, self.digest = 0, hashlib.sha256()

    def write(self, content: Any) -> int:
        """Count it."""
        self.digest.update(content)
        self.size += len(content)
        return len(content)


def _reach(folder: Path) -> tuple[State, Reach]:
    """How a run folder stands and how far it is."""
    state, _ = store.standing(folder)
    records = folder / "records.jsonl"
    steps = [int(path.name[5:]) for path in (folder / "checkpoint").glob("step-*") if path.name[5:].isdecimal()]
    lines = records.read_bytes().count(b"\n") if records.is_file() else 0
    return state, Reach(done=state == "done", step=max(steps, default=0), records=lines)


def _pack(folder: Path, into: IO[bytes] | _Measured) -> None:
    """A folder's files in the order of their names, the same bytes for the same files."""
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] not in _PASSING and not any(p.startswith(".") for p in inside.parts):
                entry = tarfile.TarInfo(inside.as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)


def _unpack(archive: Path, into: Path, where: str) -> None:
    """The files of an archive; nothing of it leaves the folder, and nothing in it is anything but a file."""
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for entry in tar:
                if not entry.isfile():
                    raise StoreError(f"got {entry.name!r}, which is no file, expected files alone, at {where}")
                tar.extract(entry, into, filter="data")
    except (tarfile.TarError, ValueError) as error:
        raise StoreError(f"got no readable archive of a run ({first_line(error)}), expected one, at {where}") from error
