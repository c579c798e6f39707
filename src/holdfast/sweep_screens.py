"""Sweeps in a terminal: what one will take, how far it is, and how the runs of a folder stand."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from holdfast import files
from holdfast.config import Study, read_study
from holdfast.display import duration, visible
from holdfast.errors import Interrupted
from holdfast.interrupts import stopping
from holdfast.progress import RunStatus, seconds_left
from holdfast.terminal import err, escape, out

if TYPE_CHECKING:
    import pandas as pd

    from holdfast import sweeps, training
    from holdfast.trials import SweepCost


class SweepProgress:
    """Follows a sweep: two bars with an estimate of the end in a terminal, a plain line per measurement elsewhere.

    A class because it holds the display that is redrawn, and when the work began.
    """

    def __init__(self) -> None:
        self._console = err()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._study = self._bars.add_task("study", total=1.0, note="")
        self._run = self._bars.add_task("run", total=1.0, note="")
        self._began, self._runs_before = math.nan, 0
        self._losses: list[float] = []
        self._forgetting: dict[str, str] = {}

    def __enter__(self) -> SweepProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, at: sweeps.Progress) -> None:
        """Show the next thing that happened."""
        name = f"run {at.index + 1}/{at.runs}, r = {at.run.adapter.r}"
        if at.state != "in progress":
            self._show_end(at, name)
        elif at.event is None:
            if math.isnan(self._began):
                self._began, self._runs_before = time.monotonic(), at.index
            self._losses, self._forgetting = [], {}
            self._bars.update(self._run, description=name, completed=0, note="preparing")
        else:
            self._show_event(at, at.event, name)

    def _show_event(self, at: sweeps.Progress, event: training.Event, name: str) -> None:
        made = at.index + event.share
        left = (time.monotonic() - self._began) / (made - self._runs_before) * (at.runs - made)
        loss = "" if math.isnan(event.loss) else f", loss {event.loss:.3f}"
        self._bars.update(self._study, completed=made / at.runs, note=f"about {duration(left)} left")
        self._bars.update(self._run, completed=event.share, note=f"step {event.step}/{at.run.steps}{loss}")
        if event.report is None:
            return
        if event.role == "target":
            self._losses.append(event.report.nll.value)
            return
        self._forgetting[event.report.corpus] = str(event.report.kl_base_tuned)
        if not self._console.is_terminal:
            self._console.print(
                f"{name}, step {event.step}/{at.run.steps}: held-out loss {self._losses[-1]:.3f}, forgetting "
                f"{event.report.kl_base_tuned} on {visible(event.report.corpus)}; about {duration(left)} left",
                markup=False, soft_wrap=True,
            )  # fmt: skip

    def _show_end(self, at: sweeps.Progress, name: str) -> None:
        self._bars.update(self._study, completed=(at.index + 1) / at.runs)
        colour = {"done": "green", "diverged": "yellow", "failed": "red"}[at.state]
        change = f", held-out loss {self._losses[0]:.3f} → {self._losses[-1]:.3f}" if self._losses else ""
        change += "".join(f", forgetting {kl} on {escape(corpus)}" for corpus, kl in self._forgetting.items())
        reason = f": {escape(at.reason)}" if at.reason else ""
        self._console.print(f"{name}: [{colour}]{at.state}[/]{reason}{change}  [dim]{at.run.name}[/]", soft_wrap=True)


def sweep_with_progress(
    study: Study | Path, *, output_dir: Path, device: str, retry_failed: bool = False
) -> pd.DataFrame:
    """`sweeps.sweep`, after an estimate of what it takes, followed on stderr and stopped cleanly by a signal."""
    from holdfast import sweeps

    study = study if isinstance(study, Study) else read_study(study)
    cost = estimated(study, output_dir=output_dir, device=device, retry_failed=retry_failed)
    began = time.monotonic()
    with SweepProgress() as progress, stopping() as stop:
        try:
            table = sweeps.sweep(
                study, out=output_dir, device=device, retry_failed=retry_failed, stop=stop, tell=progress
            )  # fmt: skip
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command goes on from here", exit_code=error.exit_code) from None
    if cost.runs:
        took = time.monotonic() - began
        err().print(f"took {duration(took)}; {_times(took / cost.seconds)} the estimate of {duration(cost.seconds)}")
    return table


def estimated(study: Study, *, output_dir: Path, device: str, retry_failed: bool) -> SweepCost:
    """What a sweep will take, said on stderr; refused where the disk has not the room."""
    from holdfast import trials

    with files.refusing(output_dir):
        files.make_folder(output_dir)
        files.check_writable(output_dir)
    cost = trials.estimate_cost(study, out=output_dir, device=device, retry_failed=retry_failed)
    if cost.runs:
        err().print(
            f"{cost.runs} runs to make: about {duration(cost.seconds)}, {cost.tokens:,} training tokens, "
            f"{cost.flop:.2g} FLOP, {_size(cost.memory_bytes)} of memory, {_size(cost.disk_bytes)} of disk "
            f"({_size(cost.free_bytes)} free)".replace("e+", "e"),
            soft_wrap=True,
        )  # fmt: skip
    else:
        err().print("nothing to make: every run has ended")
    files.check_room(output_dir, cost.disk_bytes)
    return cost


COLOURS = {
    "done": "green", "running": "cyan", "stopped": "yellow", "waiting": "dim", "failed": "red", "diverged": "yellow",
    "damaged": "red",
}  # fmt: skip


def show_status(runs: Sequence[RunStatus]) -> None:
    """A line for each run, and what is left of them all."""
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    for heading in ("run", "method", "r", "rate", "seed", "", "step", "left", "held-out loss", "forgetting"):
        table.add_column(heading, justify="right" if heading in ("r", "rate", "seed", "step", "left") else "left")
    for run in sorted(runs, key=lambda one: list(COLOURS).index(one.standing)):
        about = [escape(str(run.about.get(key, ""))) for key in ("method", "r", "learning_rate", "seed")]
        until = "" if run.seconds_left is None else duration(run.seconds_left)
        losses = f"{run.losses[0]:.3f} → {run.losses[-1]:.3f}" if len(run.losses) > 1 else ""
        forgotten = ", ".join(f"{kl[-1]:.3f} {escape(name)}" for name, kl in run.forgetting.items() if len(kl) > 1)
        state = f"[{COLOURS[run.standing]}]{run.standing}[/]" + (f" [dim]pid {run.pid}[/]" if run.pid else "")
        step = f"{run.step}/{run.steps}" if run.steps else ""
        table.add_row(escape(run.run), *about, state, step, until, losses, forgotten)
    out().print(table)
    for run in runs:
        if run.reason:
            out().print(f"{escape(run.run)} {run.standing}: {escape(run.reason)}", soft_wrap=True)
    counts = {name: sum(run.standing == name for run in runs) for name in COLOURS}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    left, unmade = seconds_left(runs), len(runs) > counts["done"] + counts["failed"] + counts["diverged"]
    out().print(f"{len(runs)} runs: {said}" + (f"; about {duration(left)} left" if left and unmade else ""))


def _size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} GB"


def _times(ratio: float) -> str:
    return f"{100 * ratio:.0f} % of"
