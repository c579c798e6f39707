"""What every page of ours is made of: one HTML file that needs nothing else, no network, no server, no other file.

A page is believed and passed on, and it shows text that models, data sets and strangers wrote. So every text is escaped
and kept apart from ours, and the page's own policy forbids any script but the one bundled here, any evaluation of text
as code, and any request.
"""

import base64
import functools
import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert

from holdfast import figures, legends
from holdfast.display import visible
from holdfast.stats import rounded

FIGURES_BYTES = 1_300_000
"""Of all figures together, definitions and still drawings: the first, then as many more as that leaves room for."""


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula."""


class Cell(NamedTuple):
    """A number or a few words, with what is said of it in small print."""

    value: str
    note: str = ""
    kind: str = "num"
    """Of the cell in the style sheet: num, name, text that stays on one line, words that wrap."""
    link: str = ""
    """The place on the page where it is said what this is."""
    run: str = ""
    """Of which the page's rows are shown when the link is followed."""


class Grid(NamedTuple):
    """A table; `label` is what a screen reader calls it."""

    label: str
    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


def render(
    template: str,
    *,
    style: str,
    title: str,
    drawings: Sequence[Mapping[str, Any]],
    commands: Sequence[str],
    provenance: Mapping[str, Any],
    content: Mapping[str, Any],
    reload_s: int | None = None,
) -> str:
    """A page of ours: a template that extends `page.html.j2`, given `content` under its own names.

    `style` is a template too; `drawings` are those of `figure_entries`. `commands` are what a reader types to make the
    page again; `provenance` is whatever says where the numbers come from, nested as it likes. With `reload_s` a browser
    reads the file again after so many seconds.

    The page makes no request and runs one script, which its content security policy names by its hash. The same
    arguments give the same page, byte for byte.
    """
    environment = _environment()
    styled = environment.get_template(style).render(light=_variables(legends.LIGHT), dark=_variables(legends.DARK))
    script = _script(draws=bool(drawings))
    common = {
        "title": title,
        "policy": _policy(style=styled, script=script),
        "style": styled,
        "script": script,
        "figures": drawings,
        "commands": commands,
        "provenance": list(_flat(provenance)),
        "reload_s": reload_s,
    }
    return environment.get_template(template).render(common | dict(content))


def figure_entries(charts: Mapping[str, figures.Chart], captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each chart as `parts.html.j2` draws it: its definition, and a still drawing that is there before any script."""
    defined = {
        name: _json(figures.page(chart) | {"description": figures.title(chart)}) for name, chart in charts.items()
    }
    room, drawn = FIGURES_BYTES - sum(map(len, defined.values())), dict[str, str]()
    for name, chart in charts.items():
        svg = figures.still(chart)
        if len(svg) <= room or not drawn:
            room, drawn[name] = room - len(svg), svg
    return [
        {
            "name": name,
            "title": figures.title(chart),
            "caption": unbroken(captions[name]),
            "specification": defined[name],
            "svg": drawn.get(name),
        }
        for name, chart in charts.items()
    ]


def rows_file(rows: pd.DataFrame) -> str:
    """The rows behind a page as a link to a compressed CSV file inside it, numbers at full precision.

    A spreadsheet takes a text that begins like a formula for one, so such a text gets an apostrophe before it.
    """
    safe = rows.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else visible(cell))
    packed = gzip.compress(safe.to_csv(index=False, lineterminator="\n").encode(), mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(packed).decode()}"


def unbroken(prose: str) -> str:
    """A sentence whose per cent signs stay with their numbers when a line ends."""
    return re.sub(r"(?<=\d) %", "\u00a0%", prose)


def heads(names: Iterable[str], *, texts: int) -> list[Cell]:
    """Column heads: the first `texts` of them stand over text, the rest over numbers."""
    return [Cell(name, kind="text" if i < texts else "num") for i, name in enumerate(names)]


def interval(low: Any, high: Any, error: Any) -> str:
    """Both ends with the digits their error deserves; `no interval` where there is none."""
    if not math.isfinite(float(error)):
        return "no interval"
    return f"{rounded(float(low), float(error))} to {rounded(float(high), float(error))}"


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("holdfast"), autoescape=True, finalize=visible, undefined=jinja2.StrictUndefined
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


@functools.cache
def _script(*, draws: bool) -> str:
    """The page's own lines, in one script with Vega, Vega-Lite and Vega-Embed where there is a figure to draw."""
    source = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    bundle = str(vl_convert.javascript_bundle(source, vl_version=figures.vega_lite_version())) if draws else source
    return bundle.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(*, style: str, script: str) -> str:
    """Nothing may load, nothing may run but what has these hashes."""
    return (
        f"default-src 'none'; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(content: Any) -> str:
    """JSON that can stand inside a script element: ASCII, and nothing that HTML reads as markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _flat(provenance: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as lines: the path to each, and its value."""
    for name, value in provenance.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path} / ")
        else:
            yield path, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
