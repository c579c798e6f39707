"""How the runs of a folder stand, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast.display import duration
from holdfast.progress import RunStatus, seconds_left, status
from holdfast.terminal import escape, out

COLOURS = {
    "done": "green", "running": "cyan", "stopped": "yellow", "waiting": "dim", "failed": "red", "diverged": "yellow",
    "damaged": "red",
}  # fmt: skip


UNMADE = ("running", "stopped", "waiting")


def show_status(runs: Sequence[RunStatus]) -> None:
    """A line for each run, and what is left of them all."""
    out().print(standings(runs))


def watch_status(root: Path, *, every_s: float = 2.0) -> None:
    """The same, kept current until every run has ended or Ctrl-C."""
    with Live(console=out(), auto_refresh=False) as live:
        while True:
            runs = status(root)
            live.update(standings(runs), refresh=True)
            if not any(run.standing in UNMADE for run in runs):
                return
            time.sleep(every_s)


def standings(runs: Sequence[RunStatus]) -> Group:
    """Runs side by side by what they differ in; what they share is said once."""
    keys = list(dict.fromkeys(key for run in runs for key in run.about))
    values = {key: list(dict.fromkeys(str(run.about[key]) for run in runs if run.about)) for key in keys}
    table = _Standings(runs=runs, varied=tuple(key for key in keys if len(values[key]) > 1))
    reasons = (f"{escape(run.run)} {run.standing}: {escape(run.reason)}" for run in runs if run.reason)
    counts = {name: sum(run.standing == name for run in runs) for name in COLOURS}
    left = seconds_left(runs) if any(counts[name] for name in UNMADE) else None
    said = f"{len(runs)} run{'s' * (len(runs) > 1)}: " + ", ".join(
        f"{count} {name}" for name, count in counts.items() if count
    )
    alike = ", ".join(f"{key.replace('_', ' ')} {escape(values[key][0])}" for key in keys if len(values[key]) == 1)
    last = f"{said}{f'; about {duration(left)} left' if left else ''}{f'  [dim]all with {alike}[/]' if alike else ''}"
    return Group(table, *(Text.from_markup(line, emoji=False) for line in (*reasons, last)))


@dataclass(frozen=True, kw_only=True)
class _Standings:
    """A line for each run with as much of it as a terminal is wide: first go curves, then what can be done without."""

    runs: Sequence[RunStatus]
    varied: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for curves, spare in ((True, True), (False, True), (False, False)):
            table = self._table(curves=curves, spare=spare)
            if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
                break
        yield table

    def _table(self, *, curves: bool, spare: bool) -> Table:
        """`spare`: with whose a run is and what is left of it."""
        table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
        texts = list(dict.fromkeys(name for run in self.runs for name in run.forgetting))
        table.add_column("run", no_wrap=True)
        for key in self.varied:
            words = any(isinstance(run.about.get(key), str) for run in self.runs)  # which fold, a number is never cut
            heading = key if spare else key.removeprefix("learning_")
            table.add_column(heading.replace("_", "\n"), justify="right", overflow="fold", no_wrap=not words)
        for heading in ("", "step", "left")[: 3 if spare else 2]:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        forgetting = "forgetting" if curves else "KL"
        for heading in (
            "held-out\nloss" if spare else "held-\nout\nloss",
            *(f"{forgetting},\n{escape(name)}" for name in texts),
        ):
            if spare:
                table.add_column(heading, justify="right", no_wrap=True)
            else:
                table.add_column(heading, justify="right", width=6, overflow="fold")
        targets = _last_parts([str(run.about.get("target", "")) for run in self.runs])
        for run in sorted(self.runs, key=lambda one: list(COLOURS).index(one.standing)):
            about = run.about | {"target": targets[str(run.about.get("target", ""))]}
            state = f"[{COLOURS[run.standing]}]{run.standing}[/]"
            left = [f"{run.step}/{run.steps}" if run.steps else ""]
            if spare:
                state += f" [dim]pid {run.pid}[/]" if run.pid else ""
                left.append("" if run.seconds_left is None else duration(run.seconds_left))
            numbers = (_course(one, curves=curves) for one in (run.losses, *map(run.forgetting.get, texts)))
            table.add_row(
                escape(run.run if spare else run.run[:8]),
                *(escape(str(about.get(key, ""))) for key in self.varied),
                state,
                *left,
                *numbers,
            )
        return table


def _last_parts(paths: Sequence[str]) -> dict[str, str]:
    """The last part of each path, where that tells them apart."""
    short = {path: path.rstrip("/").rpartition("/")[2].removeprefix("builtin:") for path in paths}
    return short if len(set(short.values())) == len(short) else {path: path for path in paths}


def _course(values: Sequence[float] | None, *, curves: bool) -> str:
    """Numbers over time as a person sees them at a glance, and the last of them; no number where none has come yet."""
    if not values or len(values) < 2:
        return ""
    low, high = min(values), max(values)
    bars = "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low or 1))] for value in values[-12:])
    return f"{bars} {values[-1]:.3f}" if curves else f"{values[-1]:.3f}"
