"""A disk that keeps only what it must: what every crash and every power cut would have left of a run folder.

Put under `holdfast.files`, it lets each system call happen, and knows beside it which names and contents an fsync has
made safe. After any call it can say what is there if the process dies now (everything), if the power goes (only what
was flushed), or if it goes on a disk that keeps names ahead of contents (renamed files come out empty).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import files

Tree = dict[str, bytes | None]
"""Path from the root: a file's content, or None for a folder."""

CALLS = ("_write", "_fsync", "_truncate", "_rename", "_unlink", "_mkdir", "_rmdir")
FUTURES = ("killed", "power cut", "names ahead of contents")


@dataclass(eq=False)
class File:
    """What is in a file, and what of it an fsync has made safe."""

    data: bytes = b""
    safe: bytes = b""


@dataclass(eq=False)
class Folder:
    """The names in a folder, and those an fsync has made safe."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    safe: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """The disk under one folder. `look` is called with a word for each moment: before, amid and after every call.

    `without` names a place that calls fsync, as `sites` lists them, whose fsync does nothing.
    """

    def __init__(self, root: Path, *, look: Callable[[str], None] = lambda _: None, without: str | None = None) -> None:
        self.root, self.look, self.without = root, look, without
        self.sites: set[str] = set()
        self.calls = 0
        self._looking = False
        self.top = _read(root)

    def tree(self, future: str) -> Tree:
        """What is there afterwards."""
        found: Tree = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in (folder.safe if future == "power cut" else folder.names).items():
                if isinstance(node, Folder):
                    found[prefix + name] = None
                    walk(node, f"{prefix}{name}/")
                else:
                    found[prefix + name] = node.data if future == "killed" else node.safe

        walk(self.top, "")
        return found

    @contextmanager
    def mounted(self) -> Iterator[Disk]:
        """Under `holdfast.files` for as long as this lasts."""
        real = {name: getattr(files, name) for name in CALLS}
        for name, call in real.items():
            setattr(files, name, self._watched(name, call))
        try:
            yield self
        finally:
            for name, call in real.items():
                setattr(files, name, call)

    def _watched(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: object) -> None:
            if self._looking:  # at a copy, elsewhere
                call(*arguments)
                return
            self.calls += 1
            self._look(f"before {name} {self.calls}")
            if name == "_write":
                content = bytes(arguments[1])  # type: ignore[call-overload]
                for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                    call(arguments[0], part)
                    self._note(name, arguments[0], part)
                    self._look(f"amid or after {name} {self.calls}")
                return
            if name == "_fsync" and self._skipped():
                return
            if name != "_fsync":  # what is safe is known here, and the real disk need not be waited for
                call(*arguments)
            self._note(name, *arguments)
            self._look(f"after {name} {self.calls}")

        return watched

    def _look(self, moment: str) -> None:
        self._looking = True
        try:
            self.look(moment)
        finally:
            self._looking = False

    def _skipped(self) -> bool:
        """Whether the place that asks for this fsync is the one without. A place is a line of `files`."""
        frame = sys._getframe(3) if sys._getframe(3).f_code.co_name != "flush" else sys._getframe(4)
        frame = frame.f_back if frame.f_code.co_name == "_write_new" else frame  # type: ignore[assignment]
        site = f"{frame.f_code.co_name}:{frame.f_lineno}"
        self.sites.add(site)
        return site == self.without

    def _note(self, name: str, *arguments: object) -> None:
        if name in ("_write", "_fsync", "_truncate"):
            descriptor = arguments[0]
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # type: ignore[arg-type]
                folder = self._folder(path)
                folder.safe = dict(folder.names)
                return
            file = self._folder(path.parent).names.setdefault(path.name, File())
            assert isinstance(file, File)
            file.data = path.read_bytes()
            if name == "_fsync":
                file.safe = file.data
            return
        path = Path(arguments[0])  # type: ignore[arg-type]
        names = self._folder(path.parent).names
        if name == "_rename":
            to = Path(arguments[1])  # type: ignore[arg-type]
            self._folder(to.parent).names[to.name] = names.pop(path.name)
        elif name == "_mkdir":
            names[path.name] = Folder()
        else:
            del names[path.name]

    def _folder(self, path: Path) -> Folder:
        node: File | Folder = self.top
        for part in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node


def _read(path: Path) -> Folder:
    """A folder as it is on the real disk, all of it safe."""
    names: dict[str, File | Folder] = {}
    for inside in path.iterdir():
        if inside.name.endswith(".lock"):
            continue
        content = b"" if inside.is_dir() else inside.read_bytes()
        names[inside.name] = _read(inside) if inside.is_dir() else File(content, content)
    return Folder(names, dict(names))


def restore(tree: Tree, root: Path) -> None:
    """Make a tree on the real disk."""
    root.mkdir()
    for name in sorted(tree):
        content = tree[name]
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
