"""How the runs of a folder stand, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
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
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    table.add_column("run", no_wrap=True)
    for key in (varied := [key for key in keys if len(values[key]) > 1]):
        table.add_column(key.replace("_", "\n"), justify="right")
    for heading in ("", "step", "left", "held-out loss", "forgetting, nats/token"):
        table.add_column(heading, justify="right" if heading in ("step", "left") else "left", no_wrap=True)
    for run in sorted(runs, key=lambda one: list(COLOURS).index(one.standing)):
        about = [escape(str(run.about.get(key, ""))) for key in varied]
        state = f"[{COLOURS[run.standing]}]{run.standing}[/]" + (f" [dim]pid {run.pid}[/]" if run.pid else "")
        step = f"{run.step}/{run.steps}" if run.steps else ""
        until = "" if run.seconds_left is None else duration(run.seconds_left)
        forgotten = (f"{_course(kl)} [dim]{escape(name)}[/]" for name, kl in run.forgetting.items())
        table.add_row(escape(run.run), *about, state, step, until, _course(run.losses), "  ".join(forgotten))
    reasons = (f"{escape(run.run)} {run.standing}: {escape(run.reason)}" for run in runs if run.reason)
    counts = {name: sum(run.standing == name for run in runs) for name in COLOURS}
    left = seconds_left(runs) if any(counts[name] for name in UNMADE) else None
    said = f"{len(runs)} run{'s' * (len(runs) > 1)}: " + ", ".join(
        f"{count} {name}" for name, count in counts.items() if count
    )
    alike = ", ".join(f"{key.replace('_', ' ')} {escape(values[key][0])}" for key in keys if len(values[key]) == 1)
    last = f"{said}{f'; about {duration(left)} left' if left else ''}  [dim]all with {alike}[/]"
    return Group(table, *(Text.from_markup(line, emoji=False) for line in (*reasons, last)))


def _course(values: Sequence[float]) -> str:
    """Numbers over time as a person sees them at a glance, and the last of them."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    bars = "".join("▁▂▃▄▅▆▇█"[round(7 * (value - low) / (high - low or 1))] for value in values[-12:])
    return f"{bars} {values[-1]:.3f}"
