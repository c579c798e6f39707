"""Rows of data sets, in files and on the hub, each with its place; what their columns mean is `corpora`'s."""

from __future__ import annotations

import errno
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
import pyarrow.parquet

from holdfast import wikitext
from holdfast.errors import DataError, ResourceError, first_line
from holdfast.mistakes import show

Rows: TypeAlias = Iterator[tuple[str, Mapping[str, Any]]]
"""(place, row): a file and line, or a data set and row."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".txt", *wikitext.SUFFIXES)
"""What is read of a folder. A file named by itself, with any other ending, is JSON lines."""

_NO_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # None: a library's own, of the content


def folder_rows(folder: Path) -> Rows:
    """The rows of every file in a folder and below, in the order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(SUFFIXES) and not path.is_dir():
            yield from file_rows(path)


def file_rows(path: Path) -> Rows:
    """The rows of a file.

    Raises:
        DataError: it is not of the kind that its name says, naming the line.
        ResourceError: the system does not let us read it.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"got no ordinary file, expected one, at {path}")
    try:
        if path.suffix == ".parquet":
            for index, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
                yield f"{path}, row {index}", row
            return
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"got bytes that are not UTF-8, expected UTF-8 text, at {path}:{bad}") from error
    except (OSError, EOFError, ValueError, zlib.error, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise ResourceError(f"got {error.strerror}, expected a file that can be read, at {path}") from error
        raise DataError(f"cannot be read: {first_line(error)}, at {path}") from error
    if path.suffix == ".txt":
        yield str(path), {"text": text}
    elif path.suffix in wikitext.SUFFIXES:
        yield from articles(io.StringIO(text, newline="\n"), f"{path}:")
    else:
        yield from _json_lines(text, path)


def _json_lines(text: str, path: Path) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"got broken JSON ({error}), expected one object a line, at {path}:{number}") from error
        if not isinstance(row, dict):
            raise DataError(f"got {show(row)}, expected an object on each line (JSON lines), at {path}:{number}")
        yield f"{path}:{number}", row


def articles(lines: Iterable[str], where: str) -> Rows:
    """The articles of WikiText; `where` and a line's number is the place of one.

    Raises:
        DataError: no titles.
    """
    found = wikitext.articles(list(lines))
    if not found:
        raise DataError(f"got no title such as ' = Title = ' between empty lines, expected WikiText, at {where}1")
    for number, text in found:
        yield f"{where}{number}", {"text": text}


def hub_rows(spec: str) -> Rows:
    """The rows of a hub data set, `org/name[:config][@split]`.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets  # half a second, and only here

    rest, _, split = spec.partition("@")
    name, _, config = rest.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises many kinds, its own and its network stack's
        raise DataError(f"data set {spec!r:.200} cannot be loaded: {first_line(error)}") from error
    for number, row in enumerate(rows, 1):
        yield f"{spec}, row {number}", row
