"""Sweeps in a terminal: what one will take, how it is made and stopped, and what it goes on for."""

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

from holdfast import files
from holdfast.config import Study, read_study
from holdfast.display import duration
from holdfast.errors import ConfigError, Interrupted, ResourceError, StoreError
from holdfast.following import following
from holdfast.interrupts import Stop, stopping
from holdfast.progress import status
from holdfast.status_screens import standings
from holdfast.terminal import err, escape

if TYPE_CHECKING:
    import pandas as pd

    from holdfast.costs import SweepCost
    from holdfast.pursuit import Goal, Outlook


def sweep_with_progress(
    study: Study | Path, *, output_dir: Path, device: str, retry_failed: bool = False, keep_adapters: bool = False,
    workers: int = 1, shard: int = 1, pack: int = 1, mirror: str | None = None, report_to: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """`sweeps.sweep`, after an estimate of what it takes, followed on stderr and stopped cleanly by a signal."""
    study = study if isinstance(study, Study) else read_study(study)
    _check_trackers(report_to, pack=pack)
    cost = estimated(study, output_dir=output_dir, device=device, retry_failed=retry_failed, shard=shard)
    began = time.monotonic()
    options: dict[str, Any] = {
        "out": output_dir, "device": device, "retry_failed": retry_failed, "keep_adapters": keep_adapters,
        "pack": pack, "mirror": mirror,
    }  # fmt: skip
    expected = cost.seconds if cost.runs else math.nan
    table = _swept(study, options, workers=workers, shard=shard, report_to=report_to, expected_s=expected)
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
            f"got {output_dir}, expected a folder of a file system, for runs append, rename and lock; --mirror keeps "
            "them in an object store too, at --output-dir"
        )
    if executor == "ray" and alone:
        raise ConfigError("got ray, expected processes: --dry-run and --shard are for one machine, at --executor")


def fetched(url: str, runs: Path, *, to_write: bool) -> None:
    """Bring what an object store has of runs into their folder, and say how many came.

    One that is `to_write` may have none yet, and must be writable.
    """
    from holdfast.mirrors import Mirror

    mirror = Mirror(url)
    if to_write:
        mirror.check_writable()
    elif not mirror.names():
        raise StoreError(f"got no runs, expected some that a sweep keeps with --mirror, at {mirror.url}")
    brought = mirror.fetch(runs)
    err().print(f"{len(brought)} run{'s' * (len(brought) != 1)} brought from {mirror.url} into {runs}", markup=False)


def sweep_on_cluster(
    study: Study, *, address: str | None, output_dir: Path, device: str, retry_failed: bool, keep_adapters: bool,
    workers: int | None, pack: int, report_to: Sequence[str], mirror: str | None = None, goal: Goal | None = None,
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
        retry_failed=retry_failed, keep_adapters=keep_adapters, pack=pack, mirror=mirror, report_to=report_to,
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
    study: Study, options: dict[str, Any], *, workers: int, shard: int, report_to: Sequence[str],
    expected_s: float = math.nan,
) -> pd.DataFrame:  # fmt: skip
    """The sweep, followed and stopped cleanly by a signal."""
    with _going_on_later(), stopping() as stop:
        return _followed(study, options, stop, workers, shard, report_to, expected_s)


def sweep_until(
    study: Study, *, goal: Goal, output_dir: Path, device: str, retry_failed: bool, keep_adapters: bool, workers: int,
    shard: int, pack: int, report_to: Sequence[str], mirror: str | None = None,
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
        "pack": pack, "mirror": mirror,
    }  # fmt: skip

    def make(part: Study) -> None:
        _swept(part, options, workers=min(workers, len(part.runs)), shard=shard, report_to=report_to)

    return _pursued(study, goal, output_dir, make)


def sweep_until_on_cluster(
    study: Study, *, goal: Goal, address: str | None, output_dir: Path, **options: Any
) -> tuple[pd.DataFrame, Outlook]:
    """The same with all runs made on one Ray cluster; `options` are the others of `sweep_on_cluster`."""
    from holdfast import pursuit
    from holdfast.integrations.ray import connected

    pursuit.check(study, goal)
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


def _followed(
    study: Study, options: dict[str, Any], stop: Stop, workers: int, shard: int, report_to: Sequence[str],
    expected_s: float,
) -> pd.DataFrame:  # fmt: skip
    """The sweep, with what there is to see of it while it runs."""
    from holdfast import sweeps
    from holdfast.workers import sweep_in_processes

    if shard > 1:  # the first of its processes shows what happens
        return sweep_in_processes(study, shard=shard, report_to=report_to, stop=stop, **options)
    if workers == 1:
        with following(report_to, out=options["out"], expected_s=expected_s) as tell:
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
            f"{cost.runs} run{'s' * (cost.runs > 1)} to make: about {duration(cost.seconds)}, "
            f"{cost.tokens:,} training tokens, {cost.flop:.2g} FLOP, {_memory(cost)}, {_size(cost.disk_bytes)} of disk "
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
