"""YAML written by hand, read as plain data with the line of every value, and all its mistakes gathered into one.

Knows nothing of studies: `config` says what a value should have been.
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from holdfast.errors import ConfigError, ResourceError

MAX_BYTES = 100_000
"""Longest file read; no person writes a longer one."""
MAX_DEPTH = 32
"""Most levels of nesting read."""

Key = tuple[str | int, ...]
"""Where a value is in its file: names of keys, numbers of list items."""


class Place(NamedTuple):
    """Where a value was written."""

    line: int
    """By which mistakes are sorted."""
    text: str
    """What is printed: file:line, or the option that set it."""


def clip(text: str) -> str:
    """Text that fits a line of an error and cannot rewrite the terminal."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:79] + "…"


def clip_path(path: str) -> str:
    """The same for a place on disk, which is known by its end."""
    shown = path if path.isprintable() else repr(path)[1:-1]
    return shown if len(shown) <= 300 else "…" + shown[-299:]


def show(value: object) -> str:
    """A value as its writer would recognise it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print the longest
        return "a huge number"
    return clip(repr(value) if isinstance(value, str | list) else str(value))


def alike(word: str, candidates: Sequence[str]) -> str:
    """The hint at the end of a mistake: the candidate spelled most like a word, if any is."""
    close = difflib.get_close_matches(word.lower(), candidates, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file.

    Raises:
        ConfigError: there is no such file, or it is a folder, too long or not UTF-8.
        ResourceError: the system does not let us read it.
    """
    name = clip_path(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{name}: got no such file, expected a YAML file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{name}: got a folder, expected a YAML file") from error
    except OSError as error:
        raise ResourceError(f"{name}: got {error.strerror}, expected a file that can be read") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: got more than {MAX_BYTES:,} bytes, expected a YAML file written by hand")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: got the byte 0x{data[error.start]:02x}, expected UTF-8") from error


class _Loader(yaml.SafeLoader):
    """What `yaml.safe_load` reads, with `1e-3` and `-.5` numbers; aliases and deep nesting, bombs both, are refused."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias", problem_mark=mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$|[-+]\.[0-9][0-9_]*$"),
    list("-+.0123456789"),
)


@dataclass(kw_only=True)
class Mistakes:
    """Where each value was written and every mistake so far; mutable, because one reading finds many."""

    source: str
    """The file's name, as printed."""
    places: dict[Key, Place] = field(default_factory=dict)
    """The place of each value; a key of a mapping stands for its value."""
    lines: dict[str, int] = field(default_factory=dict)
    """Each mistake once, and its line."""
    refused: set[Key] = field(default_factory=set)
    """Values that could not be read at all: nothing more is said about them."""

    def at_line(self, line: int) -> Place:
        """The place of a line of the file, the first being 0."""
        return Place(line + 1, f"{self.source}:{line + 1}")

    def add(self, key: Key, *, got: str, expected: str, place: Place | None = None) -> None:
        """Note a mistake at the place of a key, or of the nearest thing around it that was written."""
        around = [key[:n] for n in range(len(key), -1, -1)]
        if place is None:
            if not self.refused.isdisjoint(around):
                return
            place = next((self.places[part] for part in around if part in self.places), self.at_line(0))
        name = ".".join(clip(part) for part in key if isinstance(part, str))
        where = f"{place.text}: {name}" if name else place.text
        self.lines.setdefault(f"{where}: got {got}, expected {expected}", place.line)

    def forget(self, key: Key) -> None:
        """Drop the places of what was written at a key and below, which something else replaces."""
        self.places = {old: place for old, place in self.places.items() if old[: len(key)] != key}

    def error(self) -> ConfigError:
        """All mistakes, in the order of their lines."""
        return ConfigError("\n".join(sorted(self.lines, key=self.lines.__getitem__)))

    def parse(self, text: str, key: Key, place: Callable[[int], Place]) -> Any:
        """The value that YAML text holds, None where it cannot be read; places and mistakes are noted under `key`."""
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            got, expected = f"the character {error.character:#06x}", "printable text"
        except yaml.MarkedYAMLError as error:
            # An unfinished quote or key is noticed further down; its context says where it began.
            begun = error.context_mark if error.context and "scanning" in error.context else None
            mark = begun or error.problem_mark
            line = mark.line if mark else 0
            row = [*re.split("\r\n|[\n\r\x85\u2028\u2029]", text), ""][line]  # what YAML counts as lines
            if "\t" in row[: len(row) - len(row.lstrip())]:
                got, expected = "a tab in the indentation", "spaces"
            else:
                got, expected = f"broken YAML ({clip(str(error.problem))})", "plain 'key: value' lines"
        else:
            return None if node is None else self._data(loader, node, key, place)
        self.add(key, got=got, expected=expected, place=place(line))
        self.refused.add(key)
        return None

    def _data(self, loader: _Loader, node: yaml.Node, key: Key, place: Callable[[int], Place]) -> Any:
        here = self.places.setdefault(key, place(node.start_mark.line))
        bare = isinstance(node, yaml.ScalarNode) and node.style is None
        implied: str = loader.resolve(type(node), node.value, (bare, True))  # type: ignore[no-untyped-call]
        if node.tag != implied:
            got, expected = f"the tag {clip(node.tag.replace('tag:yaml.org,2002:', '!!'))}", "a plain value"
        elif isinstance(node, yaml.SequenceNode):
            return [self._data(loader, item, (*key, i), place) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            return self._mapping(loader, node, key, place)
        elif implied.endswith((":int", ":float")) and re.match(r"[-+]?0[0-9_]+$|.*:", node.value):
            # YAML 1.1 reads 010 as 8 and 1:30 as 90: never what was meant.
            got, expected = node.value, "a decimal number"
        else:
            try:
                return loader.construct_object(node)
            except (ValueError, OverflowError, yaml.YAMLError):  # 2024-13-45, 0b_, a lone =
                got, expected = clip(node.value), "a value that YAML can read; quote text"
        self.add(key, got=got, expected=expected, place=here)
        self.refused.add(key)
        return None

    def _mapping(
        self, loader: _Loader, node: yaml.MappingNode, key: Key, place: Callable[[int], Place]
    ) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for name, value in node.value:
            here = place(name.start_mark.line)
            if not isinstance(name, yaml.ScalarNode):
                self.add(key, got=f"a {name.id} as a key", expected="a name", place=here)
            elif name.value in mapping:
                first = self.places[*key, name.value].text
                self.add((*key, name.value), got=f"the key again after {first}", expected="it once", place=here)
            else:
                self.places[*key, name.value] = here
                mapping[name.value] = self._data(loader, value, (*key, name.value), place)
        return mapping
