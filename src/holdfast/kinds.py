"""Which kind of token each token of a text is, from the text and the tokenizer's character offsets alone.

`KINDS` of `evidence` names the kinds; words are all `rarer word` here, the report finds the common ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int8

from holdfast.evidence import KINDS

NUMBER, NAME, PUNCTUATION, WORD, MARK = (
    KINDS.index(kind) for kind in ("number", "name", "punctuation", "rarer word", "mark")
)

# A full stop after one of these, or after a single letter that is not the word I, ends no sentence.
_SHORT = [
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "Prof",
    "St",
    "Sr",
    "Jr",
    "Gen",
    "Col",
    "Lt",
    "Sgt",
    "Capt",
    "Maj",
    "Rev",
    "Hon",
    "Gov",
    "Sen",
    "Rep",
    "Mt",
    "Ft",
    "No",
    "Vol",
    "Fig",
    "vs",
]
_NOT_SHORT = "".join(rf"(?<!\b{word}\.)" for word in (*_SHORT, "[A-HJ-Za-z]"))
_ENDS = re.compile(
    r"[\n\r\u2028\u2029。！？]"  # every line is a sentence of its own: headings, lists, verse
    rf"|[.!?…](?:(?<!\.)|[.!?…]+|{_NOT_SHORT})['\"”’)\]»]*(?=\s)"
    r"|:(?=\s)|,\s+[\"“‘«„]"  # Question: What …; and he said, "The …
)


def token_kinds(text: str, spans: Int[np.ndarray, "t 2"]) -> Int8[np.ndarray, " t"]:
    """The kind of each token, an index into `KINDS`; `spans[t]` are the characters of the text that token t covers.

    The first that holds: `mark`, the span is empty; `number`, it has a digit or another numeral; `name`, it has a
    letter of a name; `punctuation`, it has no letter, spaces and line breaks included; else a word. The pieces of a
    character cut into bytes share its span and its kind.

    A name is a run of letters and digits that begins with a capital and is not the first of its sentence; a hyphen or
    an apostrophe ends a run, so `'s` is no name. The English word I is none, and in a sentence without any small
    letter (a shout, a heading) capitals say nothing. A sentence ends at a line break or at `.`, `!`, `?` or `:` before
    a space, but not after an initial or a title such as Dr, and begins anew with a quotation after a comma. So a name
    that opens a sentence counts as a word, every noun of German as a name, and a script without capitals has no names.
    """
    letter, digit, capital, small = _characters(text)
    starts, ends = np.clip(np.asarray(spans, dtype=np.int64).reshape(-1, 2), 0, len(text)).T
    kind = np.full(len(starts), WORD, dtype=np.int8)
    kind[~_any_within(letter, starts, ends)] = PUNCTUATION
    kind[_any_within(_names(text, letter | digit, capital, small), starts, ends)] = NAME
    kind[_any_within(digit, starts, ends)] = NUMBER
    kind[ends <= starts] = MARK
    return kind


def without_template(
    text: str, spans: Int[np.ndarray, "t 2"], written: Sequence[tuple[int, int]]
) -> tuple[str, Int[np.ndarray, "t 2"]]:
    """A rendered conversation as `token_kinds` is to see it: what lies outside the written ranges is the template's.

    Its characters become line breaks, so that each message begins a sentence, and tokens wholly of it get empty spans.
    """
    inside = np.zeros(len(text), dtype=bool)
    for low, high in written:
        inside[low:high] = True
    shown = np.array(list(text)) if text else np.zeros(0, dtype="<U1")
    starts, ends = np.clip(spans, 0, len(text)).T
    kept = _any_within(inside, starts, ends)
    return "".join(np.where(inside, shown, "\n")), np.where(kept[:, None], spans, 0)


def _characters(text: str) -> tuple[Bool[np.ndarray, " n"], ...]:
    """Which characters are letters (marks on them included), numerals, capitals and small letters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    distinct, which = np.unique(codes, return_inverse=True)
    categories = [unicodedata.category(chr(code)) for code in distinct]
    return tuple(
        np.array([category in wanted or category[0] in wanted for category in categories], dtype=bool)[which]
        for wanted in ({"L", "M"}, {"N"}, {"Lu", "Lt"}, {"Ll"})
    )


def _any_within(
    mask: Bool[np.ndarray, " n"], starts: Int[np.ndarray, " t"], ends: Int[np.ndarray, " t"]
) -> Bool[np.ndarray, " t"]:
    """Whether the mask holds anywhere in each span."""
    before = np.concatenate([[0], np.cumsum(mask)])
    return np.asarray(before[ends] > before[starts])


def _names(
    text: str, word: Bool[np.ndarray, " n"], capital: Bool[np.ndarray, " n"], small: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which characters belong to a name."""
    borders = np.flatnonzero(np.diff(word, prepend=False, append=False))
    first, last = borders[::2], borders[1::2]  # of each run of letters and digits, the last one excluded
    sentences = np.array([0, *(match.end() for match in _ENDS.finditer(text))])
    opening = np.zeros(len(first) + 1, dtype=bool)
    opening[np.searchsorted(first, sentences)] = True  # the first run at or after where a sentence starts
    spoken = _any_within(small, sentences, np.append(sentences[1:], len(text)))
    sentence = np.searchsorted(sentences, first, side="right") - 1
    pronoun = np.array([text[start] == "I" for start in first], dtype=bool) & (last - first == 1)
    name = capital[first] & ~opening[:-1] & spoken[sentence] & ~pronoun
    depth = np.zeros(len(text) + 1, dtype=np.int64)
    depth[first[name]] += 1
    depth[last[name]] -= 1
    return np.asarray(np.cumsum(depth[:-1]) > 0)
