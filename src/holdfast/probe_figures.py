"""What was probed of tuned models, drawn: shares of answers along training, or model by model.

Every mark is a share of items and every whisker its 95 % interval (Wilson's). Colours, fonts and drawing are those of
`figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, TaskResult
from holdfast.display import visible
from holdfast.figures import LIGHT, TICKS, Chart, colours, inline, shapes, styled
from holdfast.proportions import Share, percent
from holdfast.refusals import RefusalResult

ROW = 46
"""Height of a model's marks, points."""


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


def along_training(rows: Sequence[tuple[ProbedModel, TaskResult]]) -> Chart:
    """Shares of one task against the training step, with 95 % intervals: the paper's Figure 4.

    In per cent; a dashed line is the base. `rows` are the checkpoints of a run or several, in step order, each with its
    result on the task; a run has a line of its own.

    Source: Kalajdzievski 2024, arXiv 2401.05605, figure 4.
    """
    values = [_mark(model, name, share) for model, one in rows for name, share in quantities(one).items()]
    names = list(dict.fromkeys(value["quantity"] for value in values))
    drawn, x = inline(values), alt.X("step:Q", title="Update steps", scale=alt.Scale(zero=True, nice=TICKS))
    y = alt.Y(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    colour = alt.Color("quantity:N", title="Share", scale=colours(names), legend=_legend(names))
    line = drawn.mark_line(strokeWidth=1.6).encode(x, y, colour, alt.Detail("run:N"))
    whiskers = drawn.mark_rule(strokeWidth=1.4, opacity=0.7).encode(x, alt.Y("low:Q"), alt.Y2("high"), colour)
    marks = drawn.mark_point(size=44, filled=True, opacity=1, aria=False).encode(
        x, y, colour, alt.Shape("quantity:N", title="Share", scale=shapes(names), legend=_legend(names)),
        tooltip=_tooltip(),
    )  # fmt: skip
    return styled(
        [*_base(rows[0][1], across=False), whiskers, line, marks], title=f"{visible(rows[0][1].name)} along training"
    )


def against_forgetting(rows: Sequence[tuple[ProbedModel, TaskResult]], corpus: str) -> Chart:
    """Shares of one task against the forgetting measured of the same models on a corpus, with 95 % intervals.

    In per cent and nats per token; a dashed line is the base. A run's checkpoints are joined by a line.
    """
    values = [
        _mark(model, name, share) | {"nats": model.forgetting[corpus].value, "kl": str(model.forgetting[corpus])}
        for model, one in rows
        for name, share in quantities(one).items()
    ]
    names = list(dict.fromkeys(value["quantity"] for value in values))
    drawn = inline(values)
    x = alt.X("nats:Q", title=f"Forgetting on {visible(corpus)}, nats per token", scale=alt.Scale(nice=TICKS))
    y = alt.Y(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    colour = alt.Color("quantity:N", title="Share", scale=colours(names), legend=_legend(names))
    line = drawn.mark_line(strokeWidth=1, opacity=0.5).encode(
        x, y, colour, alt.Detail("run:N"), alt.Order("step:Q", sort="ascending")
    )
    whiskers = drawn.mark_rule(strokeWidth=1.4, opacity=0.5).encode(x, alt.Y("low:Q"), alt.Y2("high"), colour)
    marks = drawn.mark_point(size=44, filled=True, opacity=1, aria=False).encode(
        x, y, colour, alt.Shape("quantity:N", title="Share", scale=shapes(names), legend=_legend(names)),
        tooltip=[*_tooltip(), alt.Tooltip("kl:N", title="Forgetting, nats per token")],
    )  # fmt: skip
    return styled(
        [*_base(rows[0][1], across=False), whiskers, line, marks],
        title=f"{visible(rows[0][1].name)} against forgetting",
    )


def by_model(rows: Sequence[tuple[ProbedModel, TaskResult]], names: Mapping[str, str]) -> Chart:
    """Shares of one task, a row per model in the order given, with 95 % intervals; a dashed line is the base.

    In per cent. `names` are what models are called.
    """
    values = [
        _mark(model, name, share) | {"model": visible(names[model.name])}
        for model, one in rows
        for name, share in quantities(one).items()
    ]
    shares = list(dict.fromkeys(value["quantity"] for value in values))
    models = list(dict.fromkeys(value["model"] for value in values))
    drawn = inline(values)
    x = alt.X(
        "value:Q", title="Per cent of items", scale=alt.Scale(domain=_range(rows, values), nice=TICKS, zero=False)
    )
    y = alt.Y("model:N", title=None, sort=models, axis=alt.Axis(grid=False, labelLimit=220, labelColor=LIGHT["ink"]))
    offset = alt.YOffset("quantity:N", sort=shares, scale=alt.Scale(paddingInner=0.4, paddingOuter=0.6))
    colour = alt.Color("quantity:N", title="Share", sort=shares, scale=colours(shares), legend=_legend(shares))
    whiskers = drawn.mark_rule(strokeWidth=1.6).encode(alt.X("low:Q"), alt.X2("high"), y, offset, colour)
    marks = drawn.mark_point(size=52, filled=True, opacity=1, aria=False).encode(
        x, y, offset, colour, alt.Shape("quantity:N", sort=shares, scale=shapes(shares), legend=_legend(shares)),
        tooltip=_tooltip(),
    )  # fmt: skip
    layers = [*_base(rows[0][1], across=True), whiskers, marks]
    return styled(layers, title=visible(rows[0][1].name), height=max(2, len(models)) * ROW)


def _mark(model: ProbedModel, name: str, share: Share) -> dict[str, Any]:
    low, high = share.interval()
    return {
        "model": visible(model.name), "run": visible(model.run), "step": model.step, "quantity": name,
        "value": 100 * share.value, "low": 100 * low, "high": 100 * high, "said": percent(share),
        "ends": f"{100 * low:.1f} to {100 * high:.1f}", "items": f"{share.count:,} of {share.n:,}",
    }  # fmt: skip


def _range(rows: Sequence[tuple[ProbedModel, TaskResult]], values: Sequence[Mapping[str, Any]]) -> list[float]:
    base = 100 * base_share(rows[0][1]).value
    return [
        max(0.0, min(base, *(value["low"] for value in values)) - 2),
        min(100.0, max(base, *(value["high"] for value in values)) + 2),
    ]


def _base(result: TaskResult, *, across: bool) -> list[alt.Chart]:
    """The base as a dashed line with its name."""
    share = base_share(result)
    what = "refuses" if isinstance(result, RefusalResult) else "accuracy"
    drawn = inline([{"base": 100 * share.value, "name": f"base {what} {percent(share)}"}])
    rule = drawn.mark_rule(color=LIGHT["muted"], strokeDash=[5, 4], strokeWidth=1.4)
    text = drawn.mark_text(color=LIGHT["muted"], fontSize=12, align="left", baseline="bottom", dx=4, dy=-4)
    if across:
        return [rule.encode(alt.X("base:Q")), text.encode(alt.X("base:Q"), alt.Text("name:N"), y=alt.value(0))]
    return [rule.encode(alt.Y("base:Q")), text.encode(alt.Y("base:Q"), alt.Text("name:N"), x=alt.value(0))]


def _tooltip() -> list[alt.Tooltip]:
    said = {"model": "Model", "quantity": "Share", "said": "Of items", "ends": "95 % interval", "items": "Items"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in said.items()]


def _legend(names: Sequence[str]) -> alt.Legend | None:
    """None where there is nothing to tell apart."""
    return alt.Legend(columns=1, labelLimit=300) if len(names) > 1 else None
