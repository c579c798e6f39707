"""A sweep followed on stderr while it runs: how far it is, what it measures, what is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from holdfast.display import duration, visible
from holdfast.methods import named
from holdfast.terminal import err, escape

if TYPE_CHECKING:
    from holdfast import sweeps, training

FIRST = 0.25
"""Share of the work after which its own pace says what is left: at first it has prepared more than it has made."""


class SweepProgress:
    """Follows a sweep: two bars with an estimate of the end in a terminal, a plain line per measurement elsewhere.

    What is left is told by an estimate of the whole, `expected_s`, where there is one, until a quarter is made; then by
    how long that took. A class because it holds the display that is redrawn, and when the work began.
    """

    def __init__(self, expected_s: float = math.nan) -> None:
        self._expected_s = expected_s
        self._console = err()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._study = self._bars.add_task("study", total=1.0, note="")
        self._run = self._bars.add_task("run", total=1.0, note="")
        self._began, self._made_before = math.nan, math.nan
        self._shares: dict[int, float] = {}  # by the number of a run, as are the others: several may be under way
        self._losses: dict[int, tuple[float, float]] = {}  # the base's, and the last measured
        self._forgetting: dict[int, dict[str, str]] = {}

    def __enter__(self) -> SweepProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, at: sweeps.Progress) -> None:
        """Show the next thing that happened."""
        method, r = named(at.run.adapter)
        name = f"run {at.index + 1}/{at.runs}, {method if r is None else f'r = {r}'}"
        if at.state != "in progress":
            self._show_end(at, name)
        elif at.event is None:
            if math.isnan(self._began):
                self._began = time.monotonic()
            self._bars.update(self._run, description=name, completed=0, note="preparing")
        else:
            self._show_event(at, at.event, name)

    def _show_event(self, at: sweeps.Progress, event: training.Event, name: str) -> None:
        self._shares[at.index] = event.share
        made = sum(self._shares.values())
        if math.isnan(self._made_before):  # what an earlier sweep made was not made in our time
            self._made_before = made - (event.share if event.step == 0 else 1e-9)
        left = f"about {duration(self._left_s(at.runs, made))} left" if made > self._made_before + 1e-6 else "going on"
        loss = "" if math.isnan(event.loss) else f", loss {event.loss:.3f}"
        self._bars.update(self._study, completed=made / at.runs, note=left)
        self._bars.update(self._run, completed=event.share, note=f"step {event.step}/{at.run.steps}{loss}")
        if event.report is None:
            return
        if event.role == "target":
            self._losses[at.index] = event.report.base_nll.value, event.report.nll.value
            return
        self._forgetting.setdefault(at.index, {})[event.report.corpus] = str(event.report.kl_base_tuned)
        if not self._console.is_terminal:
            losses = self._losses.get(at.index)
            held_out = f"held-out loss {losses[1]:.3f}, " if losses else ""
            self._console.print(
                f"{name}, step {event.step}/{at.run.steps}: {held_out}forgetting {event.report.kl_base_tuned} on "
                f"{visible(event.report.corpus)}; {left}",
                markup=False, soft_wrap=True,
            )  # fmt: skip

    def _left_s(self, runs: int, made: float) -> float:
        """Seconds to the end of so many runs, of which so many are made."""
        share = (made - self._made_before) / (runs - self._made_before)
        by_pace = (time.monotonic() - self._began) * (1 - share) / share
        if math.isnan(self._expected_s):
            return by_pace
        trust = min(1.0, share / FIRST)
        return trust * by_pace + (1 - trust) * self._expected_s * (1 - share)

    def _show_end(self, at: sweeps.Progress, name: str) -> None:
        self._shares[at.index] = 1.0
        self._bars.update(self._study, completed=sum(self._shares.values()) / at.runs)
        losses, forgetting = self._losses.get(at.index), self._forgetting.get(at.index, {})
        colour = {"done": "green", "diverged": "yellow", "failed": "red"}[at.state]
        change = f", held-out loss {losses[0]:.3f} → {losses[1]:.3f}" if losses else ""
        change += "".join(f", forgetting {kl} on {escape(corpus)}" for corpus, kl in forgetting.items())
        reason = f": {escape(at.reason)}" if at.reason else ""
        self._console.print(f"{name}: [{colour}]{at.state}[/]{reason}{change}  [dim]{at.run.name}[/]", soft_wrap=True)


@contextmanager
def following(
    report_to: Sequence[str], *, out: Path, expected_s: float = math.nan
) -> Iterator[Callable[[sweeps.Progress], None]]:
    """A sweep's `tell`: what happens is shown on stderr and told to trackers, if any are named."""
    with SweepProgress(expected_s) as progress:
        if not report_to:
            yield progress
            return
        from holdfast.integrations.trackers import Tracking

        with Tracking(report_to, out=out) as tracking:

            def tell(at: sweeps.Progress) -> None:
                progress(at)
                tracking(at)

            yield tell
