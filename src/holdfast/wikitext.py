"""WikiText's articles: where one begins among the lines of the file, or the rows of the hub set.

Source: Merity et al. 2016, arXiv 1609.07843; both of its test sets are the same 60 articles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAME = "wikitext"
HUB = "Salesforce/wikitext:wikitext-103-raw-v1@test"
"""What `wikitext` alone means: the set that the paper on forgetting measures on (arXiv 2401.05605)."""

SUFFIXES = (".raw", ".tokens")
EMPTY_LINE = " \n"
"""The original file's empty line; the hub set has it as a row without text."""

_TITLE = re.compile(r" ?= (?!=).*[^\s=] =\s*")  # and not a section's " = = Career = = "


def articles(lines: Sequence[str]) -> list[tuple[int, str]]:
    """(number of its first line, text) of each article; the texts joined are the lines joined, but for a blank start.

    An article starts at a title between empty lines. A formula torn into lines gives some that look like a title and
    are none: ` = 1 henry and capacitance C = `. In a copy whose empty lines were squeezed out they are told by the
    sentence that runs through them: it has no end before and no capital after. Text before the first title is an
    article without one. Without any title the result is empty.
    """
    filled = [number for number, line in enumerate(lines) if line.strip()]
    squeezed = bool(filled) and len(filled) == filled[-1] - filled[0] + 1
    starts = [number for number in filled if _TITLE.fullmatch(lines[number]) and _stands(lines, number, squeezed)]
    if not starts:
        return []
    if filled[0] < starts[0]:
        starts.insert(0, filled[0])
    ends = [*starts[1:], len(lines)]
    return [(start + 1, "".join(lines[start:end])) for start, end in zip(starts, ends, strict=True)]


def _stands(lines: Sequence[str], number: int, squeezed: bool) -> bool:
    """Whether a line that looks like a title stands by itself, and not inside a sentence."""
    before = lines[number - 1].strip() if number else ""
    after = lines[number + 1].strip() if number + 1 < len(lines) else ""
    if not squeezed:
        return not before and not after
    inside_before = before[-1:].isalnum()
    inside_after = after[:1].isdigit() or after[:1].islower()
    return not (inside_before and inside_after)
