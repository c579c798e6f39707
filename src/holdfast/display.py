"""How things are said to people: text from strangers made safe, so that no character of it acts unseen; times."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows."""


def visible(value: Any) -> Any:
    """Text in which each character that would reorder, break, colour or end text is shown by its number instead.

    So is what Unicode promises never to be a character: a drawing that holds U+FFFE is no XML, and ends who draws it.

    A right-to-left override in a file's name can turn the digits of the sentence that quotes it; an escape sequence can
    move a terminal's cursor and write over what stood there. Anything but text, and markup of ours (an object with
    `__html__`), is given back as it is.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(f"\\u{ord(c):04x}" if _acts_unseen(c) else c for c in value)


def _acts_unseen(character: str) -> bool:
    if character in "\n\t":
        return False
    number = ord(character)
    never = number & 0xFFFE == 0xFFFE or 0xFDD0 <= number <= 0xFDEF
    return never or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in BIDI_CONTROLS


def html_table(columns: Sequence[object], rows: Iterable[Sequence[object]], notes: Iterable[object] = ()) -> str:
    """A table and what is to be noted of it, for a notebook; all of it is text and stays text."""

    def said(cell: object) -> str:
        return html.escape(str(visible(str(cell))))

    head = "".join(f"<th>{said(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{said(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    listed = "".join(f"<li>{said(note)}</li>" for note in notes)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"{table}<ul>{listed}</ul>" if listed else table


def duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each path where it says the step, else two, and as many as tell all of them apart."""
    parts = {name: name.rstrip("/").split("/") for name in names}
    least = {name: 1 if path[-1].startswith("checkpoint-") else 2 for name, path in parts.items()}
    for more in range(max(map(len, parts.values()), default=0)):
        short = {name: "/".join(path[-least[name] - more :]) for name, path in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {name: name for name in names}
