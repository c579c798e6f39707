"""Runs that could be made next, or finished, and what each would cost."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from holdfast.costs import cost
from holdfast.errors import FitError
from holdfast.laws import Laws, foreign

REACH, LENGTHS = 2, math.sqrt(2)
"""How many times the study's longest run a candidate may be, and the ratio of the lengths that are tried."""

ROUNDING = 1e-9
"""Of a count of ratios, what is none."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that could be made, or one in progress that could be finished."""

    r: int
    steps: int
    finishes: str | None
    """Name of the run in progress; None for a new one. A finished run is never taken further: with more steps it is
    another run, made from its start."""
    tokens: int
    """To train on: of a run in progress, what is left after its last measurement."""
    flop: float | None
    """To train on them, by `costs`; None where the size of the base is not known."""
    measured: tuple[int, ...]
    """Steps of all its checkpoints; the laws leave out the first share of them."""


def possible_runs(laws: Laws, table: pd.DataFrame) -> tuple[Candidate, ...]:
    """New runs worth considering, measured as densely as the study's own, and the runs in progress that are like them.

    Ranks: the study's, the powers of two between, and one beyond each end. Lengths: from the shortest run to twice the
    longest, in ratios of √2.

    Raises:
        FitError: parameters per rank or tokens per step differ between runs.
    """
    done = table[table["run"].isin(laws.runs) & (table["step"] > 0)]
    runs = done.groupby("run")["total_steps"].first().astype(int)
    first, count = int(done["step"].min()), int(done.groupby("run")["step"].nunique().max())
    lengths = sorted({*runs.tolist(), *map(round, _lengths(runs.min(), REACH * runs.max()))})
    powers = (2**k for k in range(max(laws.ranks).bit_length() + 1))
    ranks = sorted({*laws.ranks, *(power for power in powers if 2 * power >= min(laws.ranks))})

    def measured(steps: int) -> tuple[int, ...]:  # in equal ratios, as `config.RunConfig.measured_steps`
        return tuple(np.unique(np.rint(np.geomspace(min(first, steps), steps, count)).astype(int)).tolist())

    offers = [_candidate(laws, r, steps, measured(steps), run=None, had=0) for r in ranks for steps in lengths]
    for run, rows in table[table["state"] == "in progress"].groupby("run"):
        if foreign(laws, table, str(run)):
            continue
        r, steps, had = int(rows["r"].iloc[0]), int(rows["total_steps"].iloc[0]), int(rows["step"].fillna(0).max())
        if had < steps:
            offers.append(_candidate(laws, r, steps, measured(steps), run=str(run), had=had))
    return tuple(offers)


def _candidate(
    laws: Laws, r: int, steps: int, measured: tuple[int, ...], *, run: str | None, had: int
) -> Candidate:  # fmt: skip
    spent = cost(
        steps=steps - had, tokens_per_step=known(laws.tokens_per_step, "tokens per step"),
        trainable_params=r * known(laws.params_per_rank, "parameters per rank"), base_params=laws.base_params,
        seconds_per_token=None,
    )  # fmt: skip
    return Candidate(r=r, steps=steps, finishes=run, tokens=spent.tokens or 0, flop=spent.flop, measured=measured)


def _lengths(shortest: float, longest: float) -> list[float]:
    count = math.ceil(math.log(longest / shortest, LENGTHS) - ROUNDING)
    return [shortest * LENGTHS**k for k in range(count)] + [longest]


def known(value: float | None, what: str) -> float:
    """The value, which `Laws` has where it is the same of all runs.

    Raises:
        FitError: it is None.
    """
    if value is None:
        raise FitError(f"got {what} that differ between the runs, expected one value, at the runs to buy")
    return value
