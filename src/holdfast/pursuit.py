"""A study made longer run by run, until its plan's interval is narrow enough or the budget would be exceeded.

What is to be made next follows from the runs on disk alone: what is in progress is finished first, then laws are fitted
anew and `design` chooses. So a pursuit that is stopped goes on as if it never had been. How runs are made is the
caller's. No torch here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from holdfast import store
from holdfast.config import RunConfig, Study
from holdfast.costs import cost
from holdfast.design import LEVEL, NextRuns, Purchase, next_runs
from holdfast.display import duration
from holdfast.errors import ConfigError
from holdfast.laws import Laws, fit
from holdfast.methods import Lora, named
from holdfast.offers import REACH, Candidate, possible_runs
from holdfast.stats import as_dict, rounded
from holdfast.store import Run

Ended = Literal["interval", "budget", "nothing narrows"]

LEAST = 0.01
"""Share by which a run must narrow an interval that is still too wide."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a sweep goes on for: an interval of forgetting at the plan's point, nats per token, and what it may cost.

    The plan is `planning.plan`'s under `max_forgetting`. `budget_s` counts the time of making every run of the study,
    one after another, those made before too. `at_once` runs are chosen together, each counting on those before it.
    """

    max_forgetting: float
    interval: float
    budget_s: float
    at_once: int = 1


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Where a pursuit stands by its runs: what to make now and why, or how it ended.

    `width` is of the interval that is to be narrowed, at rank and steps `at`, and `expected_width` what runs like these
    give on average; None while runs are to be finished first.
    """

    runs: tuple[RunConfig, ...]
    """To make now; empty when it ended."""
    ended: Ended | None
    reason: str
    at: tuple[int, int] | None
    width: float | None
    expected_width: float | None
    made: int
    """Runs that have ended, of the study and of the pursuit."""
    spent_s: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        runs = [{"run": run.name, "r": _rank(run), "steps": run.steps, "seed": run.seed} for run in self.runs]
        return as_dict(replace(self, runs=())) | {"runs": runs}


def pursue(
    study: Study, *, out: Path, goal: Goal, make: Callable[[Study], object], tell: Callable[[Outlook], None]
) -> Outlook:
    """Make the study's own runs, then by `make` what `look_ahead` chooses, until it chooses nothing more.

    Raises:
        ConfigError: as `check`.
        FitError: the study's runs carry no law.
    """
    check(study, goal)
    begun = [run.config for run in runs_of(study, out)] if out.is_dir() else []
    make(replace(study, runs=tuple(dict.fromkeys([*study.runs, *begun]))))
    while True:
        ahead = look_ahead(study, out=out, goal=goal)
        tell(ahead)
        if ahead.ended is not None:
            return ahead
        make(replace(study, runs=ahead.runs))


def check(study: Study, goal: Goal) -> None:
    """Refuse what a pursuit cannot do.

    Raises:
        ConfigError: a goal that is not above 0; several texts to retain; runs that are not of LoRA, or differ in more
            than rank, steps and seed.
    """
    for name in ("max_forgetting", "interval", "budget_s", "at_once"):
        if not (value := getattr(goal, name)) > 0:
            raise ConfigError(f"got {name} {value}, expected a number above 0, at the sweep's goal")
    for run in study.runs:
        if len(run.retain) > 1:
            raise ConfigError(
                f"got {len(run.retain)} texts to retain, expected one, whose forgetting is narrowed, at {study.source}"
            )
        if not isinstance(run.adapter, Lora):
            raise ConfigError(
                f"got method {run.adapter.method}, expected lora, whose rank is planned, at {study.source}"
            )
    if len({_bare(run) for run in study.runs}) > 1:
        raise ConfigError(
            f"got runs that differ in more than rank, steps and seed, expected one law for all, at {study.source}"
        )


def look_ahead(study: Study, *, out: Path, goal: Goal) -> Outlook:
    """What to make next, by the runs in a folder that differ from the study's in rank, steps and seed alone.

    New runs have ranks of the study's range and at most twice its longest run's steps, and the first seed that their
    rank and steps have not had; where a run failed or diverged none is made again. Those that would exceed the budget,
    at the speed of the runs so far, are left out.

    Raises:
        FitError: the runs carry no law.
    """
    ours = runs_of(study, out)
    going = tuple(run.config for run in ours if run.state == "in progress")
    over = [run for run in ours if run.state != "in progress"]
    pace = _Pace.of(over)
    spent = pace.spent_s(over)
    if going:
        reason = "What was begun is finished first."
        return Outlook(
            runs=going, ended=None, reason=reason, at=None, width=None, expected_width=None, made=len(over),
            spent_s=spent, warnings=(),
        )  # fmt: skip
    table = store.tabulate(ours)
    laws = fit(table)
    offers = _offers(laws, table, study)
    payable = [offer for offer in offers if spent + pace.expected_s(offer) <= goal.budget_s]

    def choose(candidates: Sequence[Candidate]) -> NextRuns:
        return next_runs(
            laws, table, max_forgetting=goal.max_forgetting, candidates=candidates, tolerance=goal.interval,
            number=goal.at_once, least=LEAST,
        )  # fmt: skip

    found = choose(offers)
    ended: Ended | None = None
    chosen: tuple[RunConfig, ...] = ()
    reason = found.reason
    if found.stop:
        narrow = max(found.width, found.expected_width) <= goal.interval
        ended = "interval" if narrow else "nothing narrows"
    elif not payable or (found := choose(payable)).stop:
        ended, reason = "budget", _too_dear(found, spent, goal)
    else:
        bought = _payable(found.chosen, pace, goal.budget_s - spent)
        chosen = _configs(study, [purchase.candidate for purchase in bought], had=[run.config for run in ours])
        reason = " ".join([reason, *map(str, bought)])
    return Outlook(
        runs=chosen, ended=ended, reason=reason, at=found.at, width=found.width,
        expected_width=found.expected_width, made=len(over), spent_s=spent,
        warnings=tuple(dict.fromkeys([*laws.warnings, *found.warnings])),
    )  # fmt: skip


def runs_of(study: Study, out: Path) -> list[Run]:
    """The runs of a folder that differ from a study's in rank, steps and seed alone."""
    folders = [path.parent for path in sorted(out.glob("*/config.json"))]
    return [run for run in map(store.read_run, folders) if _bare(run.config) == _bare(study.runs[0])]


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """What the finished runs took: training by the operation, and all the rest by the measured step."""

    flop_s: float
    point_s: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Pace:
        """The rest, of runs made in one go: of a resumed run only the training's time is on record as a whole."""
        done = [run for run in runs if run.state == "done"]
        whole = [run for run in done if "resumed" not in run.provenance]
        rest = sum(run.summary["wall_time_s"] - run.summary["training_s"] for run in whole)
        flop = sum(map(_flop, done))
        return cls(
            flop_s=sum(run.summary["training_s"] for run in done) / flop if flop else 0.0,
            point_s=rest / sum(map(_points, whole)) if whole else 0.0,
        )

    def spent_s(self, runs: Sequence[Run]) -> float:
        """The time of all runs, a failed one's by what it had reached."""
        return sum(
            run.summary["wall_time_s"]
            if run.state == "done" and "resumed" not in run.provenance
            else self.flop_s * _flop(run) + self.point_s * _points(run)
            for run in runs
        )

    def expected_s(self, candidate: Candidate) -> float:
        return self.flop_s * (candidate.flop or math.nan) + self.point_s * (1 + len(candidate.measured))


def _flop(run: Run) -> float:
    """Operations of training, as far as it came."""
    reached = run.config.steps if run.state == "done" else max((one.step for one in run.measurements), default=0)
    spent = cost(
        steps=reached, tokens_per_step=run.config.batch_tokens, base_params=run.provenance.get("base_params"),
        trainable_params=run.provenance.get("trainable_params", math.nan), seconds_per_token=None,
    )  # fmt: skip
    return spent.flop or 0.0


def _points(run: Run) -> int:
    return len({one.step for one in run.measurements})


def _offers(laws: Laws, table: pd.DataFrame, study: Study) -> list[Candidate]:
    """New runs about those of the study file; none where one ended without a result."""
    ranks, lengths = ([of(run) for run in study.runs] for of in (_rank, lambda run: run.steps))
    without = table[table["state"] != "done"]
    barred = set(zip(without["r"], without["total_steps"], strict=True))
    return [
        offer for offer in possible_runs(laws, table)
        if min(ranks) <= offer.r <= max(ranks) and offer.steps <= REACH * max(lengths)
        and (offer.r, offer.steps) not in barred
    ]  # fmt: skip


def _payable(purchases: Sequence[Purchase], pace: _Pace, left_s: float) -> list[Purchase]:
    """The first of some purchases, as many as the rest of the budget pays together."""
    times = itertools.accumulate(pace.expected_s(each.candidate) for each in purchases)
    return [each for each, until in zip(purchases, times, strict=True) if until <= left_s]


def _configs(study: Study, candidates: Sequence[Candidate], *, had: Sequence[RunConfig]) -> tuple[RunConfig, ...]:
    """Runs of the study's settings, each with the first seed that its rank and steps have not had."""
    made = {(_rank(run), run.steps, run.seed) for run in had}
    configs = []
    for offer in candidates:
        seed = next(seed for seed in itertools.count() if (offer.r, offer.steps, seed) not in made)
        made.add((offer.r, offer.steps, seed))
        configs.append(_placed(study.runs[0], r=offer.r, steps=offer.steps, seed=seed))
    return tuple(configs)


def _placed(run: RunConfig, *, r: int, steps: int, seed: int) -> RunConfig:
    adapter = run.adapter.model_copy(update={"r": r})
    return run.model_copy(update={"adapter": adapter, "steps": steps, "seed": seed})


def _bare(run: RunConfig) -> RunConfig | None:
    """What runs of one pursuit have in common; None of a method without a rank."""
    return _placed(run, r=1, steps=1, seed=0) if isinstance(run.adapter, Lora) else None


def _rank(run: RunConfig) -> int:
    return named(run.adapter)[1] or 0


def _too_dear(found: NextRuns, spent_s: float, goal: Goal) -> str:
    spent = (
        f"Stop: {duration(spent_s)} of {duration(goal.budget_s)} are spent, and no run that the rest pays would do more"
    )
    where = f"for a run of r = {found.at[0]} and {found.at[1]} steps"
    if math.isnan(found.width):
        return f"{spent}; there is no interval yet {where}."
    width, average = (rounded(each, each / 4) for each in (found.width, found.expected_width))
    return (
        f"{spent}; the {100 * LEVEL:.0f} % interval {where} is {width} nats wide, and runs like these give {average} "
        f"on average, where {goal.interval:g} was asked for."
    )
