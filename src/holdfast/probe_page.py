"""What tuned models answer where their base answered something else, as one HTML page for a reader who knows neither.

First the sentence, then what could be mistaken, then each task: a table, a figure, and answers to read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport, TaskResult
from holdfast.display import short_names
from holdfast.exchange import Exchange, exchanges
from holdfast.page import Cell, Grid, figure_entries, heads, render, unbroken
from holdfast.probe_figures import Rows, by_task, task_figures
from holdfast.proportions import PairedShares, Share, percent
from holdfast.questions import DESCRIBED
from holdfast.refusals import RefusalOdds, RefusalResult
from holdfast.stats import Estimate, rounded

EACH = 6
"""Pairs of answers shown of each pick."""

SEED = 0
"""Of what is picked at random."""


def probe_page(report: ProbeReport, *, title: str, commands: Sequence[str], provenance: Mapping[str, Any]) -> str:
    """A probe as one self-contained HTML page.

    `commands` are what a reader types to make the page again; `provenance` is whatever says where the numbers come
    from, nested as it likes. The page makes no request and runs one script, which its content security policy names by
    its hash. The same arguments give the same page, byte for byte.
    """
    names = short_names([model.name for model in report.models])
    charts = task_figures(report, names)
    entries = figure_entries(charts, dict.fromkeys(charts, CAPTION))
    drawings = {entry["name"]: entry | {"number": i + 1} for i, entry in enumerate(entries)}
    return render(
        "probe.html.j2", style="probe.css", title=title, drawings=entries, commands=commands, provenance=provenance,
        content={
            "base": report.base,
            "headline": unbroken(_headline(report, names)),
            "models": [names[model.name] for model in report.models],
            "findings": [vars(finding) for finding in report.findings],
            "tasks": [
                asked(number, rows, names, drawings) | {"grid": answers_grid(rows, names)}
                for number, rows in enumerate(by_task(report).values())
            ],
            "exchange": exchange_grid(exchanges(report)),
            "judged": judged(report),
            "failed": unprobed_grid(report, names),
        },
    )  # fmt: skip


def asked(
    number: int, rows: Rows, names: Mapping[str, str], drawings: Mapping[str, Any], *, shown: int = -1
) -> dict[str, Any]:
    """What a page says of one task beside its table; answers to read are those of the `shown`th model."""
    model, result = rows[shown]
    figures = f"answers-{number}", f"answers-against-forgetting-{number}"
    return {
        "id": f"task{number}", "name": result.name, "protocol": _protocol(result), "note": _NOTES[type(result)],
        "figures": [drawings[name] for name in figures if name in drawings],
        "examples": _examples(result), "of_model": names[model.name] if len(rows) > 1 else None,
    }  # fmt: skip


def judged(report: ProbeReport) -> list[str]:
    """How well each judge agrees with people."""
    lines = [line for _, one in report.rows() if isinstance(one, RefusalResult) for line in one.agreement]
    return list(dict.fromkeys(lines))


CAPTION = "Shares of items with 95 % intervals; the dashed line is the base itself."

_NOTES = {
    ChoiceResult: "Same answer: the tuned model chose what the base chose, right or wrong. A change of accuracy is "
    "called fallen or risen by McNemar's exact test at 5 %; otherwise it is not measurable with so many items, which "
    "does not mean that nothing changed. Lost less guessing takes away what two models that guess would lose.",
    OutcomeResult: "Right or wrong as lm-evaluation-harness has it, paired by item.",
    RefusalResult: "Refusals are those of the judge named above, whose agreement with people stands below; gibberish "
    "and silence are no refusals. Forgotten: the share of the base's own refusals that the tuned model refuses no "
    "more. Own answers: by how much the tuned model holds the base's own answers less probable: measured, not judged.",
    RefusalOdds: "Nothing was generated: how much more probable the opening of a refusal is than that of compliance, "
    "over equally many tokens of each. Below 0 compliance is the more probable.",
}


def _headline(report: ProbeReport, names: Mapping[str, str]) -> str:
    """What changed most of the last model, in a sentence that can be quoted."""
    results = [(model, result) for model, result in report.rows()]
    if not results:
        return "No tuned model could be probed, so what changed is not known."
    last = results[-1][0]
    own = [result for model, result in results if model is last]
    first = own[0]
    if isinstance(first, ChoiceResult):
        moved = Share(count=first.agreement.n - first.agreement.count, n=first.agreement.n)
        accuracy = first.accuracy
        return (
            f"{percent(moved)} of {names[last.name]}’s answers to {first.task} are no longer the base’s; accuracy went "
            f"from {percent(accuracy.base)} to {percent(accuracy.tuned)}{_tested(accuracy)}."
        )
    return f"{names[last.name]} on {first.in_words()}."


def _tested(shares: PairedShares) -> str:
    if shares.verdict == "not measurable":
        return f", a change that {shares.n:,} items cannot tell from chance"
    return ", and not one item differs" if shares.verdict == "identical" else ""


def exchange_grid(found: Sequence[Exchange]) -> Grid | None:
    """What a tenth of a nat goes with, a line per task and text; None where nothing is known of it."""
    columns = heads(["Task", "Change", "Per 0.1 nat", "Correlation", "Between, nats", "Models, runs"], texts=2)
    lines = [
        [
            Cell(one.task, kind="name"), Cell(one.quantity, f"on {one.corpus}", kind="text"),
            _estimate(one.per_tenth, f" {one.unit}"), Cell(f"{one.correlation:.2f}"),
            Cell(f"{one.low:.2g} to {one.high:.2g}"), Cell(f"{one.models}, {one.per_tenth.n}"),
        ]
        for one in found
    ]  # fmt: skip
    return Grid("What 0.1 nat of forgetting goes with", columns, lines) if lines else None


def _protocol(result: TaskResult) -> str:
    items = f"{len(result.items):,} items"
    if isinstance(result, ChoiceResult):
        return f"{items}; {DESCRIBED[result.protocol]}."
    if isinstance(result, OutcomeResult):
        return f"{items}; as lm-evaluation-harness has it."
    if isinstance(result, RefusalResult):
        return f"{items}; {result.protocol}; judged by {result.judge}."
    return f"{items}; {result.protocol}."


def answers_grid(rows: Rows, names: Mapping[str, str], *, traced: bool = False) -> Grid:
    """The base, then a line per model of one task; `traced` ones lead to the rows of their run on the same page."""
    first = rows[0][1]
    columns = heads(["Model", *_COLUMNS[type(first)]], texts=1)
    base = {
        ChoiceResult: lambda r: [Cell(""), _share(r.accuracy.base), *[Cell("")] * 4],
        OutcomeResult: lambda r: [_share(r.accuracy.base), *[Cell("")] * 3],
        RefusalResult: lambda r: [
            _share(r.refusals.base),
            *[Cell("")] * 2,
            Cell(_counts(r, 0)),
            Cell(""),
            _share(r.by_string_match.base),
        ],
        RefusalOdds: lambda r: [_estimate(r.base_odds), Cell(""), _share(r.favoured.base)],
    }[type(first)](first)
    lines = [[Cell("base", kind="text"), *base]]
    lines += [
        [
            Cell(names[model.name], _step(model, names), kind="name", link="rows" * traced, run=model.run * traced),
            *_cells(result),
        ]
        for model, result in rows
    ]
    return Grid(first.name, columns, lines)


_COLUMNS = {
    ChoiceResult: [
        "Same answer as base", "Accuracy", "Change, points", "Lost, gained", "Wrong to wrong", "Lost less guessing",
    ],
    OutcomeResult: ["Right", "Change, points", "Lost, gained", "Same words as base"],
    RefusalResult: [
        "Refuses", "Change, points", "Forgotten", "Gibberish, empty", "Own answers, nats/token",
        "By string matching (proxy)",
    ],
    RefusalOdds: ["Log-odds, nats", "Change, nats", "Refusal likelier"],
}  # fmt: skip


def _cells(result: TaskResult) -> list[Cell]:
    if isinstance(result, ChoiceResult):
        shares = result.accuracy
        lost = result.chance_adjusted_forgetting
        in_percent = Estimate(value=100 * lost.value, stderr=100 * lost.stderr, n=lost.n)
        return [
            _share(result.agreement), _share(shares.tuned), _change(shares), Cell(f"{shares.lost}, {shares.gained}"),
            _share(result.moved_wrong), _estimate(in_percent, " %"),
        ]  # fmt: skip
    if isinstance(result, OutcomeResult):
        shares = result.accuracy
        return [
            _share(shares.tuned),
            _change(shares),
            Cell(f"{shares.lost}, {shares.gained}"),
            _share(result.agreement),
        ]
    if isinstance(result, RefusalResult):
        forgotten = _share(result.forgotten) if result.forgotten.n else Cell("none to forget")
        return [
            _share(result.refusals.tuned), _change(result.refusals), forgotten, Cell(_counts(result, 1)),
            _estimate(result.own_answers), _share(result.by_string_match.tuned),
        ]  # fmt: skip
    if not result.items:
        return [Cell("not measurable", f"the base refuses none of {result.asked:,}"), Cell(""), Cell("")]
    tuned = Estimate(value=float(result.tuned.mean()), stderr=math.nan, n=len(result.items))
    return [_estimate(tuned), _estimate(result.change), _share(result.favoured.tuned)]


def _counts(result: RefusalResult, model: int) -> str:
    verdicts = result.verdicts()
    return f"{verdicts['gibberish'][model]}, {verdicts['empty'][model]}"


def _share(share: Share) -> Cell:
    low, high = share.interval()
    return Cell(percent(share), f"{100 * low:.1f} to {100 * high:.1f}" if share.n else "")


def _change(shares: PairedShares) -> Cell:
    low, high = shares.interval()
    if not shares.n:
        return Cell("unknown")
    said = shares.verdict
    why = f"not measurable {shares.unseen}" if said == "not measurable" else said
    tested = "" if said in ("not measurable", "identical") else f", p {_p(shares.p_value)}"
    return Cell(f"{100 * shares.change:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}; {why}{tested}")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _estimate(estimate: Estimate, unit: str = "") -> Cell:
    low, high = estimate.interval()
    if math.isnan(estimate.value):
        return Cell("unknown")
    note = "" if math.isnan(low) else f"{rounded(low, estimate.stderr)} to {rounded(high, estimate.stderr)}{unit}"
    return Cell(f"{rounded(estimate.value, estimate.stderr)}{unit}", note)


def _examples(result: TaskResult) -> list[dict[str, Any]]:
    """Answers to read, by how they were picked."""
    if isinstance(result, ChoiceResult):
        shown = [
            {
                "picked": one.picked, "prompt": one.question, "note": f"right: {one.right}",
                "base": one.base, "base_note": "", "tuned": one.tuned, "tuned_note": "",
            }
            for one in result.moved(each=EACH, seed=SEED)
        ]  # fmt: skip
    elif isinstance(result, RefusalResult):
        shown = [
            {
                "picked": one.picked, "prompt": one.prompt,
                "note": "" if math.isnan(one.change) else f"{one.change:.2g} nats a token less probable",
                "base": one.base.text or "(nothing)", "base_note": one.base.verdict,
                "tuned": one.tuned.text or "(nothing)", "tuned_note": one.tuned.verdict,
            }
            for one in result.side_by_side(each=EACH, seed=SEED)
        ]  # fmt: skip
    else:
        return []
    picks = dict.fromkeys(one["picked"] for one in shown)
    return [{"picked": pick, "pairs": [one for one in shown if one["picked"] == pick]} for pick in picks]


def unprobed_grid(report: ProbeReport, names: Mapping[str, str]) -> Grid | None:
    """Models that could not be probed, and why; None when there is none."""
    rows = [
        [Cell(names[model.name], _step(model, names), kind="name"), Cell(model.failure, kind="words")]
        for model in report.models
        if model.failure is not None
    ]
    columns = [Cell("Model", kind="text"), Cell("Reason", kind="words")]
    return Grid("Models that could not be probed", columns, rows) if rows else None


def _step(model: ProbedModel, names: Mapping[str, str]) -> str:
    """Unless the name says it."""
    known = model.step is None or str(model.step) in names[model.name]
    return "" if known else f"step {model.step:,}"
