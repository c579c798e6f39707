"""The values of a grid's axis: a list of them, or so many in equal ratios, `{from: 8, to: 256, points: 6}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.mistakes import Key, Mistakes, show

KEYS = ("from", "to", "points")
MOST = 1000
"""Points of one series."""


def axis(written: object, key: Key, mistakes: Mistakes) -> list[Any]:
    """The values of an axis, from a list of them or a series; empty where it cannot be used, which is noted."""
    values = written
    if isinstance(written, dict) and not set(KEYS).isdisjoint(written):
        values = series(written, key, mistakes)
    elif not isinstance(written, list) or not written:
        example = "{from: 8, to: 64, points: 4}"
        mistakes.add(key, got=show(written), expected=f"a list of at least one value, or {example}")
    if isinstance(values, list) and values:
        return values
    mistakes.refused.add(key)
    return []


def series(given: Mapping[str, Any], key: Key, mistakes: Mistakes) -> list[Any]:
    """`points` values from `from` to `to`, both of them included, each the same ratio from the one before.

    Between whole ends they are rounded to whole numbers, else to twelve digits, for a run's name must not hang on the
    last bit of a power. Empty where there are mistakes, each noted at its key.
    """
    first, last, points = (given.get(name) for name in KEYS)
    wrong = [(name, "an unknown key", f"one of {', '.join(KEYS)}") for name in given if name not in KEYS]
    wrong += [(name, show(given.get(name)), "a number above 0") for name in KEYS[:2] if not _number(given.get(name))]
    if isinstance(points, bool) or not isinstance(points, int) or not 2 <= points <= MOST:
        wrong.append(("points", show(points), f"a whole number from 2 to {MOST:,}"))
    for name, got, expected in wrong:
        mistakes.add((*key, name), got=got, expected=expected)
    if wrong or first is None or last is None or points is None:
        return []
    whole = isinstance(first, int) and isinstance(last, int)
    inner = (first * (last / first) ** (k / (points - 1)) for k in range(1, points - 1))
    values = [first, *(round(value) if whole else float(f"{value:.12g}") for value in inner), last]
    if len(set(values)) < points:
        alike = f"{points} points from {show(first)} to {show(last)}"
        mistakes.add((*key, "points"), got=alike, expected="so few that they differ once rounded")
        return []
    return values


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e9
