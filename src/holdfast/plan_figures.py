"""Plans and forecasts, drawn: one function per figure. Colours, fonts and drawing are those of `figures`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from holdfast.choices import Choice
from holdfast.costs import Cost
from holdfast.display import visible
from holdfast.errors import DataError
from holdfast.figures import LABELS, LEVEL, TICKS, UNIT, Chart, inline, styled
from holdfast.legends import CAUTION, LIGHT, alone, by_series, categories, colours, isolated, isolating, shapes
from holdfast.planning import Plan
from holdfast.stats import Prediction, rounded

HELD_OUT = ("quantity", "split", "observed", "predicted", "low", "high", "run", "r", "steps")
"""Columns of what `held_out_figure` draws."""

FAR = 1.0
"""How many times the marks' own extent a budget may lie outside them and still be drawn."""

LINE = 18
"""Height of a line of text, points."""

ROOM = 0.5
"""How much of the marks' own extent an interval may reach beyond them before it is cut."""

_SPLIT = alt.selection_point(name="split", fields=["split"], bind="legend")

_SPREAD = alt.Scale(zero=False, nice=TICKS)


def frontier_figure(plan: Plan) -> Chart:
    """Forgetting against target loss of the choices that no other beats, with the recommended one ringed.

    Nats per token on both axes: learning runs to the left, forgetting upwards. A colour and shape per rank, which the
    legend isolates; the rules through a mark are the laws' 90 % intervals, absent where there are none. Dashed lines
    are the budget and the loss asked for, unless so far off that they would flatten the rest. A plan that is not
    feasible rings the nearest miss.

    Raises:
        DataError: the plan's frontier is empty.
    """
    if not plan.frontier:
        raise DataError("got a plan without a frontier, expected at least one choice, at the frontier figure")
    choices = [_held(choice) for choice in plan.frontier]
    chosen = _held(_recommended(plan))
    marked = sorted([*(row for row in choices if _place(row) != _place(chosen)), chosen], key=_place)
    x = alt.X("target_nll:Q", title=f"{LABELS['target_nll']} ({UNIT})", scale=_SPREAD)
    y = alt.Y("forgetting:Q", title=f"{LABELS[plan.measure]} ({UNIT})", scale=_SPREAD)
    ranks = pd.Series([row["series"] for row in marked])
    stroke, fill, shape = by_series(ranks.astype(categories(ranks)))
    path = inline(choices).mark_line(color=LIGHT["muted"], strokeWidth=1.2, opacity=0.7)
    marks = inline(marked).mark_point(size=58, strokeWidth=1.3, fillOpacity=0.85, aria=False)
    ring = inline([chosen]).mark_point(size=320, strokeWidth=2, stroke=LIGHT["ink"], filled=False, aria=False)
    ringed = "recommended" if plan.feasible else "the nearest miss"
    told = {
        "series": "Rank",
        "params": "Trainable parameters",
        "steps": "Steps",
        "forgetting_said": LABELS[plan.measure],
        "target_nll_said": LABELS["target_nll"],
        "cost": "Cost of training",
    }
    return styled(
        [
            *_asked(plan, marked),
            path.encode(x, y, alt.Order("forgetting:Q")),
            *_intervals(marked, stroke),
            ring.encode(x, y),
            isolating(marks.encode(x, y, stroke, fill, shape, opacity=isolated(1, 0.1), tooltip=_tooltip(told))),
        ],
        title=f"The least forgetting for each target loss; ringed, {ringed}: r = {plan.r}, {plan.steps:,} steps",
    )


def held_out_figure(rows: pd.DataFrame, quantity: str) -> Chart:
    """What the laws predicted of one quantity that they had not seen, against what was then measured.

    Nats per token on both axes, a mark per measurement and a colour and shape per part held out; on the dashed line a
    prediction is right. Bars are the intervals given, cut where they reach far beyond the marks. The title counts how
    many intervals hold what was measured.

    `rows` has the columns `HELD_OUT`, a row per held-out measurement: its `quantity`; `split`, the part held out; the
    value `observed`, and `predicted` with its interval from `low` to `high`, nan where there is none; `run`, `r`,
    `steps`. Rows of other quantities are passed over.

    Raises:
        DataError: a column is missing, or no row is of this quantity.
    """
    missing = [column for column in HELD_OUT if column not in rows.columns]
    of_it = rows[rows["quantity"] == quantity] if not missing else rows
    if missing or of_it.empty:
        raise DataError(
            f"got {len(of_it)} rows of {quantity} lacking columns {missing}, expected those of HELD_OUT, at a figure"
        )
    values = [_forecast(row) for row in of_it.sort_values(["split", "r", "run", "steps"]).to_dict("records")]
    splits = list(dict.fromkeys(value["split"] for value in values))
    ends = [value[name] for value in values for name in ("observed", "predicted")]
    low, high = min(ends), max(ends)
    room = ROOM * (high - low)
    for value in values:
        value |= {"from": max(value["low"], low - room), "to": min(value["high"], high + room)}
    known = [value for value in values if math.isfinite(value["low"]) and math.isfinite(value["high"])]
    label = LABELS.get(quantity, quantity)
    corners = _square([*ends, *(value[end] for value in known for end in ("from", "to"))])
    square = alt.Scale(domain=corners, nice=TICKS)
    x = alt.X("observed:Q", title=f"Measured ({UNIT})", scale=square)
    y = alt.Y("predicted:Q", title=f"Predicted ({UNIT})", scale=square)
    legend = alt.Legend(columns=1, labelLimit=400) if len(splits) > 1 else None
    stroke = alt.Stroke("split:N", title="Held out", sort=splits, scale=colours(splits), legend=legend)
    fill = alt.Fill("split:N", title="Held out", sort=splits, scale=colours(splits), legend=legend)
    shape = alt.Shape("split:N", title="Held out", sort=splits, scale=shapes(splits), legend=legend)
    right = inline([{"observed": end, "predicted": end} for end in corners])
    bars = [inline(known).mark_rule(strokeWidth=1.2)] if known else []
    picks = [_SPLIT] if legend else []
    marks = inline(values).mark_point(size=44, strokeWidth=1.3, fillOpacity=0.85, aria=False)
    told = {
        "split": "Held out",
        "run": "Run",
        "r": "Rank",
        "steps": "Step",
        "observed_said": "Measured",
        "predicted_said": "Predicted",
        "ends": "Interval",
    }
    return styled(
        [
            right.mark_line(color=LIGHT["muted"], strokeDash=[5, 4], strokeWidth=1.2).encode(x, y),
            *(bar.encode(x, alt.Y("from:Q"), alt.Y2("to"), stroke, opacity=alone(picks, 0.5, 0.05)) for bar in bars),
            marks.encode(x, y, stroke, fill, shape, tooltip=_tooltip(told), opacity=alone(picks, 1)).add_params(*picks),
        ],
        title=f"{label}: held out, then predicted{_counted(known)}",
    )


def _recommended(plan: Plan) -> Choice:
    """The plan's own choice, which need not be among those that the frontier was thinned to."""
    return Choice(
        r=plan.r,
        trainable_params=plan.trainable_params,
        steps=plan.steps,
        forgetting=plan.forgetting,
        target_nll=plan.target_nll,
        tokens=plan.cost.tokens,
        flop=plan.cost.flop,
        seconds=plan.cost.seconds,
        extrapolates=plan.extrapolates,
    )


def _held(choice: Choice) -> dict[str, Any]:
    """What one mark holds: its place, the ends of its intervals, and all of it as the tooltip says it."""
    cost = Cost(tokens=choice.tokens, flop=choice.flop, seconds=choice.seconds)
    held = {
        "series": str(choice.r),
        "r": choice.r,
        "params": f"{choice.trainable_params:,}",
        "steps": choice.steps,
        "cost": str(cost),
    }
    for name, prediction in (("forgetting", choice.forgetting), ("target_nll", choice.target_nll)):
        low, high = (float(end) for end in prediction.interval(LEVEL))
        held |= {name: float(prediction.mean), f"{name}_low": low, f"{name}_high": high}
        held[f"{name}_said"] = _said(prediction, low, high)
    return held


def _said(prediction: Prediction, low: float, high: float) -> str:
    error = float(prediction.stderr)
    value = rounded(float(prediction.mean), error)
    return (
        f"{value}, no interval" if math.isnan(error) else f"{value} ({rounded(low, error)} to {rounded(high, error)})"
    )


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["r"], row["steps"]


def _intervals(rows: Sequence[Mapping[str, Any]], stroke: alt.Stroke) -> list[alt.Chart]:
    """The laws' intervals as rules through the marks, both ways; none where the laws have none.

    Cut where they reach far beyond the marks, which a wide one would flatten.
    """
    known = [dict(row) for row in rows if math.isfinite(row["forgetting_low"]) and math.isfinite(row["target_nll_low"])]
    if not known:
        return []
    for name in ("forgetting", "target_nll"):
        lowest, highest = (end(row[name] for row in rows) for end in (min, max))
        room = ROOM * (highest - lowest) or math.inf
        for row in known:
            row[f"{name}_low"] = max(row[f"{name}_low"], lowest - room)
            row[f"{name}_high"] = min(row[f"{name}_high"], highest + room)
    rules = inline(known).mark_rule(strokeWidth=1.2).encode(opacity=isolated(0.5, 0.05))
    return [
        rules.encode(alt.X("target_nll:Q"), alt.Y("forgetting_low:Q"), alt.Y2("forgetting_high"), stroke),
        rules.encode(alt.X("target_nll_low:Q"), alt.Y("forgetting:Q"), stroke, x2=alt.X2("target_nll_high")),
    ]


def _asked(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[alt.Chart]:
    """The budget across and the loss to reach upright, dashed and named where the frontier does not run.

    One so far off that drawing it would flatten the marks is only named, in the corner towards which it lies.
    """
    layers: list[alt.Chart] = []
    low: list[str] = []
    high: list[str] = []
    if plan.max_forgetting is not None:
        name, side = f"budget {plan.max_forgetting:g}", _far(plan.max_forgetting, [row["forgetting"] for row in rows])
        if side:
            (low if side < 0 else high).append(f"{name} lies far {'below' if side < 0 else 'above'}")
        else:
            drawn, y = inline([{"limit": plan.max_forgetting, "name": name}]), alt.Y("limit:Q")
            text = _named(drawn, left=False).encode(y, alt.Text("name:N"), x=alt.value("width"))
            layers += [_dashed(drawn).encode(y), text]
    if plan.target_loss is not None:
        losses = [row["target_nll"] for row in rows]
        name, side = f"loss {plan.target_loss:g}", _far(plan.target_loss, losses)
        if side:
            (low if side < 0 else high).append(f"{name} lies far to the {'left' if side < 0 else 'right'}")
        else:
            end = alt.value("height" if plan.target_loss < (min(losses) + max(losses)) / 2 else LINE)
            drawn, x = inline([{"limit": plan.target_loss, "name": name}]), alt.X("limit:Q")
            layers += [_dashed(drawn).encode(x), _named(drawn, left=True).encode(x, alt.Text("name:N"), y=end)]
    for notes, left in ((low, True), (high, False)):
        if notes:
            text = _named(inline([{"name": "; ".join(notes)}]), left=left).encode(alt.Text("name:N"))
            layers.append(text.encode(x=alt.value(0 if left else "width"), y=alt.value("height" if left else LINE)))
    return layers


def _dashed(drawn: alt.Chart) -> alt.Chart:
    rule: alt.Chart = drawn.mark_rule(color=CAUTION, strokeDash=[5, 4], strokeWidth=1.4)
    return rule


def _named(drawn: alt.Chart, *, left: bool) -> alt.Chart:
    """Text above its place, and to the right of it when the place is at the left."""
    side: dict[str, Any] = {"align": "left", "dx": 5} if left else {"align": "right", "dx": -5}
    text: alt.Chart = drawn.mark_text(color=CAUTION, fontSize=12, baseline="bottom", dy=-4, **side)
    return text


def _far(limit: float, values: Sequence[float]) -> int:
    """-1 or 1 where a limit lies far below or above, else 0."""
    room = FAR * (max(values) - min(values))
    return int(limit > max(values) + room) - int(limit < min(values) - room)


def _forecast(row: Mapping[Any, Any]) -> dict[str, Any]:
    """What one held-out measurement's mark holds."""
    low, high = float(row["low"]), float(row["high"])
    error = (high - low) / 4  # enough to tell how many digits the prediction deserves
    known = math.isfinite(error)
    return {
        "split": visible(row["split"]),
        "run": visible(row["run"]),
        "r": int(row["r"]),
        "steps": int(row["steps"]),
        "observed": float(row["observed"]),
        "predicted": float(row["predicted"]),
        "low": low,
        "high": high,
        "observed_said": rounded(float(row["observed"]), error),
        "predicted_said": rounded(float(row["predicted"]), error),
        "ends": f"{rounded(low, error)} to {rounded(high, error)}" if known else "none",
    }


def _square(values: Sequence[float]) -> list[float]:
    """The same ends for both axes, so that what is right lies on one line; with some room."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low)
    return [low - room, high + room]


def _counted(known: Sequence[Mapping[str, Any]]) -> str:
    if not known:
        return ""
    inside = sum(value["low"] <= value["observed"] <= value["high"] for value in known)
    return f"; {inside} of {len(known)} inside their interval"


def _tooltip(names: Mapping[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in names.items()]
