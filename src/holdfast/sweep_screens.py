"""Sweeps in a terminal: what one will take, how far it is, and how the runs of a folder stand."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from holdfast import files
from holdfast.config import Study, read_study
from holdfast.display import duration, visible
from holdfast.errors import ConfigError, Interrupted, ResourceError
from holdfast.interrupts import Stop, stopping
from holdfast.methods import named
from holdfast.progress import status
from holdfast.status_screens import standings
from holdfast.terminal import err, escape

if TYPE_CHECKING:
    import pandas as pd

    from holdfast import sweeps, training
    from holdfast.costs import SweepCost
    from holdfast.pursuit import Goal, Outlook


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
        self._began, self._made_before = math.nan, math.nan
        self._shares: dict[int, float] = {}  # by the number of a run, as are the others: several may be under way
        self._losses: dict[int, list[float]] = {}
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
        pace = (time.monotonic() - self._began) / max(made - self._made_before, 1e-9)
        left = f"about {duration(pace * (at.runs - made))} left" if made > self._made_before + 1e-6 else "going on"
        loss = "" if math.isnan(event.loss) else f", loss {event.loss:.3f}"
        self._bars.update(self._study, completed=made / at.runs, note=left)
        self._bars.update(self._run, completed=event.share, note=f"step {event.step}/{at.run.steps}{loss}")
        if event.report is None:
            return
        losses = self._losses.setdefault(at.index, [])
        if event.role == "target":
            losses.append(event.report.nll.value)
            return
        self._forgetting.setdefault(at.index, {})[event.report.corpus] = str(event.report.kl_base_tuned)
        if not self._console.is_terminal:
            held_out = f"held-out loss {losses[-1]:.3f}, " if losses else ""
            self._console.print(
                f"{name}, step {event.step}/{at.run.steps}: {held_out}forgetting {event.report.kl_base_tuned} on "
                f"{visible(event.report.corpus)}; {left}",
                markup=False, soft_wrap=True,
            )  # fmt: skip

    def _show_end(self, at: sweeps.Progress, name: str) -> None:
        self._shares[at.index] = 1.0
        self._bars.update(self._study, completed=sum(self._shares.values()) / at.runs)
        losses, forgetting = self._losses.get(at.index), self._forgetting.get(at.index, {})
        colour = {"done": "green", "diverged": "yellow", "failed": "red"}[at.state]
        change = f", held-out loss {losses[0]:.3f} → {losses[-1]:.3f}" if losses else ""
        change += "".join(f", forgetting {kl} on {escape(corpus)}" for corpus, kl in forgetting.items())
        reason = f": {escape(at.reason)}" if at.reason else ""
        self._console.print(f"{name}: [{colour}]{at.state}[/]{reason}{change}  [dim]{at.run.name}[/]", soft_wrap=True)


def sweep_with_progress(
    study: Study | Path, *, output_dir: Path, device: str, retry_failed: bool = False, keep_adapters: bool = False,
    workers: int = 1, shard: int = 1, pack: int = 1, report_to: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """`sweeps.sweep`, after an estimate of what it takes, followed on stderr and stopped cleanly by a signal."""
    study = study if isinstance(study, Study) else read_study(study)
    _check_trackers(report_to, pack=pack)
    cost = estimated(study, output_dir=output_dir, device=device, retry_failed=retry_failed, shard=shard)
    began = time.monotonic()
    options: dict[str, Any] = {
        "out": output_dir, "device": device, "retry_failed": retry_failed, "keep_adapters": keep_adapters,
        "pack": pack,
    }  # fmt: skip
    table = _swept(study, options, workers=workers, shard=shard, report_to=report_to)
    if cost.runs and workers == 1:
        took = time.monotonic() - began
        err().print(f"took {duration(took)}; {_times(took / cost.seconds)} the estimate of {duration(cost.seconds)}")
    return table


def check_shard(study: Study, *, shard: int, device: str, workers: int, pack: int) -> None:
    """Refuse a base divided between processes for a study, or beside options, that it does not go with."""
    if shard > 1:
        from holdfast import models, sharding

        sharding.check(study, shard=shard, device=models.choose_device(device), workers=workers, pack=pack)


def check_place(executor: str, output_dir: Path, *, alone: bool) -> None:
    """Refuse what has no place: an object store, or on a cluster what is for this machine `alone`."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(output_dir)):
        raise ConfigError(
            f"got {output_dir}, expected a folder of a file system: runs append, rename and lock, at --output-dir"
        )
    if executor == "ray" and alone:
        raise ConfigError("got ray, expected processes: --dry-run and --shard are for one machine, at --executor")


def sweep_on_cluster(
    study: Study, *, address: str | None, output_dir: Path, device: str, retry_failed: bool, keep_adapters: bool,
    workers: int | None, pack: int, report_to: Sequence[str], goal: Goal | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The same by workers on a Ray cluster, one of which says first what it will take; no more than a goal allows."""
    from holdfast.integrations.ray import sweep_on_ray

    _check_trackers(report_to, pack=pack)
    console = err()

    def foresee(cost: SweepCost) -> None:
        _say_cost(cost, output_dir, console)
        _check_budget(cost, goal, study)

    call = partial(
        sweep_on_ray, study, out=output_dir, address=address, workers=workers, device=device,
        retry_failed=retry_failed, keep_adapters=keep_adapters, pack=pack, report_to=report_to,
        foresee=foresee, aloud=not console.is_terminal,
    )  # fmt: skip
    with _going_on_later(), stopping() as stop:
        if not console.is_terminal:
            return call(stop=stop)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            return call(stop=stop, look=partial(_refreshed, live, output_dir))


@contextmanager
def _going_on_later() -> Iterator[None]:
    """Who stops a sweep is told how it goes on."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error}; the same command goes on from here", exit_code=error.exit_code) from None


def _check_trackers(report_to: Sequence[str], *, pack: int) -> None:
    if report_to and pack > 1:
        raise ConfigError(f"got {pack} runs side by side, expected 1: trackers follow one after another, at --pack")
    if report_to:
        from holdfast.integrations import trackers

        trackers.check_installed(report_to)


def _swept(
    study: Study, options: dict[str, Any], *, workers: int, shard: int, report_to: Sequence[str]
) -> pd.DataFrame:
    """The sweep, followed and stopped cleanly by a signal."""
    with _going_on_later(), stopping() as stop:
        return _followed(study, options, stop, workers, shard, report_to)


def sweep_until(
    study: Study, *, goal: Goal, output_dir: Path, device: str, retry_failed: bool, keep_adapters: bool, workers: int,
    shard: int, pack: int, report_to: Sequence[str],
) -> tuple[pd.DataFrame, Outlook]:  # fmt: skip
    """`pursuit.pursue`, each of its runs followed as a sweep is; the table of all its runs, and how it ended."""
    from holdfast import models, pursuit, sweeps

    pursuit.check(study, goal)
    _check_trackers(report_to, pack=pack)
    study = replace(study, runs=tuple(sweeps.resolved(study.runs, models.choose_device(device))))
    cost = estimated(study, output_dir=output_dir, device=device, retry_failed=retry_failed, shard=shard)
    _check_budget(cost, goal, study)
    options: dict[str, Any] = {
        "out": output_dir, "device": device, "retry_failed": retry_failed, "keep_adapters": keep_adapters,
        "pack": pack,
    }  # fmt: skip

    def make(part: Study) -> None:
        _swept(part, options, workers=min(workers, len(part.runs)), shard=shard, report_to=report_to)

    return _pursued(study, goal, output_dir, make)


def sweep_until_on_cluster(
    study: Study, *, goal: Goal, address: str | None, output_dir: Path, **options: Any
) -> tuple[pd.DataFrame, Outlook]:
    """The same with all runs made on one Ray cluster; `options` are the others of `sweep_on_cluster`."""
    from holdfast.integrations.ray import connected

    if any(run.dtype == "auto" for run in study.runs):
        raise ConfigError(
            "got dtype auto, expected a precision named in the study, for a law is of one: its machines may differ, at "
            "--until-interval with --executor ray"
        )
    make = partial(sweep_on_cluster, address=address, output_dir=output_dir, goal=goal, **options)
    with connected(address, aloud=not err().is_terminal):
        return _pursued(study, goal, output_dir, make)


def _pursued(
    study: Study, goal: Goal, output_dir: Path, make: Callable[[Study], object]
) -> tuple[pd.DataFrame, Outlook]:
    from holdfast import pursuit, store

    ended = pursuit.pursue(study, out=output_dir, goal=goal, make=make, tell=partial(show_outlook, goal=goal))
    return store.tabulate(pursuit.runs_of(study, output_dir)), ended


def _check_budget(cost: SweepCost, goal: Goal | None, study: Study) -> None:
    if goal is not None and cost.seconds > goal.budget_s:
        raise ConfigError(
            f"got runs that take about {duration(cost.seconds)}, expected at most --budget-hours, which is "
            f"{duration(goal.budget_s)}, at {study.source}"
        )


def goal(interval: float | None, budget_hours: float | None, max_forgetting: float, *, at_once: int) -> Goal | None:
    """What a sweep is to go on for, if anything was said of it."""
    from holdfast import pursuit

    if interval is None and budget_hours is None:
        return None
    if interval is None or budget_hours is None:
        raise ConfigError(
            f"got --until-interval {interval} and --budget-hours {budget_hours}, expected both or neither, at the sweep"
        )
    return pursuit.Goal(max_forgetting=max_forgetting, interval=interval, budget_s=3600 * budget_hours, at_once=at_once)


def foreseen(
    study: Study, *, goal: Goal | None, output_dir: Path, device: str, retry_failed: bool, shard: int
) -> dict[str, Any]:  # fmt: skip
    """What a sweep will take, as JSON; under a goal also what comes after the study's own runs, once those are made."""
    from holdfast import models, pursuit, sweeps

    if goal is not None:
        pursuit.check(study, goal)
    cost = estimated(study, output_dir=output_dir, device=device, retry_failed=retry_failed, shard=shard)
    if goal is None:
        return cost.to_dict()
    if cost.runs:
        err().print("What is run after them follows from what they measure.")
        return cost.to_dict() | {"next": None}
    study = replace(study, runs=tuple(sweeps.resolved(study.runs, models.choose_device(device))))
    ahead = pursuit.look_ahead(study, out=output_dir, goal=goal)
    show_outlook(ahead, goal=goal)
    return cost.to_dict() | {"next": ahead.to_dict()}


def show_outlook(ahead: Outlook, *, goal: Goal) -> None:
    """What a pursuit will do next, on stderr, and why."""
    many = f"{ahead.made} run{'s' * (ahead.made != 1)} in {duration(ahead.spent_s)} of {duration(goal.budget_s)}"
    err().print(f"{many}. {escape(ahead.reason)}", soft_wrap=True)
    if ahead.ended:
        for warning in ahead.warnings:
            err().print(f"Note: {escape(warning)}.", soft_wrap=True)


@contextmanager
def following(report_to: Sequence[str], *, out: Path) -> Iterator[Callable[[sweeps.Progress], None]]:
    """A sweep's `tell`: what happens is shown on stderr and told to trackers, if any are named."""
    with SweepProgress() as progress:
        if not report_to:
            yield progress
            return
        from holdfast.integrations.trackers import Tracking

        with Tracking(report_to, out=out) as tracking:

            def tell(at: sweeps.Progress) -> None:
                progress(at)
                tracking(at)

            yield tell


def _followed(
    study: Study, options: dict[str, Any], stop: Stop, workers: int, shard: int, report_to: Sequence[str]
) -> pd.DataFrame:
    """The sweep, with what there is to see of it while it runs."""
    from holdfast import sweeps
    from holdfast.workers import sweep_in_processes

    if shard > 1:  # the first of its processes shows what happens
        return sweep_in_processes(study, shard=shard, report_to=report_to, stop=stop, **options)
    if workers == 1:
        with following(report_to, out=options["out"]) as tell:
            return sweeps.sweep(study, stop=stop, tell=tell, **options)
    options = options | {"report_to": report_to}
    console = err()
    if not console.is_terminal:
        return sweep_in_processes(study, workers=workers, stop=stop, **options)
    with tempfile.TemporaryFile() as said:
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                look = partial(_refreshed, live, options["out"])
                return sweep_in_processes(study, workers=workers, stop=stop, look=look, said=said, **options)
        except ResourceError:
            said.seek(0)
            console.print(escape(said.read().decode(errors="replace")))
            raise


def _refreshed(live: Live, root: Path) -> None:
    if any(root.glob("*/config.json")):
        live.update(standings(status(root)), refresh=True)


def estimated(study: Study, *, output_dir: Path, device: str, retry_failed: bool, shard: int = 1) -> SweepCost:
    """What a sweep will take, said on stderr; refused where the disk has not the room."""
    from holdfast import adapters, trials
    from holdfast.workers import estimate_in_processes

    adapters.check_methods(study)  # before anything is made
    with files.refusing(output_dir):
        files.make_folder(output_dir)
        files.check_writable(output_dir)
    options: dict[str, Any] = {"out": output_dir, "device": device, "retry_failed": retry_failed}
    cost = estimate_in_processes(study, shard=shard, **options) if shard > 1 else trials.estimate_cost(study, **options)
    _say_cost(cost, output_dir, err())
    return cost


def _say_cost(cost: SweepCost, output_dir: Path, console: Console) -> None:
    if cost.runs:
        console.print(
            f"{cost.runs} runs to make: about {duration(cost.seconds)}, {cost.tokens:,} training tokens, "
            f"{cost.flop:.2g} FLOP, {_memory(cost)}, {_size(cost.disk_bytes)} of disk "
            f"({_size(cost.free_bytes)} free)".replace("e+", "e"),
            soft_wrap=True,
        )  # fmt: skip
    else:
        console.print("nothing to make: every run of the study has ended")
    files.check_room(output_dir, cost.disk_bytes)


def _memory(cost: SweepCost) -> str:
    each = [_size(bytes_) for bytes_ in cost.device_memory_bytes]
    where = f", in {len(each)} processes" if len(each) > 1 else ""
    return f"{' + '.join(each)} of memory{where}"


def _size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} GB"


def _times(ratio: float) -> str:
    return f"{100 * ratio:.0f} % of"
