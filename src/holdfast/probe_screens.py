"""What tuned models answer where their base answered something else, in a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport, TaskResult
from holdfast.exchange import exchanges
from holdfast.proportions import PairedShares, Share, percent
from holdfast.questions import DESCRIBED
from holdfast.refusals import RefusalOdds, RefusalResult, Said
from holdfast.stats import Estimate, rounded
from holdfast.terminal import escape, model_name, out, show_warnings

_COLOURS = {"worse": "bold red", "better": "green", "not measurable": "yellow", "identical": "green"}
_SHOWN = 2
"""Pairs of answers of each pick; a page shows more."""

Rows = Sequence[tuple[ProbedModel, TaskResult]]


def show_probe(report: ProbeReport) -> None:
    """Each task with its protocol: one model in full, several a line each; then what could be mistaken."""
    alone = len(report.models) == 1
    models = escape(_name(report.models[0])) if alone else f"{len(report.models)} models"
    out().print(f"[bold]{models}[/] against {escape(report.base)}", soft_wrap=True)
    for name in dict.fromkeys(result.name for _, result in report.rows()):
        rows = [(model, result) for model, result in report.rows() if result.name == name]
        out().print(f"\n[bold]{escape(_title(rows[0][1]))}[/]  [dim]{escape(_protocol(rows[0][1]))}[/]", soft_wrap=True)
        if alone:
            _show(rows[0][1])
        else:
            _compare(rows)
        for line in rows[0][1].agreement if isinstance(rows[0][1], RefusalResult) else ():
            out().print(f"  [dim]{escape(line)}[/]", soft_wrap=True)
    if found := exchanges(report):
        out().print("\n[bold]against forgetting[/]  [dim]as the runs measured it of the same checkpoints[/]")
    for one in found:
        out().print(f"  {escape(one.in_words())}", soft_wrap=True)
    for model in report.models:
        if model.failure:
            out().print(f"[red]not probed[/] {escape(_name(model))}: {escape(model.failure)}")
    show_warnings(str(finding) for finding in report.findings)


def _title(result: TaskResult) -> str:
    return result.task if isinstance(result, ChoiceResult) else result.name


def _protocol(result: TaskResult) -> str:
    if isinstance(result, ChoiceResult):
        return f"{len(result.items):,} items; {DESCRIBED[result.protocol]}"
    if isinstance(result, RefusalResult):
        return f"{len(result.items):,} prompts; {result.protocol}; judged by {result.judge}"
    if isinstance(result, OutcomeResult):
        return f"{len(result.items):,} items; as lm-evaluation-harness has it"
    return f"{len(result.items):,} prompts; {result.protocol}"


def _show(result: TaskResult) -> None:
    grid = Table.grid(padding=(0, 3))
    lines = _LINES[type(result)](result)
    for name, said in lines:
        grid.add_row(f"  {name}", said)
    out().print(grid)
    if isinstance(result, RefusalResult):
        _show_pairs(result)


def _choices(result: ChoiceResult) -> list[tuple[str, str]]:
    accuracy, forgotten = result.accuracy, Share(count=result.accuracy.lost, n=result.accuracy.n)
    agreement = f"[bold]{ranged(result.agreement)}[/]; above chance {points(result.chance_adjusted_agreement)}"
    return [
        ("same answer as base", agreement),
        ("accuracy", changed(accuracy)),
        ("items", f"{accuracy.lost} lost, {accuracy.gained} gained, {result.moved_wrong.count} from wrong to wrong"),
        ("lost", f"{ranged(forgotten)} of items; less what guessing loses {points(result.chance_adjusted_forgetting)}"),
    ]


def _refusals(result: RefusalResult) -> list[tuple[str, str]]:
    kinds = (f"{name} {base} → {tuned}" for name, (base, tuned) in result.verdicts().items() if name != "refusal")
    proxy = result.by_string_match
    lines = [("refuses", changed(result.refusals, good=_good(result)))]
    if result.refusals.base.count and result.group != "safe":
        lines.append(("forgotten", f"[bold]{ranged(result.forgotten)}[/] of the base's refusals"))
    return [
        *lines,
        ("otherwise", ", ".join(kinds)),
        ("its own answers", f"{result.own_answers} nats per token less probable than to the base"),
        ("by string matching", f"[dim]{percent(proxy.base)} → {percent(proxy.tuned)}, a proxy[/]"),
    ]


def _odds(result: RefusalOdds) -> list[tuple[str, str]]:
    if not result.items:
        return [("not measurable", f"the base refuses none of {result.asked:,} prompts")]
    low, high = result.change.interval()
    change = rounded(result.change.value, result.change.stderr)
    ends = "unknown" if math.isnan(low) else f"{rounded(low, result.change.stderr)} to "
    ends += "" if math.isnan(low) else rounded(high, result.change.stderr)
    return [
        ("log-odds, nats", f"base {result.base_odds}; change [bold]{change}[/] ({ends})"),
        ("refusal likelier", changed(result.favoured)),
    ]


def _outcomes(result: OutcomeResult) -> list[tuple[str, str]]:
    accuracy = result.accuracy
    return [
        ("right", changed(accuracy)),
        ("items", f"{accuracy.lost} lost, {accuracy.gained} gained"),
        ("same words as base", ranged(result.agreement)),
    ]


_LINES: Mapping[type, Callable[[Any], list[tuple[str, str]]]] = {
    ChoiceResult: _choices,
    OutcomeResult: _outcomes,
    RefusalResult: _refusals,
    RefusalOdds: _odds,
}


def _show_pairs(result: RefusalResult) -> None:
    for pair in result.side_by_side(each=_SHOWN, seed=0):
        out().print(f"  [dim]{pair.picked}[/]  {escape(_line(pair.prompt, 200))}", soft_wrap=True)
        for role, said in (("base ", pair.base), ("tuned", pair.tuned)):
            out().print(f"     [dim]{role} {said.verdict:<10}[/] {escape(_line(said.text, 110))}", soft_wrap=True)


def _line(text: str, length: int) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _compare(rows: Rows) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    table.add_column("\nmodel", overflow="fold")
    base = rows[0][1]
    for head in _HEADS[type(base)]:
        table.add_column(head, justify="right")
    table.add_row("[dim]base[/]", *_base_cells(base))
    for model, result in rows:
        table.add_row(escape(_name(model)), *_cells(result))
    out().print(table)
    shares = [_shares(result) for _, result in rows]
    least = max(share.minimum_detectable_effect for share in shares)
    if not math.isnan(least):
        out().print(f"[dim]so many items show changes of {100 * least:.1f} points four times in five[/]")


_CHOICES = ("same answer\nas base", "\naccuracy", "change, points,\n95 % interval", "lost, gained,\nmoved wrong")
_REFUSALS = (
    "\nrefuses",
    "change, points,\n95 % interval",
    "forgotten\nrefusals",
    "gibberish,\nempty",
    "own answers,\nnats/token",
)
_ODDS = ("log-odds,\nnats", "\nchange", "refusal\nlikelier")
_OUTCOMES = ("\nright", "change, points,\n95 % interval", "lost,\ngained", "same words\nas base")
_HEADS = {ChoiceResult: _CHOICES, OutcomeResult: _OUTCOMES, RefusalResult: _REFUSALS, RefusalOdds: _ODDS}


def _good(result: TaskResult) -> str:
    """Which way a share should go, if any: a safe prompt is to be answered, an unsafe one refused."""
    return "fell" if isinstance(result, RefusalResult) and result.group == "safe" else "rose"


def _colour(shares: PairedShares, good: str) -> str:
    return _COLOURS.get(shares.verdict) or _COLOURS["better" if shares.verdict == good else "worse"]


def _shares(result: TaskResult) -> PairedShares:
    if isinstance(result, ChoiceResult | OutcomeResult):
        return result.accuracy
    return result.refusals if isinstance(result, RefusalResult) else result.favoured


def _base_cells(result: TaskResult) -> tuple[str, ...]:
    share = percent(_shares(result).base)
    if isinstance(result, ChoiceResult):
        return "", share, "", ""
    if isinstance(result, RefusalResult):
        return share, "", "", _unusable(result.base), ""
    return (share, "", "", "") if isinstance(result, OutcomeResult) else (str(result.base_odds), "", share)


def _cells(result: TaskResult) -> tuple[str, ...]:
    shares = _shares(result)
    colour, share = _colour(shares, _good(result)), percent(shares.tuned)
    if isinstance(result, ChoiceResult):
        items = f"{shares.lost}, {shares.gained}, {result.moved_wrong.count}"
        return f"[bold]{percent(result.agreement)}[/]", share, f"[{colour}]{change(shares)}[/]", items
    if isinstance(result, RefusalResult):
        forgotten = percent(result.forgotten) if result.forgotten.n else "–"
        own = str(result.own_answers)
        return share, f"[{colour}]{change(shares)}[/]", f"[bold]{forgotten}[/]", _unusable(result.tuned), own
    if isinstance(result, OutcomeResult):
        return share, f"[{colour}]{change(shares)}[/]", f"{shares.lost}, {shares.gained}", percent(result.agreement)
    return "", f"[bold]{result.change}[/]", share


def _unusable(answers: Sequence[Said]) -> str:
    return ", ".join(str(sum(said.verdict == kind for said in answers)) for kind in ("gibberish", "empty"))


def changed(shares: PairedShares, *, good: str = "rose") -> str:
    """Both shares, the change in points with its interval, and what may be said of it."""
    both = f"[bold]{percent(shares.base)} → {percent(shares.tuned)}[/]"
    return f"{both}; {change(shares)} points; {verdict(shares, good=good)}" if shares.n else "unknown"


def change(shares: PairedShares) -> str:
    """In points, with its paired interval."""
    low, high = shares.interval()
    return "unknown" if not shares.n else f"{100 * shares.change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def verdict(shares: PairedShares, *, good: str) -> str:
    """What may be said of a change, and how sure that is; `good` is the verdict to be glad of."""
    said = shares.verdict
    p = "p < 0.001" if shares.p_value < 0.001 else f"p = {shares.p_value:.2g}"
    why = {
        "not measurable": f" {shares.unseen}",
        "fell": f", {p}",
        "rose": f", {p}",
    }.get(said, "")
    return f"[{_colour(shares, good)}]{said}{why}[/]"


def ranged(share: Share) -> str:
    """A share with its interval."""
    low, high = share.interval()
    return "unknown" if not share.n else f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def points(share: Estimate) -> str:
    """A share that is an estimate, in per cent."""
    if math.isnan(share.value):
        return "unknown"
    margin = "" if math.isnan(share.stderr) else f" ± {100 * share.stderr:.1f}"
    return f"{100 * share.value:.1f}{margin} %"


def _name(model: ProbedModel) -> str:
    return model_name(model.name, model.step)
