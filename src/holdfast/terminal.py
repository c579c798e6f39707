"""How Holdfast speaks in a terminal: progress with an estimate of when it ends, tables, and plain lines elsewhere.

Results go to stdout, everything else to stderr. Text that came from a file or a model is escaped, never marked up.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from holdfast.display import duration, short_names, visible
from holdfast.evidence import QUANTILES, UNMEASURABLE
from holdfast.stats import rounded

if TYPE_CHECKING:
    from holdfast.errors import HoldfastError
    from holdfast.evidence import CorpusReport
    from holdfast.forgetting import Checkpoint, ForgettingReport
    from holdfast.publishing import Published
    from holdfast.stats import Estimate


def escape(text: str) -> str:
    """Text from elsewhere, shown as it is written: neither markup nor control characters act."""
    return escape_markup(str(visible(text)))


def out() -> Console:
    """Where results go."""
    return Console(highlight=False, emoji=False)


def err() -> Console:
    """Where progress, warnings and errors go."""
    return Console(stderr=True, highlight=False, emoji=False)


def show_error(error: HoldfastError) -> None:
    """One refusal, in as many lines as it has mistakes to name."""
    err().print(f"[bold red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True)


class MeasureProgress:
    """Follows `holdfast.measure`: a bar in a terminal, nothing elsewhere. A class because it holds the bar."""

    def __init__(self) -> None:
        console = err()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bars.add_task("", total=1.0, left="")
        self._began: tuple[float, float] | None = None

    def __enter__(self) -> MeasureProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, what: str, share: float) -> None:
        """Show what is being measured now."""
        if self._began is None and share > 0:  # what was kept of the base counts at once, and would mislead
            self._began = time.monotonic(), share
        left = ""
        if self._began is not None and share > self._began[1]:
            seconds, before = time.monotonic() - self._began[0], self._began[1]
            left = f"about {duration(seconds / (share - before) * (1 - share))} left"
        self._bars.update(self._task, description=escape(what), completed=share, left=left)


def show_measurement(report: ForgettingReport, max_forgetting: float | None) -> None:
    """Forgetting of every model on every text, then of the last model where it lies; then what could be mistaken."""
    names, texts = _names(report.checkpoints), {text.corpus: None for _, text in report.rows()}
    several, grouped = len(names) > 1, len(names) > 1 and len(texts) > 1
    title = f"{len(names)} tuned models" if grouped or not texts else next(iter(texts if several else names.values()))
    out().print(f"[bold]{escape(title)}[/] against {escape(report.base)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading, justify in (("model" if several and not grouped else "text", "left"), *_MEASURED):
        table.add_column(heading, justify=justify, overflow="fold")
    for checkpoint in report.checkpoints:
        if grouped and checkpoint.texts:
            table.add_row(f"[bold]{escape(names[checkpoint.name])}[/]")
        for text in checkpoint.texts.values():
            verdict = text.verdict(max_forgetting)
            said = f"[{_COLOURS[verdict]}]{verdict}[/]" if text.role == "retain" else "[dim]the task itself[/]"
            first = f"  {text.corpus}" if grouped else names[checkpoint.name] if several else text.corpus
            number = f"[bold]{text.kl_base_tuned}[/]"
            table.add_row(escape(first), number, _interval(text), _percent(text.agreement), said)
    out().print(table)
    for name, text in report.quantisation.items():
        out().print(f"quantising alone  {escape(name)}  {text.kl_base_tuned} nats per token, {_interval(text)}")
    for checkpoint in report.checkpoints:
        if checkpoint.failure:
            out().print(f"[red]not measured[/] {escape(names[checkpoint.name])}: {escape(checkpoint.failure)}")
    measured = [checkpoint for checkpoint in report.checkpoints if checkpoint.texts]
    for text in measured[-1].texts.values() if measured else ():
        _show_where(text, names[measured[-1].name] if several else None)
    if len(measured) > 1:
        _show_difference(measured[-2], measured[-1], names)
    show_warnings(str(finding) for finding in report.findings)


_MEASURED: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("forgetting,\nnats/token", "right"), ("\n95 % interval", "right"), ("same next\ntoken", "right"),
    ("\nverdict", "left"),
)  # fmt: skip

_COLOURS = {
    "within budget": "green", "over budget": "bold red", UNMEASURABLE: "yellow", "forgetting measured": "default",
    "identical": "green",
}  # fmt: skip

SHOWN_PASSAGES = 3


def _show_where(text: CorpusReport, model: str | None) -> None:
    """Of one text: the tails, the kinds of token, the passages that fell most; `model` where there are several."""
    amount = f"{text.documents} documents, {text.scored_tokens:,} tokens"
    shows = f"this much text shows differences of {text.minimum_detectable_effect:.2g}"
    whose = f", {escape(model)}" if model else ""
    out().print(f"\n[bold]{escape(text.corpus)}{whose}[/]  [dim]{amount}; {shows}[/]", soft_wrap=True)
    found = {_QUANTILE_NAMES[q]: text.quantile(q) for q in QUANTILES}
    tails = (f"{name} {rounded_estimate(tail)}" for name, tail in found.items() if not math.isnan(tail.value))
    kinds = (f"{name} {rounded_estimate(kl)}" for name, (kl, _) in text.by_kind().items())
    low, high = text.excess_nll.interval()
    grid = Table.grid(padding=(0, 3))
    grid.add_row("  single tokens", ", ".join(tails))
    grid.add_row("  by kind", ", ".join(kinds))
    grid.add_row("  loss on the text", f"{text.nll}, base {text.base_nll}; change {low:+.2g} to {high:+.2g}")
    out().print(grid)
    if text.passages:
        out().print("  passages whose probability fell most (picked, not at random)")
    for passage in text.passages[:SHOWN_PASSAGES]:
        before, after = (re.sub(r"\s+", " ", part) for part in (passage.before[-60:], passage.after[:30]))
        token = escape(passage.token if passage.token.strip() else repr(passage.token))
        out().print(f"    …{escape(before)}[bold]«{token}»[/]{escape(after)}…", soft_wrap=True)
        base_says, tuned_says = (escape(repr(said)) for said in (passage.base_says, passage.tuned_says))
        out().print(
            f"       [dim]{math.exp(-passage.base_nll):.0%} → {math.exp(-passage.nll):.0%}; base would say {base_says} "
            f"({passage.base_says_probability:.0%}), tuned {tuned_says} ({passage.tuned_says_probability:.0%})[/]"
        )


_QUANTILE_NAMES = {0.5: "half below", 0.95: "95 %", 0.99: "99 %", 0.999: "99.9 %"}


def _show_difference(before: Checkpoint, last: Checkpoint, names: Mapping[str, str]) -> None:
    """A paired test between the last two models, on every text."""
    out().print()
    for name, text in last.texts.items():
        if name not in before.texts:
            continue
        difference, p = text.compare(before.texts[name])
        chance = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
        out().print(
            f"{escape(names[last.name])} forgot {difference} nats per token more than {escape(names[before.name])} on "
            f"{escape(name)} [dim](paired by document, {chance})[/]", soft_wrap=True,
        )  # fmt: skip


def _names(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Short ones, each with its step unless it says that itself."""
    names = short_names([checkpoint.name for checkpoint in checkpoints])
    for name, step in ((checkpoint.name, checkpoint.step) for checkpoint in checkpoints):
        names[name] += "" if step is None or str(step) in names[name] else f" (step {step})"
    return names


def model_name(path: str, step: int | None) -> str:
    """The last two parts of a path are enough to know a model by."""
    name = "/".join(path.rstrip("/").split("/")[-2:])
    return name if step is None or str(step) in name else f"{name} (step {step})"


def _interval(text: CorpusReport) -> str:
    kl = text.kl_base_tuned
    low, high = kl.interval()
    return "unknown" if math.isnan(low) else f"{rounded(low, kl.stderr)} to {rounded(high, kl.stderr)}"


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} %"


def rounded_estimate(estimate: Estimate) -> str:
    """A value alone, with the digits its error deserves."""
    return rounded(estimate.value, estimate.stderr)


def show_published(published: Published) -> None:
    """What the page says first, and where it is."""
    if published.laws:
        from holdfast.planning import price_in_words

        reasons = published.plan.reasons if published.plan else (price_in_words(published.laws),)
        for reason in reasons:
            out().print(escape(reason), soft_wrap=True)
    elif published.why_no_laws:
        show_warnings([f"no law was fitted: {published.why_no_laws}"])
    out().print(f"Report: {escape(str(published.page))}", soft_wrap=True)


def show_written(places: Iterable[object]) -> None:
    """Where things were put."""
    for place in places:
        out().print(f"Written: {escape(str(place))}", soft_wrap=True, highlight=False)


def show_kept(places: Sequence[Path]) -> None:
    """What was kept beside runs, and what for; each folder of runs has one."""
    for place in places:
        runs, here = (escape(os.path.relpath(path)) for path in (place.parent.parent, place))
        out().print(f"Kept for [bold]holdfast report {runs}[/]: {here}", soft_wrap=True)


def show_warnings(warnings: Iterable[str]) -> None:
    """Soft trouble, always printed."""
    for warning in warnings:
        err().print(f"[yellow]note[/] {escape(warning)}", soft_wrap=True)
