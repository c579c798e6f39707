"""What was measured of tuned models, drawn: one function per figure, checkpoints to chart.

Every bar and mark is a mean over documents and every whisker its 95 % interval, clustered by document. Colours, fonts
and drawing are those of `figures`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from holdfast.display import visible
from holdfast.figures import TICKS, UNIT, Chart, inline, styled
from holdfast.forgetting import Checkpoint
from holdfast.legends import CAUTION, LIGHT, colours, shapes
from holdfast.stats import Estimate, rounded

FORGETTING = f"Forgetting, {UNIT}"
BAR, GAP = 18, 14
"""Height of a bar and of what is left free between two groups, points."""


def along_training(runs: Mapping[str, Sequence[Checkpoint]], *, max_forgetting: float | None) -> Chart:
    """Forgetting against the training step of each checkpoint, a line per text and run, with 95 % intervals.

    Nats per token. A dashed line is the budget. `runs` holds the checkpoints of each run, in step order.
    """
    values = [
        {"run": visible(run), "model": visible(point.name), "step": point.step, "text": visible(text.corpus)}
        | _measured(text.kl_base_tuned, text.documents)
        for run, checkpoints in runs.items()
        for point in checkpoints
        for text in point.texts.values()
    ]
    texts = _each(value["text"] for value in values)
    drawn, x = inline(values), alt.X("step:Q", title="Update steps", scale=alt.Scale(zero=True, nice=TICKS))
    colour = alt.Color("text:N", title="Text", scale=colours(texts), legend=_legend(texts))
    dash = alt.StrokeDash("run:N", title="Run", legend=_legend(list(runs)), sort=None)
    line = drawn.mark_line(strokeWidth=1.6).encode(x, alt.Y("value:Q"), colour, dash)
    whiskers = [
        known.mark_rule(strokeWidth=1.6).encode(x, alt.Y("low:Q"), alt.Y2("high"), colour) for known in _known(values)
    ]
    marks = drawn.mark_point(size=44, filled=True, opacity=1, aria=False).encode(
        x,
        alt.Y("value:Q", title=FORGETTING, scale=alt.Scale(zero=True, nice=TICKS)),
        colour,
        alt.Shape("text:N", title="Text", scale=shapes(texts), legend=_legend(texts)),
        tooltip=_tooltip({"model": "Model", "text": "Text", "step": "Step"}),
    )
    return styled([*_budget(max_forgetting, across=False), *whiskers, line, marks], title="Forgetting along training")


def by_text(checkpoints: Sequence[Checkpoint], *, max_forgetting: float | None) -> Chart:
    """Forgetting of each text by each of some tuned models, a bar each with its 95 % interval, in the order given.

    Nats per token. A dashed line is the budget. With several models their bars stand together, a colour each.
    """
    values = [
        {"group": visible(text.corpus), "part": visible(checkpoint.name)}
        | _measured(text.kl_base_tuned, text.documents)
        for checkpoint in checkpoints
        for text in checkpoint.texts.values()
    ]
    return _bars(values, group="Text", part="Model", title="Forgetting by text", max_forgetting=max_forgetting)


def by_kind(checkpoint: Checkpoint) -> Chart:
    """Forgetting of one tuned model by kind of token, a bar per kind and text with its 95 % interval.

    Nats per token of that kind. A report without single tokens, made during training, has no kinds to draw.
    """
    values = [
        {"group": kind, "part": visible(text.corpus)} | _measured(kl, kl.n) | {"tokens": f"{tokens:,}"}
        for text in checkpoint.texts.values()
        if text.tokens is not None
        for kind, (kl, tokens) in text.by_kind().items()
    ]
    return _bars(values, group="Kind", part="Text", title="Forgetting by kind of token", max_forgetting=None)


def _bars(
    values: Sequence[Mapping[str, Any]], *, group: str, part: str, title: str, max_forgetting: float | None
) -> Chart:
    """Bars to the right, in groups; one colour and no legend where each group has one part."""
    groups, parts = (_each(value[name] for value in values) for name in ("group", "part"))
    room = alt.Axis(labelOverlap="parity", labelSeparation=10)
    x = alt.X("value:Q", title=FORGETTING, scale=alt.Scale(zero=True, nice=TICKS), axis=room)
    y = alt.Y(
        "group:N", title=None, sort=groups, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.1),
        axis=alt.Axis(grid=False, labelLimit=150, labelColor=LIGHT["ink"]),
    )  # fmt: skip
    offset = alt.YOffset("part:N", sort=parts, scale=alt.Scale(paddingInner=0.1))
    colour = alt.Color("part:N", title=part, sort=parts, scale=colours(parts), legend=_legend(parts))
    names = {"group": group, "part": part} | ({"tokens": "Tokens"} if "tokens" in values[0] else {})
    drawn = inline(values)
    bars = drawn.mark_bar(aria=False, opacity=0.6).encode(x, y, offset, colour, tooltip=_tooltip(names))
    whiskers = [
        known.mark_rule(strokeWidth=1.6, color=LIGHT["ink"]).encode(alt.X("low:Q"), alt.X2("high"), y, offset)
        for known in _known(values)
    ]
    height = len(groups) * (len(parts) * BAR + GAP)
    return styled([bars, *whiskers, *_budget(max_forgetting, across=True)], title=title, height=height)


def _budget(max_forgetting: float | None, *, across: bool) -> list[alt.Chart]:
    """The budget as a dashed line with its name: across bars that lie, or over lines that run to the right."""
    if max_forgetting is None:
        return []
    drawn = inline([{"budget": max_forgetting, "name": f"budget {max_forgetting:g}"}])
    rule = drawn.mark_rule(color=CAUTION, strokeDash=[5, 4], strokeWidth=1.4)
    if across:
        text = drawn.mark_text(color=CAUTION, fontSize=12, align="left", baseline="bottom", dx=4, dy=-3)
        return [
            rule.encode(alt.X("budget:Q")),
            text.encode(alt.X("budget:Q"), alt.Text("name:N"), y=alt.value(0)),
        ]
    text = drawn.mark_text(color=CAUTION, fontSize=12, align="left", baseline="bottom", dx=4, dy=-4)
    return [
        rule.encode(alt.Y("budget:Q")),
        text.encode(alt.Y("budget:Q"), alt.Text("name:N"), x=alt.value(0)),
    ]


def _known(values: Sequence[Mapping[str, Any]]) -> list[alt.Chart]:
    """The values that have an interval, as one chart; none where none has."""
    finite = [value for value in values if math.isfinite(value["low"])]
    return [inline(finite)] if finite else []


def _measured(estimate: Estimate, documents: int) -> dict[str, Any]:
    """What a mark holds: its value, the ends of its interval, and both as the tooltip says them; no KL is below 0."""
    low, high = estimate.interval()
    low = low if math.isnan(low) else max(low, 0.0)
    ends = "none" if math.isnan(low) else f"{rounded(low, estimate.stderr)} to {rounded(high, estimate.stderr)}"
    said = rounded(estimate.value, estimate.stderr)
    return {"value": estimate.value, "low": low, "high": high, "said": said, "ends": ends, "documents": documents}


def _tooltip(names: Mapping[str, str]) -> list[alt.Tooltip]:
    said = {"said": FORGETTING, "ends": "95 % interval", "documents": "Documents"}
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in (dict(names) | said).items()]


def _each(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _legend(names: Sequence[str]) -> alt.Legend | None:
    """None where there is nothing to tell apart."""
    return alt.Legend(columns=1, labelLimit=300) if len(names) > 1 else None
