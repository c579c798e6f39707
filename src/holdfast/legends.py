"""What tells the runs of a study apart in its figures: colours, shapes, legends, and what is picked in them."""

import functools
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import pandas as pd

LEGEND = 290
"""Width of a legend that a phone shows whole, points."""

# Ranks take the plasma map, cut so that each colour keeps 3:1 contrast with its background: dark to light on paper,
# dim to bright on a dark screen, and the same order of hues in both. Shapes say the rank again without colour.
LIGHT = {
    "ink": "#1a211f",
    "muted": "#5b6663",
    "rule": "#d9dedb",
    "rank-0": "#360598",
    "rank-1": "#5502a4",
    "rank-2": "#7201a8",
    "rank-3": "#8e0ba5",
    "rank-4": "#a72198",
    "rank-5": "#bc3686",
    "rank-6": "#ce4b76",
    "rank-7": "#de6065",
}
"""Colours of a chart on white, by name; `page` writes the name as a CSS variable instead."""

DARK = {
    "ink": "#e4e9e6",
    "muted": "#98a49f",
    "rule": "#333b38",
    "rank-0": "#c6417d",
    "rank-1": "#d5536f",
    "rank-2": "#e26561",
    "rank-3": "#ed7854",
    "rank-4": "#f58c46",
    "rank-5": "#fba139",
    "rank-6": "#fdb92c",
    "rank-7": "#fbd225",
}
"""The same names on a dark page."""

CAUTION = "#8a4b08"
"""Of what must not be passed; named `caution` by the page, which has its dark form."""

RANK_COLOURS = sum(name.startswith("rank-") for name in LIGHT)
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")

_ISOLATE = alt.selection_point(name="series", fields=["series"], bind="legend")
"""A rank or method clicked in a legend; the page sets it too, for all figures at once."""


def isolated(shown: float, faded: float) -> Any:
    """The opacity of the series that was picked, and of all others; all are shown while none is."""
    return alone([_ISOLATE], shown, faded)


def alone(picks: Sequence[Any], shown: float, faded: float = 0.1) -> Any:
    """The opacity of what each of some selections has picked, and of all else; what picks nothing fades nothing."""
    if not picks:
        return alt.value(shown)
    return alt.condition(functools.reduce(operator.and_, picks), alt.value(shown), alt.value(faded))


def isolating(marks: alt.Chart) -> alt.Chart:
    """Marks whose legend picks a rank or method; a figure has them once."""
    picking: alt.Chart = marks.add_params(_ISOLATE)
    return picking


def by_series(names: pd.Series) -> tuple[alt.Stroke, alt.Fill, alt.Shape]:
    """What tells the values of a field `series` apart, twice by colour and once without.

    Each category of `names` has its own, whether it occurs or not, so that figures of one study agree.
    """
    order, title = list(names.cat.categories), series_title(names)
    legend = alt.Legend(values=seen(names), labelLimit=LEGEND, **_wrapped(seen(names)))
    return (
        alt.Stroke("series:N", title=title, scale=colours(order), legend=legend),
        alt.Fill("series:N", title=title, scale=colours(order), legend=legend),
        alt.Shape("series:N", title=title, scale=shapes(order), legend=legend),
    )


def categories(names: Iterable[str]) -> pd.CategoricalDtype:
    """Ranks by size, then methods by name, their numbers by size."""
    numbers = {name: re.sub(r"\d+", lambda found: found[0].zfill(9), name) for name in set(names)}
    return pd.CategoricalDtype(sorted(numbers, key=lambda name: (not name.isdecimal(), numbers[name])), ordered=True)


def seen(names: pd.Series) -> list[str]:
    """The categories that occur, in their order."""
    return list(names.cat.remove_unused_categories().cat.categories)


def _wrapped(names: Sequence[str]) -> dict[str, Any]:
    """A legend below its title, in as many columns as a phone has room for; on the title's line where all have room."""
    widths = [24 + 6.5 * len(name) for name in names]
    room = (
        columns
        for columns in range(len(names), 1, -1)
        if sum(max(widths[i::columns]) for i in range(columns)) <= LEGEND
    )
    columns = next(room, 1)
    return {} if columns >= len(names) else {"columns": columns, "titleOrient": "top"}


def series_title(names: pd.Series) -> str:
    """What the names are."""
    return "Rank" if all(name.isdecimal() for name in seen(names)) else "Rank or method"


def ranked(points: pd.DataFrame) -> pd.DataFrame:
    """With a column `series` of the ranks, where there is none."""
    if "series" in points:
        return points
    ranks = points["r"].astype(int).astype(str)
    return points.assign(series=ranks.astype(categories(ranks)))


def colours(domain: Sequence[str]) -> alt.Scale:
    """These spread evenly over the colours, so that two differ as much as they can."""
    last = max(len(domain) - 1, 1)
    names = [f"rank-{round(i * (RANK_COLOURS - 1) / last)}" for i in range(len(domain))]
    return alt.Scale(domain=list(domain), range=[LIGHT[name] for name in names])


def shapes(domain: Sequence[str]) -> alt.Scale:
    """A shape for each, which says again without colour what the colour says."""
    return alt.Scale(domain=list(domain), range=[SHAPES[i % len(SHAPES)] for i in range(len(domain))])
