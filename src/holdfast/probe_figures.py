"""What was probed of tuned models, drawn: shares of answers along training, or model by model.

Every mark is a share of items and every whisker its 95 % interval (Wilson's). Clicking a share in a legend isolates it;
on a study's page its rank or method does so too. Colours, fonts and drawing are those of `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport, TaskResult
from holdfast.display import visible
from holdfast.exchange import LEAST_MODELS
from holdfast.figures import TICKS, Chart, inline, styled
from holdfast.legends import LIGHT, alone, colours, shapes
from holdfast.proportions import Share, percent
from holdfast.refusals import RefusalOdds, RefusalResult

ROW = 46
"""Height of a model's marks, points."""

LABEL_ROOM = 0.07
"""Of the height of a drawing: what the base's name takes."""

_SHARE = alt.selection_point(name="share", fields=["quantity"], bind="legend")
_SERIES = alt.selection_point(name="series", fields=["series"], on="dblclick", clear=False)
"""A rank or method picked on the page; on a click it would be forgotten when a share is picked in the legend."""

Rows: TypeAlias = Sequence[tuple[ProbedModel, TaskResult]]
"""Models, each with its result on one task."""


def quantities(result: TaskResult) -> Mapping[str, Share]:
    """The shares of a result that are worth a mark, of the tuned model."""
    if isinstance(result, ChoiceResult):
        return {"same answer as base": result.agreement, "accuracy": result.accuracy.tuned}
    if isinstance(result, OutcomeResult):
        return {"right": result.accuracy.tuned}
    if isinstance(result, RefusalResult):
        kept = {"refusals kept": result.refusals.kept} if result.refusals.base.count else {}
        return {"refuses": result.refusals.tuned} | kept
    return {"refusal likelier than compliance": result.favoured.tuned}


def base_share(result: TaskResult) -> Share:
    """What the base itself reaches."""
    if isinstance(result, RefusalResult):
        return result.refusals.base
    return result.accuracy.base if isinstance(result, ChoiceResult | OutcomeResult) else result.favoured.base


def by_task(report: ProbeReport) -> dict[str, Rows]:
    """Each task's results, in the order of the report, by the task's name."""
    names = dict.fromkeys(result.name for _, result in report.rows())
    return {name: [(model, one) for model, one in report.rows() if one.name == name] for name in names}


def task_figures(report: ProbeReport, names: Mapping[str, str], series: Mapping[str, str] = {}) -> dict[str, Chart]:
    """The figures of each task, by name: `answers-0`, `answers-against-forgetting-0`, and so on.

    The first along training where runs have several checkpoints, else by model; the second where enough models have
    their forgetting measured. `names` are what models are called, `series` the rank or method of each run where known.
    """
    drawn = {}
    for number, rows in enumerate(by_task(report).values()):
        if not base_share(rows[0][1]).n:
            continue
        several = len({model.run for model, _ in rows}) < len(rows)
        trajectory = several and all(model.step is not None for model, _ in rows)
        drawn[f"answers-{number}"] = along_training(rows, series) if trajectory else by_model(rows, names, series)
        corpus = next(iter(rows[0][0].forgetting), None)
        known = [(model, one) for model, one in rows if corpus in model.forgetting]
        if corpus is not None and len(known) >= LEAST_MODELS:
            drawn[f"answers-against-forgetting-{number}"] = against_forgetting(known, corpus, series)
    return drawn


def along_training(rows: Rows, series: Mapping[str, str] = {}) -> Chart:
    """Shares of one task against the training step, with 95 % intervals: the paper's Figure 4.

    In per cent; a dashed line is the base. `rows` are the checkpoints of a run or several, in step order, each with its
    result on the task; a run has a line of its own.

    Source: Kalajdzievski 2024, arXiv 2401.05605, figure 4.
    """
    values = [_mark(model, name, share, series) for model, one in rows for name, share in quantities(one).items()]
    names = list(dict.fromkeys(value["quantity"] for value in values))
    picks = _picks(values)
    drawn, x = inline(values), alt.X("step:Q", title="Update steps", scale=alt.Scale(zero=True, nice=TICKS))
    y = alt.Y(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    colour = alt.Color("quantity:N", title="Share", scale=colours(names), legend=_legend(names))
    line = drawn.mark_line(strokeWidth=1.6).encode(x, y, colour, alt.Detail("run:N"), opacity=alone(picks, 1))
    whiskers = drawn.mark_rule(strokeWidth=1.4).encode(
        x, alt.Y("low:Q"), alt.Y2("high"), colour, opacity=alone(picks, 0.7)
    )
    marks = drawn.mark_point(size=44, filled=True, aria=False).encode(
        x, y, colour, alt.Shape("quantity:N", title="Share", scale=shapes(names), legend=_legend(names)),
        opacity=alone(picks, 1), tooltip=_tooltip(),
    ).add_params(*picks)  # fmt: skip
    layers = [*_base(rows[0][1], _range(rows, values), across=False), whiskers, line, marks]
    return styled(layers, title=f"{visible(rows[0][1].name)} along training")


def against_forgetting(rows: Rows, corpus: str, series: Mapping[str, str] = {}) -> Chart:
    """Shares of one task against the forgetting measured of the same models on a corpus, with 95 % intervals.

    In per cent and nats per token; a dashed line is the base. A run's checkpoints are joined by a line.
    """
    values = [
        _mark(model, name, share, series)
        | {"nats": model.forgetting[corpus].value, "kl": str(model.forgetting[corpus])}
        for model, one in rows
        for name, share in quantities(one).items()
    ]
    names = list(dict.fromkeys(value["quantity"] for value in values))
    drawn, picks = inline(values), _picks(values)
    x = alt.X(
        "nats:Q", title=f"Forgetting on {visible(corpus)}, nats per token", scale=alt.Scale(nice=TICKS),
        axis=alt.Axis(titleLimit=300),
    )  # fmt: skip
    y = alt.Y(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    colour = alt.Color("quantity:N", title="Share", scale=colours(names), legend=_legend(names))
    line = drawn.mark_line(strokeWidth=1).encode(
        x, y, colour, alt.Detail("run:N"), alt.Order("step:Q", sort="ascending"), opacity=alone(picks, 0.5)
    )
    whiskers = drawn.mark_rule(strokeWidth=1.4).encode(
        x, alt.Y("low:Q"), alt.Y2("high"), colour, opacity=alone(picks, 0.5)
    )
    marks = drawn.mark_point(size=44, filled=True, aria=False).encode(
        x, y, colour, alt.Shape("quantity:N", title="Share", scale=shapes(names), legend=_legend(names)),
        opacity=alone(picks, 1), tooltip=[*_tooltip(), alt.Tooltip("kl:N", title="Forgetting, nats per token")],
    ).add_params(*picks)  # fmt: skip
    return styled(
        [*_base(rows[0][1], _range(rows, values), across=False), whiskers, line, marks],
        title=f"{visible(rows[0][1].name)} against forgetting",
    )


def by_model(rows: Rows, names: Mapping[str, str], series: Mapping[str, str] = {}) -> Chart:
    """Shares of one task, a row per model in the order given, with 95 % intervals; a dashed line is the base.

    In per cent. `names` are what models are called.
    """
    values = [
        _mark(model, name, share, series) | {"model": visible(names[model.name])}
        for model, one in rows
        for name, share in quantities(one).items()
    ]
    shares = list(dict.fromkeys(value["quantity"] for value in values))
    models = list(dict.fromkeys(value["model"] for value in values))
    drawn, picks = inline(values), _picks(values)
    x = alt.X(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    y = alt.Y("model:N", title=None, sort=models, axis=alt.Axis(grid=False, labelLimit=220, labelColor=LIGHT["ink"]))
    offset = alt.YOffset("quantity:N", sort=shares, scale=alt.Scale(paddingInner=0.4, paddingOuter=0.6))
    legend = _legend(shares, offset=26)  # the base's name stands between
    colour = alt.Color("quantity:N", title="Share", sort=shares, scale=colours(shares), legend=legend)
    whiskers = drawn.mark_rule(strokeWidth=1.6).encode(
        alt.X("low:Q"), alt.X2("high"), y, offset, colour, opacity=alone(picks, 1)
    )
    marks = drawn.mark_point(size=52, filled=True, aria=False).encode(
        x, y, offset, colour, alt.Shape("quantity:N", sort=shares, scale=shapes(shares), legend=legend),
        opacity=alone(picks, 1), tooltip=_tooltip(),
    ).add_params(*picks)  # fmt: skip
    layers = [*_base(rows[0][1], _range(rows, values), across=True), whiskers, marks]
    return styled(layers, title=visible(rows[0][1].name), height=max(2, len(models)) * ROW)


def _picks(values: Sequence[Mapping[str, Any]]) -> list[alt.Parameter]:
    """What of a figure can be picked: a share where its legend names several, a series where all have one."""
    shares = {value["quantity"] for value in values}
    return [*([_SHARE] if len(shares) > 1 else []), *([_SERIES] if all("series" in value for value in values) else [])]


def _mark(model: ProbedModel, name: str, share: Share, series: Mapping[str, str]) -> dict[str, Any]:
    low, high = share.interval()
    return ({"series": series[model.run]} if model.run in series else {}) | {
        "model": visible(model.name), "run": visible(model.run), "step": model.step, "quantity": name,
        "value": 100 * share.value, "low": 100 * low, "high": 100 * high, "said": percent(share),
        "ends": f"{100 * low:.1f} to {100 * high:.1f}", "items": f"{share.count:,} of {share.n:,}",
    }  # fmt: skip


def _range(rows: Rows, values: Sequence[Mapping[str, Any]]) -> list[float]:
    base = 100 * base_share(rows[0][1]).value
    low = min(base, *(value["low"] for value in values))
    high = max(base, *(value["high"] for value in values))
    return [max(0.0, low - 2), min(100.0, high + 2)]


def _base(result: TaskResult, ends: Sequence[float], *, across: bool) -> list[alt.Chart]:
    """The base as a dashed line with its name; below the line where above it is the end of the axis, and the legend."""
    share = base_share(result)
    what = {RefusalResult: "refuses", RefusalOdds: "would rather refuse"}.get(type(result), "accuracy")
    drawn = inline([{"base": 100 * share.value, "name": f"base {what} {percent(share)}"}])
    rule = drawn.mark_rule(color=LIGHT["muted"], strokeDash=[5, 4], strokeWidth=1.4)
    high = not across and ends[1] - 100 * share.value < LABEL_ROOM * (ends[1] - ends[0])
    text = drawn.mark_text(
        color=LIGHT["muted"],
        fontSize=12,
        align="left",
        baseline="top" if high else "bottom",
        dx=4,
        dy=5 if high else -4,
    )
    if across:
        return [rule.encode(alt.X("base:Q")), text.encode(alt.X("base:Q"), alt.Text("name:N"), y=alt.value(0))]
    return [rule.encode(alt.Y("base:Q")), text.encode(alt.Y("base:Q"), alt.Text("name:N"), x=alt.value(0))]


def _tooltip() -> list[alt.Tooltip]:
    said = {"model": "Model", "quantity": "Share", "said": "Of items", "ends": "95 % interval", "items": "Items"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in said.items()]


def _legend(names: Sequence[str], offset: int = 8) -> alt.Legend | None:
    """None where there is nothing to tell apart; `offset` points above the drawing."""
    return alt.Legend(columns=1, labelLimit=300, offset=offset) if len(names) > 1 else None
