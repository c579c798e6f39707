"""The laws held to data they have not seen: error, R² and coverage on parts left out, beside two plain baselines.

In sample every law looks good. What a reader needs is how far it was off on the largest rank before that was run, on
steps beyond those that were fitted, on a method or learning rate never tried; and whether something simpler would have
done as well.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from holdfast.errors import ConfigError, FitError
from holdfast.formulas import LINE
from holdfast.laws import SKIP_FRACTION, Fit, Laws, fit, points
from holdfast.stats import FloatArray, as_dict

Mask = npt.NDArray[np.bool_]

LAST = 0.3
"""Share of each run's steps that is held out at its end."""

LEVEL = 0.9
"""Of the interval one run is expected in."""

LEFT_OUT = {"method": "method", "learning_rate": "learning rate"}
"""Columns whose every level is left out in turn, and what they are called."""

HEADLINE = "kl_base_tuned"
"""The quantity that the sentences are about."""

WORDS = {
    "kl_base_tuned": "forgetting",
    "hard_cross_entropy": "the hard forgetting loss",
    "target_nll": "the target loss",
}
ONE_WAY = 0.5
"""Share of the mean squared error that a bias makes up before the sentence names it."""


@dataclass(frozen=True, kw_only=True)
class HeldPoint:
    """One measurement that no fit saw, and the interval one run was expected in; nan without."""

    run: str
    r: int
    steps: int
    observed: float
    predicted: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One law on one part of the data that it was not fitted to. Errors are predicted − measured, nats per token."""

    split: str
    """What was held out, in words."""
    quantity: str
    law: str
    """Name in `LAWS`, chosen on the training part alone; or one of `forms`."""
    n_points: int
    """Held out; those of one run are alike, so `n_runs` is what counts."""
    n_runs: int
    rmse: float
    bias: float
    """Mean error: above 0 the law promised too much."""
    r2: float
    """1 − Σ error² / Σ (measured − mean of the held-out)², as R² is usually meant: 0 is a constant that knew the
    held-out mean, and below 0 is worse. nan where the held-out values do not vary."""
    r2_over_constant: float
    """1 − Σ error² / Σ (measured − mean of the training part)²: the share of the constant baseline's squared error
    that the law takes away. Never below `r2`."""
    level: float
    inside: int | None
    """Held-out points inside the interval of one run at this level; None when the training part gives no interval."""
    mean_width: float
    """Of these intervals; nan without any."""
    rmse_constant: float
    """Of the mean of the training part."""
    rmse_log_steps: float
    """Of a least-squares line in log N through the training part; nan when that has one N only."""
    warnings: tuple[str, ...]
    """Of the fit to the training part."""
    points: tuple[HeldPoint, ...]

    @property
    def coverage(self) -> tuple[int, int] | None:
        """Points inside their interval, and of how many; None without intervals."""
        return None if self.inside is None else (self.inside, self.n_points)

    def __str__(self) -> str:
        split = f"the {self.split}" if self.split.startswith(("largest", "last")) else self.split
        given = " from the target loss" if self.law == LINE.name else ""
        baselines = f"the constant {self.rmse_constant:.2g}, a line in log N {self.rmse_log_steps:.2g}"
        runs = f"{self.n_runs} run{'s' if self.n_runs > 1 else ''}"
        if self.inside is None:
            counted = f"no interval for the {self.n_points} points of {runs}"
        else:
            counted = f"{self.inside} of {self.n_points} points of {runs} inside their {100 * self.level:g} % interval"
        aside = ""
        if self.bias**2 > ONE_WAY * self.rmse**2:
            aside = f", mostly {abs(self.bias):.2g} too {'high' if self.bias > 0 else 'low'}"
        return (
            f"Held out, {split}: {WORDS.get(self.quantity, self.quantity)} was predicted{given} to "
            f"{self.rmse:.2g} nats{aside} (R² {self.r2:.2f}; {baselines}); {counted}."
        )


@dataclass(frozen=True, kw_only=True)
class InSample:
    """How well a law fits the very points it was fitted to: for comparison with papers, and no forecast."""

    quantity: str
    law: str
    r2: float
    rmse: float
    n_points: int
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Something that could not be held out, and why."""

    split: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Every law on every part held out, and what could not be held out."""

    corpus: str
    target: str
    held_out: tuple[HeldOut, ...]
    in_sample: tuple[InSample, ...]
    """All points fitted, none held out."""
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        told = [held for held in self.held_out if held.quantity == HEADLINE] or list(self.held_out)
        lines = [str(held) for held in told]
        lines += [
            f"In sample, for comparison: R² {all_.r2:.2f} of {WORDS.get(all_.quantity, all_.quantity)} by the "
            f"{all_.law}{'' if all_.law == LINE.name else ' law'} ({all_.n_points} points of {all_.n_runs} runs)."
            for all_ in self.in_sample
            if all_.quantity in {held.quantity for held in told}
        ]
        lines += [f"Not held out, {skip.split}: {skip.reason}." for skip in self.skipped]
        notes = [*self.warnings, *(f"without {held.split}, {warning}" for held in told for warning in held.warnings)]
        return "\n".join([*lines, *(f"Note: {note}." for note in dict.fromkeys(notes))])

    def to_frame(self) -> pd.DataFrame:
        """One row per part held out, quantity and law, its columns named as the fields of `HeldOut`."""
        columns = [name for name in HeldOut.__dataclass_fields__ if name != "points"]
        return pd.DataFrame([as_dict(held) for held in self.held_out], columns=columns)

    def predictions(self) -> pd.DataFrame:
        """One row per held-out measurement of the joint laws: `quantity`, `split`, and the fields of `HeldPoint`."""
        return pd.DataFrame(
            [
                {"quantity": held.quantity, "split": held.split} | asdict(point)
                for held in self.held_out
                if held.law != LINE.name
                for point in held.points
            ],
            columns=["quantity", "split", *HeldPoint.__dataclass_fields__],
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def validate(
    table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION, level: float = LEVEL
) -> Validation:
    """Fit the laws of a study to a part of it, as `laws.fit` does, and hold them to the rest.

    Held out are, each by itself: all runs of the largest rank; the last 30 % of the steps of every run; and the runs of
    every method and learning rate that the laws are not of. The joint laws see P and N of a held-out point, the line
    its target loss. Which form a law takes is chosen anew on each training part, which alone is passed on to
    `laws.fit`: no held-out value can reach a fit. The two baselines are fitted to the same training part.

    What cannot be held out (one rank only, or too little left to fit) is in `skipped`, with the reason.

    Raises:
        ConfigError: `level` is not between 0 and 1, or as `laws.points`.
        FitError: the whole table cannot be fitted, as `laws.fit`.
    """
    check_level(level)
    measured = points(table, corpus=corpus, skip_fraction=skip_fraction)
    whole = fit(table, corpus=corpus, skip_fraction=skip_fraction)

    def fitted(hidden: Mask) -> list[tuple[str, Fit]]:
        part = _without(table, measured, hidden)
        return _each(fit(part, corpus=whole.corpus, skip_fraction=skip_fraction))

    held_out, skipped = judge(measured, fitted, runs=whole.runs, level=level)
    return Validation(
        corpus=whole.corpus,
        target=whole.target,
        held_out=held_out,
        in_sample=tuple(in_sample(name, law) for name, law in _each(whole)),
        skipped=skipped,
        warnings=(*whole.warnings, *_other_forms(held_out, _each(whole)), *_beaten(held_out)),
    )


class _Split(NamedTuple):
    name: str
    held: Mask
    """Of the rows of the points."""


def _splits(points: pd.DataFrame, own: Mask) -> tuple[list[_Split], list[Skipped]]:
    """What can be held out of these points, from how they were run alone, never from what was measured.

    `own` are the points of the runs that the laws are of: rank and steps are held out of them, other ways of the rest.
    """
    splits, skipped = [], []
    ranks = np.where(own, points["r"].to_numpy(), points.loc[own, "r"].min())
    if ranks.min() == ranks.max():
        skipped.append(
            Skipped(
                split="largest rank",
                reason=f"only r = {ranks[0]} was run" if ranks[0] else "no method with ranks was run",
            )
        )
    else:
        splits.append(_Split(f"largest rank (r = {ranks.max()})", own & (ranks == ranks.max())))
    steps = points["steps"].to_numpy()
    ends = points.groupby("run")["steps"].transform("max").to_numpy()
    splits.append(_Split(f"last {LAST:.0%} of steps".replace("%", " %"), own & (steps > (1 - LAST) * ends)))
    for column, word in LEFT_OUT.items():
        values = points[column].to_numpy()
        levels = sorted(set(values.tolist()))
        if len(levels) < 2:
            skipped.append(Skipped(split=f"a {word}", reason=f"all runs have {word} {_named(levels[0])}"))
            continue
        splits += [_Split(f"{word} {_named(each)}", values == each) for each in levels if (values[own] != each).any()]
    return splits, skipped


def judge(
    points: pd.DataFrame, fitted: Callable[[Mask], Iterable[tuple[str, Fit]]], *, runs: Collection[str], level: float
) -> tuple[tuple[HeldOut, ...], tuple[Skipped, ...]]:
    """Every split of the points, the rest of those of `runs` fitted by `fitted`.

    It is told which points not to look at, and names each law.
    """
    own = points["run"].isin(runs).to_numpy()
    splits, skipped = _splits(points, own)
    held_out: list[HeldOut] = []
    for split, held in splits:
        training = own & ~held
        if not training.any():
            skipped.append(Skipped(split=split, reason="nothing would be left to fit"))
            continue
        try:
            fits = list(fitted(~training))
        except FitError as error:
            skipped.append(Skipped(split=split, reason=f"what is left cannot be fitted: {error}"))
            continue
        held_out += [_score(split, name, law, points[training], points[held], level=level) for name, law in fits]
    return tuple(held_out), tuple(skipped)


def _score(
    split: str, name: str, law: Fit, training: pd.DataFrame, held: pd.DataFrame, *, level: float
) -> HeldOut:  # fmt: skip
    measured, seen = (part[law.quantity].to_numpy(dtype=np.float64) for part in (held, training))
    prediction = law.predict(**{column: held[column].to_numpy(dtype=np.float64) for column in law.domain})
    error = np.asarray(prediction.mean) - measured
    low, high = (np.asarray(prediction.run_quantile(tail)) for tail in ((1 - level) / 2, (1 + level) / 2))
    squares, constant = float(error @ error), float(np.sum((measured - seen.mean()) ** 2))
    return HeldOut(
        split=split,
        quantity=law.quantity,
        law=name,
        n_points=len(held),
        n_runs=held["run"].nunique(),
        rmse=math.sqrt(squares / len(held)),
        bias=float(error.mean()),
        r2=_share_removed(squares, float(np.sum((measured - measured.mean()) ** 2))),
        r2_over_constant=_share_removed(squares, constant),
        level=level,
        inside=None if np.isnan(low).any() else int(np.sum((low <= measured) & (measured <= high))),
        mean_width=float(np.mean(high - low)),
        rmse_constant=math.sqrt(constant / len(held)),
        rmse_log_steps=_log_line_rmse(training["steps"], seen, held["steps"], measured),
        warnings=law.warnings,
        points=tuple(
            HeldPoint(
                run=str(run), r=int(r), steps=int(steps), observed=float(at), predicted=float(mean), low=float(least),
                high=float(most),
            )
            for run, r, steps, at, mean, least, most in zip(
                held["run"], held["r"], held["steps"], measured, np.asarray(prediction.mean), low, high, strict=True
            )
        ),
    )  # fmt: skip


def _log_line_rmse(
    seen_steps: "pd.Series[int]", seen: FloatArray, held_steps: "pd.Series[int]", measured: FloatArray
) -> float:
    """Error of the ordinary line in log N through what was seen, on what was held out."""
    if seen_steps.nunique() < 2:
        return math.nan
    x, at = (np.log(steps.to_numpy(dtype=np.float64)) for steps in (seen_steps, held_steps))
    away = x - x.mean()
    slope = float(away @ seen) / float(away @ away)
    return float(np.sqrt(np.mean((seen.mean() + slope * (at - x.mean()) - measured) ** 2)))


def _share_removed(squares: float, of: float) -> float:
    return 1 - squares / of if of > 0 else math.nan


def _without(table: pd.DataFrame, points: pd.DataFrame, held: Mask) -> pd.DataFrame:
    """The table less every row of a held-out point, and all rows of a run of which nothing is left."""
    gone = points[held]
    every, out = (
        pd.MultiIndex.from_arrays([rows["run"], rows[step].astype(float)])
        for rows, step in ((table, "step"), (gone, "steps"))
    )
    wholly = set(gone["run"]) - set(points["run"][~held])
    return table[~(every.isin(out) | table["run"].isin(wholly).to_numpy())]


def _each(laws: Laws) -> list[tuple[str, Fit]]:
    return [(law.law, law) for law in (*laws.joint.values(), *laws.lines.values())]


def in_sample(name: str, law: Fit) -> InSample:
    """How well a law of this name fits the points it was fitted to."""
    return InSample(quantity=law.quantity, law=name, r2=law.r2, rmse=law.rmse, n_points=law.n_points, n_runs=law.n_runs)


def _other_forms(held_out: Iterable[HeldOut], whole: Iterable[tuple[str, Fit]]) -> list[str]:
    """Where a training part chose another law than all the data: what was validated is then not what will be used."""
    used: dict[str, list[str]] = {}
    for name, law in whole:
        used.setdefault(law.quantity, []).append(name)
    return [
        f"{held.quantity}: without {held.split} the {held.law} law was chosen, with all the data another: "
        f"{', '.join(used[held.quantity])}"
        for held in held_out
        if held.law not in used[held.quantity]
    ]


def _beaten(held_out: Iterable[HeldOut]) -> tuple[str, ...]:
    """Where a baseline was nearer than the law."""
    warnings = []
    for held in held_out:
        for name, rmse in (("a constant", held.rmse_constant), ("a line in log N", held.rmse_log_steps)):
            if rmse < held.rmse:
                warnings.append(
                    f"{held.quantity}, {held.split} held out: {name} was nearer ({rmse:.2g} nats) than the "
                    f"{held.law} law ({held.rmse:.2g})"
                )
    return tuple(warnings)


def _named(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_level(level: float) -> None:
    """Refuse a level that no interval has."""
    if not 0 < level < 1:
        raise ConfigError(f"got level {level}, expected a probability between 0 and 1, at the interval of one run")
