"""The paper's figures from the user's own runs: one function per figure, table -> chart.

A chart is one Altair definition. `png` and `svg` draw it for a paper, without a browser; `page` gives the same
definition for the report, where colours are the page's CSS variables (light, dark and print need no redrawing) and the
width is the page's. Nothing here reads a file, opens a window or keeps state.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from holdfast.errors import DataError
from holdfast.laws import Fit, Laws
from holdfast.legends import CAUTION, LIGHT, by_series, isolated, isolating, ranked, series_title
from holdfast.stats import Estimate, rounded

LEVEL = 0.9
"""Two-sided level of every band drawn here."""

LABELS = {
    "target_nll": "Target loss",
    "kl_base_tuned": "Forgetting, KL(base || tuned)",
    "hard_cross_entropy": "Hard forgetting loss",
}
"""What each quantity that can be drawn is called on an axis."""

Chart = alt.LayerChart
"""What every figure is."""

UNIT = "nats per token"
CURVE_POINTS = 80
WIDTH, HEIGHT = 640, 340
TICKS = 6
FONT = "system-ui, Helvetica, Arial, sans-serif"


def loss_against_forgetting(points: pd.DataFrame, laws: Laws | None, quantity: str = "kl_base_tuned") -> Chart:
    """Forgetting against target loss, a mark per measurement, with the fitted line: the paper's Figure 2.

    Nats per token on both axes: learning runs to the left, forgetting upwards. The finding to look for is that all
    ranks share one line. The band is the line's 90 % interval, clustered by run, over the fitted range only. `points`
    are those of `laws.points`; where a column `in_fit` says False, the mark is hollow. Colours and shapes tell
    ranks apart, or what a column `series` holds; clicking one in the legend isolates it.

    Source: Kalajdzievski 2024, arXiv 2401.05605, figure 2.

    Raises:
        DataError: `points` is empty or lacks a column.
    """
    marks = _marks(points, x=alt.X("target_nll:Q", title=_axis("target_nll"), scale=_SPREAD), quantity=quantity)
    fit = None if laws is None else laws.lines.get(quantity)
    if fit is None:
        return styled([marks], title=f"{LABELS[quantity]} against target loss")
    grid = np.linspace(*fit.domain["target_nll"], CURVE_POINTS)
    curve = _curve(fit, {"target_nll": grid}, quantity=quantity)
    drawn, x = inline(curve.to_dict("records")), alt.X("target_nll:Q")
    band = drawn.mark_area(color=LIGHT["ink"], opacity=0.13).encode(x, alt.Y("low:Q"), alt.Y2("high"))
    line = drawn.mark_line(color=LIGHT["ink"], strokeWidth=1.6).encode(x, alt.Y(f"{quantity}:Q"))
    slope = fit.parameters["slope"]
    price = f"Each nat of target loss gained goes with {rounded(slope.value, slope.stderr)} nats of forgetting"
    return styled([*_if_known(band, curve), line, marks], title=price)


def trajectories(points: pd.DataFrame, laws: Laws | None, quantity: str = "kl_base_tuned") -> Chart:
    """A quantity along the steps of every run, with a fitted curve per rank: the paper's Figure 3.

    Nats per token against update steps. The curves are the joint law in trainable parameters and steps, for its own
    runs and over the fitted steps only, each in its 90 % band, clustered by run. Marks as in `loss_against_forgetting`.

    Source: Kalajdzievski 2024, arXiv 2401.05605, figure 3.

    Raises:
        DataError: `points` is empty or lacks a column.
    """
    along = alt.X("steps:Q", title="Update steps", scale=alt.Scale(zero=True, nice=TICKS))
    marks = _marks(points, x=along, quantity=quantity)
    fit = None if laws is None else laws.joint.get(quantity)
    title = f"{LABELS[quantity]} along training"
    if fit is None:
        return styled([marks], title=title)
    steps = np.linspace(*fit.domain["steps"], CURVE_POINTS)
    points = ranked(points)
    own = points[points["in_fit"]] if "in_fit" in points else points
    curves = [
        _curve(fit, {"trainable_params": np.full_like(steps, params), "steps": steps}, quantity=quantity).assign(
            series=name
        )
        for name, params in sorted(set(zip(own["series"], own["trainable_params"], strict=True)))
    ]
    curve = pd.concat(curves)
    # A wide interval would flatten the marks, so a band is cut where the measurements end, with some room.
    lowest, highest = points[quantity].min(), points[quantity].max()
    room = 0.2 * (highest - lowest)
    curve[["low", "high"]] = curve[["low", "high"]].clip(max(lowest - room, 0.0), highest + room)
    fitted = inline(curve.to_dict("records"))
    x, y, (stroke, fill, _) = alt.X("steps:Q"), alt.Y(f"{quantity}:Q"), by_series(points["series"])
    band = fitted.mark_area().encode(
        x, alt.Y("low:Q"), alt.Y2("high"), fill, alt.Detail("trainable_params:N"), opacity=isolated(0.14, 0)
    )
    lines = fitted.mark_line(strokeWidth=1.6).encode(
        x, y, stroke, alt.Detail("trainable_params:N"), opacity=isolated(1, 0.15)
    )
    return styled([*_if_known(band, curve), lines, marks], title=title)


def specification(chart: Chart) -> dict[str, Any]:
    """The chart as a Vega-Lite specification: plain data, safe to encode as JSON."""
    with alt.theme.enable("none"):
        spec: dict[str, Any] = chart.to_dict(validate=False)  # Altair checked each part as it was made.
    return spec


def page(chart: Chart) -> dict[str, Any]:
    """The chart's specification for the report: as wide as its place, coloured by CSS variables, without its title.

    The page sets the title as text, where it wraps. Data are left as they are.
    """
    variables = {colour: f"var(--{name})" for name, colour in (LIGHT | {"caution": CAUTION}).items()}
    spec = {
        key: part if key == "datasets" else _replaced(part, variables)
        for key, part in specification(chart).items()
        if key != "title"
    }
    return {**spec, "width": "container", "background": "transparent"}


def title(chart: Chart) -> str:
    """What the chart shows, in words."""
    return str(chart.title)


def png(chart: Chart, *, scale: float = 2.0) -> bytes:
    """The chart as a PNG on white, `scale` pixels per point."""
    return bytes(
        vl_convert.vegalite_to_png(json.dumps(specification(chart)), vl_version=vega_lite_version(), scale=scale)
    )


def svg(chart: Chart) -> str:
    """The chart as an SVG document on white."""
    return str(vl_convert.vegalite_to_svg(json.dumps(specification(chart)), vl_version=vega_lite_version()))


def still(chart: Chart) -> str:
    """The chart as an SVG element for the report, in the page's colours, for as long as no script draws it."""
    spec = {**page(chart), "width": WIDTH}
    return compact(str(vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=vega_lite_version())))


_PLACE = r'transform="[^"]*"(?: [dxy]2?="[^"]*")*'
_ALIKE = re.compile(rf'<(path|line) {_PLACE}((?: [\w-]+="[^"]*")+)/>(?:<\1 {_PLACE}\2/>)+')
"""Marks one after another that differ in their places alone."""


def compact(svg: str) -> str:
    """The same drawing in fewer bytes: places to a tenth of a point, and what marks in a row share said once."""

    def once(row: re.Match[str]) -> str:
        if row[1] == "path" and " opacity=" in row[2]:  # of a group it would be another thing
            return row[0]
        places = "".join(f"<{row[1]} {place}/>" for place in re.findall(_PLACE, row[0]))
        return f"<g{row[2].replace(' opacity=', ' stroke-opacity=')}>{places}</g>"

    rounded_places = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.1f}", svg.replace(' opacity="1"', ""))
    return _ALIKE.sub(once, rounded_places)


def vega_lite_version() -> str:
    """The Vega-Lite of the definitions, so that every drawing is by the same library."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


_SPREAD = alt.Scale(zero=False, nice=TICKS)


def _marks(points: pd.DataFrame, *, x: alt.X, quantity: str) -> alt.Chart:
    """The measurements, and the legend that isolates a rank or method."""
    needed = (
        "run",
        "r",
        "steps",
        "trainable_params",
        "target_nll",
        "target_nll_stderr",
        quantity,
        f"{quantity}_stderr",
    )
    missing = [column for column in needed if column not in points.columns]
    if missing or points.empty:
        raise DataError(
            f"got {len(points)} points lacking columns {missing}, expected those of laws.points, at a figure"
        )
    points = ranked(points)
    stroke, fill, shape = by_series(points["series"])
    measured = list(dict.fromkeys(["target_nll", quantity]))
    values = [_measurement(row, measured) for row in points.sort_values(["r", "run", "steps"]).to_dict("records")]
    return isolating(
        inline(values)
        .mark_point(size=44, strokeWidth=1.3, aria=False)
        .encode(
            *(x, alt.Y(f"{quantity}:Q", title=_axis(quantity), scale=_SPREAD), stroke, fill, shape),
            fillOpacity=alt.condition("datum.in_fit", alt.value(0.85), alt.value(0)),
            opacity=isolated(1, 0.1),
            tooltip=[
                alt.Tooltip("run:N", title="Run"),
                alt.Tooltip("series:N", title=series_title(points["series"])),
                alt.Tooltip("steps:Q", title="Step"),
                *(alt.Tooltip(f"{name}_text:N", title=LABELS[name]) for name in measured),
            ],
        )
    )


def _measurement(row: Mapping[Any, Any], quantities: Iterable[str]) -> dict[str, Any]:
    """What one mark holds: its place, and each quantity as the tooltip says it, with its error.

    With the number of documents, in a column `<quantity>_documents`, that is a 95 % interval too.
    """
    held = {"run": row["run"], "series": row["series"], "steps": row["steps"], "in_fit": row.get("in_fit", True)}
    for name in quantities:
        value, error = row[name], row[f"{name}_stderr"]
        estimate = Estimate(value=value, stderr=error, n=int(row.get(f"{name}_documents", 0)))
        low, high = estimate.interval()
        ends = f" ({rounded(low, error)} to {rounded(high, error)})" if math.isfinite(low) else ""
        held |= {name: value, f"{name}_text": f"{rounded(value, error)} ± {rounded(error, error)}{ends}"}
    return held


def _curve(fit: Fit, inputs: dict[str, np.ndarray], *, quantity: str) -> pd.DataFrame:
    """A law and its interval along some inputs, of a loss or a KL, which are never below 0."""
    prediction = fit.predict(**inputs)
    low, high = prediction.interval(LEVEL)
    drawn = {quantity: prediction.mean, "low": low, "high": high}
    return pd.DataFrame({**inputs, **{name: np.maximum(values, 0.0) for name, values in drawn.items()}})


def _if_known(band: alt.Chart, curve: pd.DataFrame) -> list[alt.Chart]:
    """The band, unless too few runs leave the curve without an interval."""
    return [band] if np.isfinite(curve[["low", "high"]]).all(axis=None) else []


def inline(values: Sequence[Mapping[Any, Any]]) -> alt.Chart:
    """A chart without marks yet, of values written out; a number that is not finite becomes absent, so not drawn."""
    return alt.Chart(alt.InlineData([{name: _plain(value) for name, value in row.items()} for row in values]))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _axis(quantity: str) -> str:
    return f"{LABELS[quantity]} ({UNIT})"


def styled(layers: Sequence[alt.Chart], *, title: str, height: int = HEIGHT) -> Chart:
    """Layers as one figure that looks like all others."""
    text = {
        "labelColor": LIGHT["muted"], "titleColor": LIGHT["muted"], "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal",
    }  # fmt: skip
    axis = {"domain": False, "ticks": False, "tickCount": TICKS, "gridColor": LIGHT["rule"]}
    axis |= {"labelFlush": False, "labelOverlap": "greedy", "labelSeparation": 4}
    legend = {"orient": "top", "direction": "horizontal", "titleOrient": "left", "offset": 8}
    symbols = {"symbolOpacity": 1, "symbolStrokeWidth": 1.3, "symbolSize": 60}
    config = {
        "font": FONT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "view": {"stroke": None},
        "axis": text | axis | {"titlePadding": 10, "labelPadding": 6},
        "legend": text | legend | symbols,
        "title": {"color": LIGHT["ink"], "fontSize": 14, "fontWeight": 600, "anchor": "start", "offset": 12},
    }
    return Chart(layer=list(layers), width=WIDTH, height=height, title=title, background="white", config=config)


def _replaced(part: Any, names: Mapping[str, str]) -> Any:
    """The same specification with each whole string that is a key replaced by its value."""
    if isinstance(part, dict):
        return {key: _replaced(item, names) for key, item in part.items()}
    if isinstance(part, list):
        return [_replaced(item, names) for item in part]
    return names.get(part, part) if isinstance(part, str) else part
