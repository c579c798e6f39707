"""Which figures a study has: the paper's own, one panel per method, and what was held out."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import altair as alt
import pandas as pd

from holdfast.behaviour import ProbeReport
from holdfast.display import visible
from holdfast.errors import FitError
from holdfast.figures import TICKS, UNIT, Chart, inline, loss_against_forgetting, styled, trajectories
from holdfast.laws import LINE, Laws, commonest, fit_law, points
from holdfast.legends import LIGHT, by_series, categories, isolated, isolating, seen, series_title
from holdfast.plan_figures import frontier_figure, held_out_figure
from holdfast.planning import Plan
from holdfast.points import retained_texts
from holdfast.stats import Estimate, rounded
from holdfast.study_answers import answer_captions, answer_figures
from holdfast.validation import Validation

LEVEL = 0.95
"""Of an interval over documents."""

ROW = 56
"""Height of a text's line of marks, points."""

MAIN = "loss-against-forgetting"

CAPTIONS = {
    MAIN: (
        "One mark per measurement; learning runs to the left. The paper's Figure 2: if all ranks share one line, the "
        "price does not depend on rank. A band is the line's 90 % interval."
    ),
    "panel": "One mark per measurement. The line is of the filled marks: runs trained as most of these are.",
    "trajectories-target": "The paper's Figure 3, for what is learned: the joint law and its 90 % bands.",
    "trajectories-forgetting": "The paper's Figure 3, for what is forgotten: the joint law and its 90 % bands.",
    "by-text": "What each run had forgotten of each retained text at its last step, with 95 % intervals by document.",
    "frontier": (
        "Each mark is a rank and a number of steps that no other beats in both. Through it the laws' 90 % intervals; "
        "dashed, what was asked for."
    ),
    "held-out-forgetting": (
        "Each mark is a measurement that the law had not seen when it predicted it. On the dashed line a prediction is "
        "right; bars are where nine runs in ten were expected."
    ),
    "held-out-target": "The same for what is learned.",
}
"""What is said of each figure; those of panels begin alike."""


def charts(
    table: pd.DataFrame, laws: Laws | None, plan: Plan | None, validation: Validation | None,
    probed: ProbeReport | None = None, *, corpus: str | None = None,
) -> dict[str, Chart]:  # fmt: skip
    """Every figure of a study by name, in reading order; what is None has none.

    `table` is that of `archive.table`; the laws, plan and validation were made from it; `probed` are its runs' answers;
    `corpus` is the retained text where there are no laws to name one.

    Raises:
        FitError: no finished run has anything to draw.
    """
    table = with_series(table)
    shown = _shown(table, laws, corpus)
    drawn = {} if plan is None or not plan.frontier else {"frontier": frontier_figure(plan)}
    drawn[MAIN] = loss_against_forgetting(shown, laws)
    drawn |= _panels(table, laws)
    drawn["trajectories-target"] = trajectories(shown, laws, "target_nll")
    drawn["trajectories-forgetting"] = trajectories(shown, laws, "kl_base_tuned")
    last = last_measured(table)
    if last["corpus"].nunique() > 1:
        drawn["by-text"] = by_text(last)
    series = dict(table.loc[table["series"].notna(), ["run", "series"]].itertuples(index=False, name=None))
    drawn |= {} if probed is None else answer_figures(probed, series)
    predictions = None if validation is None else validation.predictions()
    for name, quantity in (("held-out-forgetting", "kl_base_tuned"), ("held-out-target", "target_nll")):
        if predictions is not None and (predictions["quantity"] == quantity).any():
            drawn[name] = held_out_figure(predictions, quantity)
    return drawn


def panels(
    table: pd.DataFrame, laws: Mapping[tuple[str, str], Laws | None], *, corpus: str | None
) -> dict[str, Chart]:  # fmt: skip
    """Forgetting against loss for each target and retained text, with the line of `laws`; nothing without points."""
    drawn: dict[str, Chart] = {}
    for _, part in with_series(table).groupby("target"):
        for retained in [corpus] if corpus else retained_texts(part):
            try:
                shown = _shown(part, None, retained)
            except FitError:
                continue
            target = str(shown["target"].iloc[0])
            known = laws.get((target, retained))
            if known is not None:
                shown = _shown(part, known, retained)
            chart = loss_against_forgetting(shown, known)
            drawn[f"{MAIN}-{len(drawn) + 1}"] = _named(chart, f"{visible(target)}, {visible(retained)}")
    return drawn


def captions(drawn: Mapping[str, Chart], probed: ProbeReport | None = None) -> dict[str, str]:
    """The caption of each figure."""
    known = CAPTIONS if probed is None else CAPTIONS | answer_captions(probed)
    return {name: known.get(name, CAPTIONS["panel"]) for name in drawn}


def with_series(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `series`, which figures tell finished runs apart by.

    It is a run's rank where most runs were trained the way it was; of the others the method, with its rank or layers
    and what else sets it apart. Its categories are those of the study, in the order of legends.
    """
    runs = table[table["state"] == "done"].drop_duplicates("run")
    adapters = runs["adapter"].fillna("{}") if "adapter" in runs else ["{}"] * len(runs)
    ways = list(zip(runs["method"], adapters, strict=True))
    most = set(commonest(runs)["run"]) if ways else ()
    main = next((way for run, way in zip(runs["run"], ways, strict=True) if run in most), ("", "{}"))
    names = {row["run"]: _series(row, way, main) for row, way in zip(runs.to_dict("records"), ways, strict=True)}
    return table.assign(series=table["run"].map(names).astype(categories(names.values())))


def _series(row: Mapping[Any, Any], way: tuple[str, str], main: tuple[str, str]) -> str:
    """What a run is called in a legend; `way` is its method and that method's settings, `main` that of most runs."""
    size = _whole(row.get("r")) or _whole(row.get("layers"))
    if way == main and size == _whole(row.get("r")):
        return size or visible(way[0])
    name = f"{way[0]} {size}".rstrip()
    usual, own = (json.loads(settings) for settings in (main[1], way[1]))
    apart = (
        " ".join(str(part).removesuffix("_proj") for part in value) if isinstance(value, list) else f"{key} {value}"
        for key, value in own.items()
        if way[0] == main[0] and value != usual.get(key)
    )
    return str(visible(", ".join([name, *apart])))


def _whole(size: Any) -> str:
    return f"{int(size)}" if pd.notna(size) and size > 0 else ""


def last_measured(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each finished run on each retained text."""
    retained = table[(table["state"] == "done") & (table["role"] == "retain")]
    return retained.sort_values("step").drop_duplicates(["run", "corpus"], keep="last")


def by_text(rows: pd.DataFrame) -> Chart:
    """What runs forgot of several texts: a mark per run and text, with its 95 % interval over documents.

    Nats per token; a line of marks per text, the text most forgotten on top. `rows` are those of `last_measured`, of a
    table `with_series`.
    """
    order = rows.groupby("corpus")["kl_base_tuned"].mean().sort_values(ascending=False).index
    texts = [visible(name) for name in order]
    stroke, fill, shape = by_series(rows["series"])
    values = [_mark(row) for row in rows.sort_values(["r", "run"]).to_dict("records")]
    drawn, x = inline(values), alt.X("value:Q", title=f"Forgetting, KL(base || tuned) ({UNIT})", scale=_FROM_0)
    y = alt.Y("text:N", title=None, sort=texts, axis=alt.Axis(grid=True, labelLimit=200, labelColor=LIGHT["ink"]))
    offset = alt.YOffset("series:N", sort=seen(rows["series"]), scale=alt.Scale(paddingOuter=0.6))
    told = {
        "run": "Run",
        "series": series_title(rows["series"]),
        "step": "Step",
        "text": "Text",
        "said": "Forgetting",
        "ends": "95 % interval",
    }
    whiskers = [row for row in values if math.isfinite(row["low"])]
    rules = [
        inline(whiskers).mark_rule(strokeWidth=1.4).encode(
            alt.X("low:Q"), alt.X2("high"), y, offset, stroke, opacity=isolated(0.7, 0.1)
        )
    ] if whiskers else []  # fmt: skip
    marks = isolating(
        drawn.mark_point(size=52, strokeWidth=1.3, fillOpacity=0.85, aria=False).encode(
            x, y, offset, stroke, fill, shape, opacity=isolated(1, 0.1),
            tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in told.items()],
        )
    )  # fmt: skip
    return styled([*rules, marks], title="Forgetting by text, at the end of each run", height=len(texts) * ROW)


_FROM_0 = alt.Scale(zero=True, nice=TICKS)


def _mark(row: Mapping[Any, Any]) -> dict[str, Any]:
    kl = Estimate(value=row["kl_base_tuned"], stderr=row["kl_base_tuned_stderr"], n=int(row["documents"]))
    low, high = kl.interval(LEVEL)
    known = math.isfinite(low)
    return {
        "run": visible(row["run"]), "series": row["series"], "step": int(row["step"]), "text": visible(row["corpus"]),
        "value": kl.value, "low": max(low, 0.0) if known else low, "high": high, "said": str(kl),
        "ends": f"{rounded(max(low, 0.0), kl.stderr)} to {rounded(high, kl.stderr)}" if known else "none",
    }  # fmt: skip


def _shown(table: pd.DataFrame, laws: Laws | None, corpus: str | None = None) -> pd.DataFrame:
    """Every measurement of one retained text, saying which the laws used."""
    corpus = corpus or (laws.corpus if laws else None)
    shown = points(table, corpus=corpus, skip_fraction=0)
    if laws is not None:
        used = points(table, corpus=corpus, skip_fraction=laws.skip_fraction).set_index(["run", "steps"]).index
        shown["in_fit"] = shown.set_index(["run", "steps"]).index.isin(used) & shown["run"].isin(laws.runs)
    retained = (table["role"] == "retain") & (table["corpus"] == shown["corpus"].iloc[0])
    for quantity, rows in (("target_nll", table["role"] == "target"), ("kl_base_tuned", retained)):
        counted = table.loc[rows, ["run", "step", "documents"]].set_axis(
            ["run", "steps", f"{quantity}_documents"], axis="columns"
        )
        shown = shown.merge(counted, on=["run", "steps"], how="left", validate="one_to_one")
    series = dict(zip(table["run"], table["series"], strict=True))
    shown["series"] = shown["run"].map(series).astype(table["series"].dtype)
    shown["run"] = shown["run"].map(visible)
    return shown


def _panels(table: pd.DataFrame, laws: Laws | None) -> dict[str, Chart]:
    """Forgetting against loss for each method by itself, where there are several; named by number."""
    if laws is None:
        return {}
    done = table[table["state"] == "done"]
    methods = sorted(set(done["method"]))
    drawn: dict[str, Chart] = {}
    for method in methods if len(methods) > 1 else ():
        part = done[done["method"] == method]
        try:
            used = points(commonest(part), corpus=laws.corpus, skip_fraction=laws.skip_fraction)
            own = {"kl_base_tuned": fit_law(LINE, used, "kl_base_tuned", huber=math.inf)}
        except FitError:  # too few points for a line: the marks stand alone
            own = {}
        of = replace(laws, lines=own, runs=tuple(used["run"].unique()) if own else ())
        chart = loss_against_forgetting(_shown(part, of), of)
        drawn[f"{MAIN}-{len(drawn) + 1}"] = _named(chart, visible(method))
    return drawn


def _named(chart: Chart, what: str) -> Chart:
    named: Chart = chart.properties(title=f"{what}: {str(chart.title)[:1].lower()}{str(chart.title)[1:]}")
    return named
