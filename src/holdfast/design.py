"""Which run to buy next: by how much each would narrow the interval at the plan's point, for what it costs.

The law is linearised where it was fitted, and what its interval should be follows without making a run. Run g, of
checkpoints with Jacobian X_g (n, p) and noise covariance V_g (what whole runs differ by, and what fades between
checkpoints), enters the laws' least squares by A_g = X_gᵀ X_g and S_g = X_gᵀ V_g X_g; B and S are their sums. Left
out, it pulls the parameters by (B − A_g)⁻¹ s_g. With c_g = (B − A_g)⁻¹ j, j the derivative at the plan's point,

    cov s_g = S_g − S_g B⁻¹ A_g − A_g B⁻¹ S_g + A_g B⁻¹ S B⁻¹ A_g         variance = (G−1)/G · Σ_g c_gᵀ (cov s_g) c_g

is what `stats.clustered_covariance` finds on average. The textbook's information, Xᵀ V⁻¹ X (V-optimal design), is of an
estimator that weighs runs by V, as the laws' does not: chosen by it, one long run carries all of a slope, and the
jackknife, which leaves that run out, doubts it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from holdfast.choices import measure_of_forgetting
from holdfast.costs import cost
from holdfast.errors import ConfigError, FitError
from holdfast.forecasting import RunScatter, law_jacobian, run_scatter
from holdfast.laws import SKIP_FRACTION, Fit, Laws, fit, points
from holdfast.planning import plan
from holdfast.stats import FloatArray, as_dict, rounded, t_quantile

LEVEL = 0.9
"""Of the interval that is to be narrowed."""

REACH, LENGTHS = 2, math.sqrt(2)
"""How many times the study's longest run a candidate may be, and the ratio of the lengths that are tried."""

HARDLY = 0.05
"""A purchase that narrows the interval by less than this share is not worth making."""

LEAST = 1e-9
"""Share of what is known that every direction is given, so that one which no run tells is merely wide."""

Place = tuple[int, int]
"""Rank and number of steps."""

Terms = tuple[FloatArray, FloatArray, FloatArray]
"""What a run is to the fit, its parameters in the `unit` of the state: A_g, S_g, and X_gᵀ 1, its pull as a whole."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run that could be made, or one that could be taken further."""

    r: int
    steps: int
    """In all, when it is finished."""
    extends: str | None
    """Name of the run that it goes on from; None for a new one."""
    tokens: int
    """To train on, those of the run it extends not counted."""
    flop: float | None
    """To train on them, by `costs`; None where the size of the base is not known."""
    measured: tuple[int, ...]
    """Steps of all its checkpoints; the laws leave out the first share of them."""


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """A candidate and what it is expected to do, in nats per token of forgetting; infinite without an interval."""

    candidate: Candidate
    width_before: float
    width_after: float
    gain: float
    """Nats narrower per FLOP; per token where FLOP are not known."""

    def __str__(self) -> str:
        asked = self.candidate
        what = "Run" if asked.extends is None else f"Take run {asked.extends} further:"
        share = f"narrow it by {100 * (1 - self.width_after / self.width_before):.0f} %, to {self.width_after:.2g} nats"
        does = share if math.isfinite(self.width_before) else "give one"
        return f"{what} r = {asked.r} to {asked.steps} steps ({asked.tokens:,} tokens): should {does}."


@dataclass(frozen=True, kw_only=True)
class NextRuns:
    """What to run next, or to stop. Widths are of the law's 90 % interval at the plan's point, nats per token."""

    at: Place
    width: float
    """As the laws are now; nan without an interval."""
    chosen: tuple[Purchase, ...]
    """As many as were asked for, each counting on those before it; empty when stopping."""
    ranked: tuple[Purchase, ...]
    """Every candidate for the next purchase, the most narrowing for its cost first."""
    stop: bool
    reason: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.reason, *map(str, self.chosen), *(f"Note: {each}." for each in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


Buyer = Callable[[Laws, pd.DataFrame, Sequence[Candidate]], Candidate]
"""Chooses among candidates, given the laws and the runs so far."""


def next_runs(
    laws: Laws, table: pd.DataFrame, *, at: Place | None = None, max_forgetting: float | None = None,
    candidates: Sequence[Candidate] | None = None, tolerance: float | None = None, number: int = 1,
) -> NextRuns:  # fmt: skip
    """Candidates by how much each should narrow the interval of forgetting at the plan's point, for its cost.

    The point is `at`, rank and steps, or that of `planning.plan` under `max_forgetting`. `candidates` are those of
    `possible_runs` unless given. A run may widen the interval: one far from the point that outweighs the others.
    Until some run has reached the steps of the point, only candidates that do, or the longest, are ranked: an interval
    beyond all runs rests on the formula alone. Stops when the interval is within `tolerance`, both as the laws have it
    and as it is expected to be, for that of few runs is often narrow by luck; or when no candidate narrows it by 5 %.

    Raises:
        ConfigError: not exactly one of `at` and `max_forgetting`, or a number, tolerance or place out of range.
        FitError: no candidate; parameters or tokens differ between runs so that rank or steps do not say how many.
    """
    asked = {"max_forgetting": max_forgetting, "tolerance": tolerance, "number": number, "at": at and min(at)}
    if (at is None) == (max_forgetting is None) or any(one is not None and not one > 0 for one in asked.values()):
        listed = ", ".join(f"{name} {one}" for name, one in (asked | {"at": at}).items())
        raise ConfigError(f"got {listed}, expected at or max_forgetting and all above 0, at the next runs")
    if at is None:
        found = plan(laws, max_forgetting=max_forgetting)
        at = (found.r, found.steps)
    offers = possible_runs(laws, table) if candidates is None else tuple(candidates)
    if not offers:
        raise FitError("got no candidate, expected at least one run to buy, at the next runs")
    state = _state(laws, table, at)
    ranked = _ranked(state, offers)
    best = min(each.width_after / each.width_before for each in ranked)
    stop, reason = _verdict(state, 1 - best, tolerance)
    chosen: list[Purchase] = []
    while not stop and len(chosen) < number and offers:
        chosen.append(_ranked(state, offers)[0])
        bought = chosen[-1].candidate
        state = _bought(state, bought, _offered(state, [bought])[0])
        # A new run can be made again with another seed; one that was taken further can not, from where it was.
        offers = tuple(offer for offer in offers if bought.extends is None or offer.extends != bought.extends)
    return NextRuns(
        at=at, width=state.width, chosen=tuple(chosen), ranked=ranked, stop=stop, reason=reason,
        warnings=tuple(dict.fromkeys([*state.doubts, *state.law.warnings])),
    )  # fmt: skip


def possible_runs(laws: Laws, table: pd.DataFrame) -> tuple[Candidate, ...]:
    """New runs and extensions worth considering, measured as densely as the study's own.

    Ranks: the study's, the powers of two between, and one beyond each end. Lengths: from the shortest run to twice the
    longest, in ratios of √2. Only runs at a constant learning rate can be taken further: a schedule ends with its run.

    Raises:
        FitError: parameters per rank or tokens per step differ between runs.
    """
    done = table[(table["state"] == "done") & (table["step"] > 0)]
    runs = done.groupby("run").agg(r=("r", "first"), steps=("total_steps", "first"), schedule=("schedule", "first"))
    first, count = int(done["step"].min()), int(done.groupby("run")["step"].nunique().max())
    shortest, longest = int(runs["steps"].min()), int(runs["steps"].max())
    lengths = sorted({*runs["steps"].astype(int).tolist(), *map(round, _lengths(shortest, REACH * longest))})

    def checkpoints(steps: int) -> tuple[int, ...]:  # in equal ratios, as `config.RunConfig.measured_steps`
        return tuple(np.unique(np.rint(np.geomspace(min(first, steps), steps, count)).astype(int)).tolist())

    powers = (2**k for k in range(max(laws.ranks).bit_length() + 1))
    ranks = sorted({*laws.ranks, *(power for power in powers if 2 * power >= min(laws.ranks))})
    offers = [_candidate(laws, r, steps, checkpoints(steps), run=None, had=0) for r in ranks for steps in lengths]
    for run, about in runs[runs["schedule"] == "constant"].iterrows():
        had = tuple(sorted({int(step) for step in done.loc[done["run"] == run, "step"]}))
        for steps in (length for length in lengths if length > about["steps"]):
            beyond = tuple(step for step in checkpoints(steps) if step > had[-1])
            offers.append(_candidate(laws, int(about["r"]), steps, had + beyond, run=str(run), had=about["steps"]))
    return tuple(offers)


def replay(
    table: pd.DataFrame, *, at: Place, pilot: Mapping[str, int], buy: Buyer, share: float, resume: bool,
    corpus: str | None = None, skip_fraction: float = SKIP_FRACTION,
) -> pd.DataFrame:  # fmt: skip
    """A finished study made again, run by run, as `buy` chooses among the runs the table has and their first parts.

    Begins with `pilot`, run names and their steps, refits every law after each purchase, and ends when no candidate
    fits into `share` of the table's tokens. A run cut at N steps stands for one of N steps. `resume` tells whether a
    run can be taken further for the price of the steps added; if not, a run that was bought stays as it is.

    A row per purchase: `run`, `steps`, `tokens` and `share` of all so far, `mean`, `low`, `high` and `width` of the
    law's 90 % interval of forgetting at `at`, and `n_runs`. The last row, `run` "all", is the whole table.

    Raises:
        ConfigError: a run of the pilot that is not in the table, or a share that is not positive.
        FitError: as `laws.fit`, or the schedule is not constant.
    """
    done = table[table["state"] == "done"]
    if set(done["schedule"]) != {"constant"}:
        raise FitError("got a learning rate that changes along a run, expected a constant one, at the replay")
    if not set(pilot) <= set(done["run"]) or not pilot or not share > 0:
        raise ConfigError(f"got pilot runs {', '.join(pilot)} and share {share}, expected runs of the table, above 0")
    whole = fit(done, corpus=corpus, skip_fraction=skip_fraction)
    lengths = done.groupby("run")["total_steps"].first()
    everything, per_step = int(lengths.sum()), _known(whole.tokens_per_step, "tokens per step")
    bought, rows, last = dict(pilot), [], next(iter(pilot))
    while True:
        until = done["run"].map(bought)
        have = done[done["step"] <= until]
        have = have.assign(total_steps=until[have.index].astype(int))
        laws, spent = fit(have, corpus=corpus, skip_fraction=skip_fraction), sum(bought.values())
        about = {"run": last, "steps": bought[last], "tokens": spent * per_step, "share": spent / everything}
        rows.append(about | _interval(laws, at))
        offers = _stored(laws, done, bought, shortest=min(pilot.values()), resume=resume)
        affordable = tuple(offer for offer in offers if offer.tokens <= (share * everything - spent) * per_step)
        if not affordable:
            break
        choice = buy(laws, have, affordable)
        last = offers[choice]
        bought[last] = choice.steps
    about = {"run": "all", "steps": int(lengths.max()), "tokens": everything * per_step, "share": 1.0}
    return pd.DataFrame([*rows, about | _interval(whole, at)])


def small_pilot(table: pd.DataFrame) -> dict[str, int]:
    """Three short runs to begin a replay with: of the lowest, middle and highest rank, to a quarter of its steps."""
    done = table[(table["state"] == "done") & (table["step"] > 0)]
    ranks, pilot = sorted(set(done["r"].tolist())), {}
    for r in {ranks[0], ranks[len(ranks) // 2], ranks[-1]}:
        rows = done[done["run"] == min(done.loc[done["r"] == r, "run"])]
        pilot[str(rows["run"].iloc[0])] = _nearest(rows["step"].tolist(), float(rows["total_steps"].iloc[0]) / 4)
    return dict(sorted(pilot.items()))


def best_buy(at: Place) -> Buyer:
    """Buys what narrows the interval at a place most for its cost."""
    return lambda laws, table, offers: next_runs(laws, table, at=at, candidates=offers).ranked[0].candidate


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known of the law at a place, and how to tell what more would add."""

    law: Fit
    scatter: RunScatter
    per_rank: float
    skip_fraction: float
    at: Place
    reached: float
    """Steps of the longest run."""
    width: float
    direction: FloatArray
    """(p,) derivative of the law at the place, over `unit`."""
    unit: FloatArray
    """(p,) lengths of the columns of the Jacobian of all points."""
    by_run: dict[str, Terms]
    scale: float
    """What makes the expected width, as it is now, that of the laws' own interval."""
    doubts: tuple[str, ...]


def _state(laws: Laws, table: pd.DataFrame, at: Place) -> _State:
    law, per_rank = laws.joint[measure_of_forgetting(laws)], _known(laws.params_per_rank, "parameters per rank")
    have = points(table, corpus=laws.corpus, skip_fraction=laws.skip_fraction)
    scatter, width, doubts = run_scatter(law, have), _interval(laws, at)["width"], []
    if math.isnan(scatter.level):
        scatter = replace(scatter, level=scatter.noise)
        doubts.append("the runs do not tell how runs differ: taken to be as much as single checkpoints do")
    least = LEAST * max(abs(each.value) for each in law.parameters.values())
    scatter = replace(scatter, noise=max(scatter.noise, least))
    if math.isnan(width):
        doubts.append("widths are of the linearised law, and only their ratios are of use")
    if set(table.loc[table["state"] == "done", "schedule"]) != {"constant"}:
        doubts.append("runs whose learning rate is not constant cannot be taken further, only made anew")
    runs = {str(run): rows for run, rows in have.groupby("run")}
    places = [(float(rows["trainable_params"].iloc[0]), rows["steps"].to_numpy(float)) for rows in runs.values()]
    unit = np.linalg.norm(law_jacobian(law, trainable_params=have["trainable_params"], steps=have["steps"]), axis=0)
    unit = np.maximum(unit, least)
    state = _State(
        law=law, scatter=scatter, per_rank=per_rank, skip_fraction=laws.skip_fraction, at=at, width=width, unit=unit,
        reached=float(have["steps"].max()), scale=1.0, doubts=tuple(doubts),
        direction=law_jacobian(law, trainable_params=at[0] * per_rank, steps=at[1]) / unit,
        by_run=dict(zip(runs, _terms(law, scatter, unit, places), strict=True)),
    )  # fmt: skip
    ratio = width / _width(state)
    return replace(state, scale=ratio) if ratio > 0 else state


def _terms(law: Fit, scatter: RunScatter, unit: FloatArray, runs: Sequence[tuple[float, FloatArray]]) -> list[Terms]:
    """Those of some runs, each given as its parameters and the steps that the laws use."""
    ends = np.cumsum([len(steps) for _, steps in runs])
    params = np.concatenate([np.full(len(steps), size) for size, steps in runs])
    every = law_jacobian(law, trainable_params=params, steps=np.concatenate([steps for _, steps in runs])) / unit
    blocks = np.split(every, ends[:-1])
    noises = [scatter.between(steps) + scatter.within(len(steps)) for _, steps in runs]
    return [(x.T @ x, x.T @ noise @ x, x.sum(axis=0)) for x, noise in zip(blocks, noises, strict=True)]


def _width(state: _State) -> float:
    """2 t σ, with Student's t as `Fit.predict` counts its degrees of freedom; infinite for one run."""
    own, spread, pull = (np.stack(each) for each in zip(*state.by_run.values(), strict=True))
    runs, j = len(own), state.direction
    if runs < 2:
        return math.inf
    total = own.sum(axis=0) + LEAST * np.eye(len(j))
    share = own @ np.linalg.inv(total)
    crossed = share @ spread
    moved = spread - crossed - crossed.swapaxes(1, 2) + share @ spread.sum(axis=0) @ share.swapaxes(1, 2)
    c = np.linalg.solve(total - own, np.broadcast_to(j, (runs, len(j)))[:, :, None])[:, :, 0]
    variance = (runs - 1) / runs * float(np.einsum("gi,gij,gj->", c, moved, c))
    weights = (pull @ np.linalg.solve(total, j)) ** 2
    dof = float(weights.sum() ** 2 / (weights**2).sum()) * (runs - 1) / runs
    return 2 * state.scale * t_quantile((1 + LEVEL) / 2, max(dof, 1)) * math.sqrt(max(variance, 0))


def _bought(state: _State, candidate: Candidate, terms: Terms) -> _State:
    """The state once a candidate has been run."""
    name = candidate.extends or f"new {len(state.by_run)}"
    return replace(state, by_run=state.by_run | {name: terms}, reached=max(state.reached, candidate.steps))


def _offered(state: _State, offers: Sequence[Candidate]) -> list[Terms]:
    used = [np.array([n for n in each.measured if n > state.skip_fraction * each.steps], float) for each in offers]
    sizes = [each.r * state.per_rank for each in offers]
    return _terms(state.law, state.scatter, state.unit, list(zip(sizes, used, strict=True)))


def _ranked(state: _State, offers: Sequence[Candidate]) -> tuple[Purchase, ...]:
    far = min(state.at[1], max(offer.steps for offer in offers)) if state.reached < state.at[1] else 0
    offers, before, purchases = [offer for offer in offers if offer.steps >= far], _width(state), []
    for offer, terms in zip(offers, _offered(state, offers), strict=True):
        after = _width(_bought(state, offer, terms))
        gain = (before - after if math.isfinite(before) else 1 / after) / (offer.flop or offer.tokens)
        known = math.inf if math.isnan(state.width) else before
        purchases.append(Purchase(candidate=offer, width_before=known, width_after=after, gain=gain))
    return tuple(sorted(purchases, key=lambda purchase: -purchase.gain))


def _verdict(state: _State, best: float, tolerance: float | None) -> tuple[bool, str]:
    """Whether to stop, and why or why not, in a sentence. `best` is the largest share any candidate narrows it by."""
    where = f"for r = {state.at[0]} at {state.at[1]} steps"
    if math.isnan(state.width):
        return False, f"There is no interval yet {where}: these runs are too few."
    now = f"the {100 * LEVEL:.0f} % interval {where} is {rounded(state.width, state.width / 4)} nats wide"
    if tolerance is not None and max(state.width, _width(replace(state, scale=1.0))) <= tolerance:
        return True, f"Stop: {now}, within {tolerance:g}."
    if best < HARDLY:
        return True, f"Stop: {now}, and no candidate would narrow it by {100 * HARDLY:.0f} %."
    return False, f"T{now[1:]}; what follows narrows it most for its cost."


def _interval(laws: Laws, at: Place) -> dict[str, float]:
    params = at[0] * _known(laws.params_per_rank, "parameters per rank")
    found = laws.joint[measure_of_forgetting(laws)].predict(trainable_params=params, steps=at[1])
    low, high = (float(end) for end in found.interval(LEVEL))
    return {"mean": float(found.mean), "low": low, "high": high, "width": high - low, "n_runs": laws.n_runs}


def _candidate(
    laws: Laws, r: int, steps: int, measured: tuple[int, ...], *, run: str | None, had: int
) -> Candidate:  # fmt: skip
    spent = cost(
        steps=steps - had, tokens_per_step=_known(laws.tokens_per_step, "tokens per step"),
        trainable_params=r * _known(laws.params_per_rank, "parameters per rank"), base_params=laws.base_params,
        seconds_per_token=None,
    )  # fmt: skip
    return Candidate(r=r, steps=steps, extends=run, tokens=spent.tokens or 0, flop=spent.flop, measured=measured)


def _lengths(shortest: float, longest: float) -> list[float]:
    count = math.ceil(math.log(longest / shortest, LENGTHS) - LEAST)
    return [shortest * LENGTHS**k for k in range(count)] + [longest]


def _nearest(steps: Sequence[float], wanted: float) -> int:
    return int(min(steps, key=lambda step: abs(math.log(step / wanted))))


def _stored(
    laws: Laws, done: pd.DataFrame, bought: Mapping[str, int], *, shortest: int, resume: bool
) -> dict[Candidate, str]:  # fmt: skip
    """What is left to buy, and the run that has it: of runs alike the first, in ratios of √2 from `shortest` on."""
    offers: dict[Candidate, str] = {}
    for run, rows in done[done["step"] > 0].groupby("run"):
        name, had, r = str(run), bought.get(str(run), 0), int(rows["r"].iloc[0])
        measured = sorted({int(step) for step in rows["step"]})
        lengths = {_nearest(measured, length) for length in _lengths(shortest, max(measured[-1], shortest + 1))}
        for steps in sorted(length for length in lengths if length > had and (resume or not had)):
            places = tuple(step for step in measured if step <= steps)
            offers.setdefault(_candidate(laws, r, steps, places, run=name if had else None, had=had), name)
    return offers


def _known(value: float | None, what: str) -> float:
    if value is None:
        raise FitError(f"got {what} that differ between the runs, expected one value, at the runs to buy")
    return value
