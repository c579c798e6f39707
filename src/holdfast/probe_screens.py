"""What tuned models answer where their base answered something else, in a terminal."""

from __future__ import annotations

import math

from rich.table import Table

from holdfast.behaviour import ChoiceResult, ProbedModel, ProbeReport
from holdfast.proportions import PairedShares, Share, percent
from holdfast.questions import DESCRIBED
from holdfast.stats import Estimate
from holdfast.terminal import escape, model_name, out, show_warnings

_COLOURS = {"fell": "bold red", "rose": "green", "not measurable": "yellow", "identical": "green"}


def show_probe(report: ProbeReport) -> None:
    """Each task with its protocol: one model in full, several a line each; then what could be mistaken."""
    alone = len(report.models) == 1
    if alone:
        out().print(f"[bold]{escape(_name(report.models[0]))}[/] against {escape(report.base)}", soft_wrap=True)
    else:
        out().print(f"{len(report.models)} models against {escape(report.base)}", soft_wrap=True)
    for name in dict.fromkeys(result.name for _, result in report.rows()):
        rows = [(model, result) for model, result in report.rows() if result.name == name]
        first = rows[0][1]
        items = f"{len(first.items):,} items; {DESCRIBED[first.protocol]}"
        out().print(f"\n[bold]{escape(first.task)}[/]  [dim]{escape(items)}[/]", soft_wrap=True)
        _show_choices(rows[0][1]) if alone else _compare_choices(rows)
    for model in report.models:
        if model.failure:
            out().print(f"[red]not probed[/] {escape(_name(model))}: {escape(model.failure)}")
    show_warnings(str(finding) for finding in report.findings)


def _show_choices(result: ChoiceResult) -> None:
    accuracy, forgotten = result.accuracy, Share(count=result.accuracy.lost, n=result.accuracy.n)
    grid = Table.grid(padding=(0, 3))
    grid.add_row(
        "  same answer as base",
        f"[bold]{ranged(result.agreement)}[/]; above chance {points(result.chance_adjusted_agreement)}",
    )
    both = f"[bold]{percent(accuracy.base)} → {percent(accuracy.tuned)}[/]"
    grid.add_row("  accuracy", f"{both}; {change(accuracy)} points; {verdict(accuracy)}")
    grid.add_row(
        "  items",
        f"{accuracy.lost} lost, {accuracy.gained} gained, {result.moved_wrong.count} moved from wrong to wrong",
    )
    grid.add_row(
        "  forgotten",
        f"{ranged(forgotten)} of items; less what guessing loses {points(result.chance_adjusted_forgetting)}",
    )
    out().print(grid)


def _compare_choices(rows: list[tuple[ProbedModel, ChoiceResult]]) -> None:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    table.add_column("\nmodel", overflow="fold")
    for head in ("same answer\nas base", "\naccuracy", "change, points,\n95 % interval", "lost, gained,\nmoved wrong"):
        table.add_column(head, justify="right")
    base = rows[0][1].accuracy.base
    table.add_row("[dim]base[/]", "", percent(base), "", "")
    for model, result in rows:
        accuracy = result.accuracy
        table.add_row(
            escape(_name(model)),
            f"[bold]{percent(result.agreement)}[/]",
            percent(accuracy.tuned),
            f"[{_COLOURS[accuracy.verdict]}]{change(accuracy)}[/]",
            f"{accuracy.lost}, {accuracy.gained}, {result.moved_wrong.count}",
        )
    out().print(table)
    measurable = max(result.accuracy.minimum_detectable_effect for _, result in rows)
    out().print(f"[dim]so many items show changes of accuracy of {100 * measurable:.1f} points four times in five[/]")


def change(shares: PairedShares) -> str:
    """In points, with its paired interval."""
    low, high = shares.interval()
    return "unknown" if not shares.n else f"{100 * shares.change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def verdict(shares: PairedShares) -> str:
    """What may be said of a change, and how sure that is."""
    said = shares.verdict
    p = "p < 0.001" if shares.p_value < 0.001 else f"p = {shares.p_value:.2g}"
    why = {
        "not measurable": f" below {100 * shares.minimum_detectable_effect:.1f} with so many items",
        "fell": f", {p}",
        "rose": f", {p}",
    }.get(said, "")
    return f"[{_COLOURS[said]}]{said}{why}[/]"


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
