"""Which run to buy next: by how much each would narrow the plan's interval, for what it costs.

The interval is the one a plan prints, of what one run at its point forgets: what is not known of the law, which more
runs narrow without end, and how single runs scatter about it, which they only tell better.

The law is linearised where it was fitted, and what its own interval should be follows without making a run. Run g, of
checkpoints with Jacobian X_g (n, p) and noise covariance V_g (what whole runs differ by, and what fades between
checkpoints), enters the laws' least squares by A_g = X_gᵀ X_g and S_g = X_gᵀ V_g X_g; B and S are their sums. Its
pull s_g moves the parameters by R_g s_g (`stats.bias_reduced`). With c_g = R_g j, j the derivative at the plan's point,

    cov s_g = S_g − S_g B⁻¹ A_g − A_g B⁻¹ S_g + A_g B⁻¹ S B⁻¹ A_g                     variance = Σ_g c_gᵀ (cov s_g) c_g

is what `stats.clustered_covariance` finds on average. Runs of one rank are less independent than it takes them to be:
what the law misses at that rank they all miss, and they train on the same batches. So τ², a share of the variance
between runs, is taken as common to a rank, and jᵀ B⁻¹ (Σ τ² u_g u_hᵀ) B⁻¹ j is added, over pairs of different runs
of one rank, u_g = X_gᵀ d, d what checkpoints scatter relative to each other; without it the cheapest seed is advised
again and again.

The textbook's information, Xᵀ V⁻¹ X (V-optimal design), is of an estimator that weighs runs by V, as the laws' does
not: chosen by it, one long run carries all of a slope, and an error clustered by run doubts that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from holdfast.choices import measure_of_forgetting
from holdfast.errors import ConfigError, FitError
from holdfast.fits import BY_RANK
from holdfast.forecasting import RunScatter, law_jacobian, run_scatter
from holdfast.laws import Fit, Laws, points
from holdfast.offers import Candidate, known, possible_runs
from holdfast.planning import plan
from holdfast.stats import FloatArray, as_dict, bias_reduced, common_share, rounded, t_quantile

LEVEL = 0.9
"""Of the interval that is to be narrowed."""

HARDLY = 0.05
"""A purchase that narrows the interval by less than this share is not worth making, unless it is asked for."""

SURE = 0.05
"""Chance of error at which a tolerance is called out of reach, for single runs scatter by more."""

LEAST = 1e-9
"""Share of the law's largest constant below which noise, and what a constant moves, is rounding."""

Place = tuple[int, int]
"""Rank and number of steps."""

SHARED = 0.5
"""Share of the variance between runs that all runs of a rank are taken to have in common, as long as none tells."""


class Terms(NamedTuple):
    """What a run is to the fit, its parameters in the `unit` of the state."""

    own: FloatArray
    """(p, p) A_g."""
    spread: FloatArray
    """(p, p) S_g."""
    pull: FloatArray
    """(p,) X_gᵀ d, as a whole, d how much each of its checkpoints scatters."""
    r: int


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """A candidate and what it is expected to do to the plan's interval, nats per token; infinite without one.

    Where the interval is narrow by luck, both widths are of what such runs give on average.
    """

    candidate: Candidate
    width_before: float
    width_after: float
    gain: float
    """Nats narrower per FLOP; per token where FLOP are not known."""

    def __str__(self) -> str:
        asked = self.candidate
        what = "Run" if asked.finishes is None else f"Finish run {asked.finishes}:"
        of = "" if asked.finishes is None else " left"
        share = f"narrow it by {100 * (1 - self.width_after / self.width_before):.0f} %, to {self.width_after:.2g} nats"
        first = "give one" if math.isfinite(self.width_after) else "not give one alone"
        does = share if math.isfinite(self.width_before) else first
        return f"{what} r = {asked.r} to {asked.steps} steps ({asked.tokens:,} tokens{of}): should {does}."


@dataclass(frozen=True, kw_only=True)
class NextRuns:
    """What to run next, or to stop. Widths are of 90 % intervals of forgetting at the plan's point, nats per token."""

    at: Place
    width: float
    """Of what one run forgets, as a plan by the laws as they are prints it; nan without an interval."""
    expected_width: float
    """What runs like these give on average: that of few runs is often narrow by luck. Infinite of one run."""
    limit: float
    """What no number of runs would make it narrower than, by how single runs scatter."""
    law_width: float
    """Of the law alone, the average of many runs: what more runs narrow without end; nan without an interval."""
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


def next_runs(
    laws: Laws, table: pd.DataFrame, *, at: Place | None = None, max_forgetting: float | None = None,
    candidates: Sequence[Candidate] | None = None, tolerance: float | None = None, number: int = 1,
    least: float = HARDLY,
) -> NextRuns:  # fmt: skip
    """Candidates by how much each should narrow the plan's interval, of what one run forgets, for its cost.

    The point is `at`, rank and steps, or that of `planning.plan` under `max_forgetting`. `candidates` are those of
    `possible_runs` unless given. A run may widen the interval: one far from the point that outweighs the others.
    Until some run has reached the steps of the point, only candidates that do, or the longest, are ranked: an interval
    beyond all runs rests on the formula alone. Stops when the interval is within `tolerance`, both as the laws have it
    and as it is expected to be, for that of few runs is often narrow by luck; when single runs surely scatter by more;
    or when no candidate narrows it by 5 %.

    Raises:
        ConfigError: not exactly one of `at` and `max_forgetting`, or a number, tolerance or place out of range.
        FitError: no candidate; parameters or tokens differ between runs so that rank or steps do not say how many.
    """
    asked = {"max_forgetting": max_forgetting, "tolerance": tolerance, "number": number, "at": at and min(at)}
    if (at is None) == (max_forgetting is None) or any(one is not None and not one > 0 for one in asked.values()):
        listed = ", ".join(f"{name} {one}" for name, one in (asked | {"at": at}).items())
        raise ConfigError(
            f"got {listed}, expected a budget by --max-forgetting, or max_forgetting or at in Python, and all above "
            "0, at the next runs"
        )
    unkept = []
    if at is None:
        found = plan(laws, max_forgetting=max_forgetting)
        at = (found.r, found.steps)
        if not found.feasible:
            unkept.append(
                f"no run keeps within {max_forgetting:g}, and r = {found.r} for {found.steps} steps comes nearest"
            )
    offers = possible_runs(laws, table) if candidates is None else tuple(candidates)
    if not offers:
        raise FitError("got no candidate, expected at least one run to buy, at the next runs")
    state = _state(laws, table, at)
    ranked = _ranked(state, offers)
    best = min(each.width_after / each.width_before for each in ranked)
    expected = _width(replace(state, scale=1.0, point=state.usual))
    stop, reason = _verdict(state, expected, 1 - best, tolerance, least)
    chosen: list[Purchase] = []
    while not stop and len(chosen) < number and offers:
        chosen.append(_ranked(state, offers)[0])
        bought = chosen[-1].candidate
        state = _bought(state, bought, _offered(state, [bought])[0])
        # A new run can be made again with another seed.
        offers = tuple(offer for offer in offers if offer is not bought or bought.finishes is None)
    return NextRuns(
        at=at, width=state.width, expected_width=expected, limit=state.limit, law_width=state.law_width,
        chosen=tuple(chosen), ranked=ranked, stop=stop, reason=reason,
        warnings=tuple(dict.fromkeys([*unkept, *state.doubts, *state.law.warnings])),
    )  # fmt: skip


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
    law_width: float
    limit: float
    point: float
    """Standard deviation of one run there about the law: the laws' own, or the usual one where that is larger."""
    usual: float
    """The same by `scatter`, which is never narrow by luck."""
    direction: FloatArray
    """(p,) derivative of the law at the place, over `unit`."""
    unit: FloatArray
    """(p,) lengths of the columns of the Jacobian of all points."""
    by_run: dict[str, Terms]
    shared: float
    """Variance between runs that runs of one rank have in common."""
    scale: float
    """What makes the law's expected standard error, as it is now, that of the laws, but 1 where theirs is smaller."""
    doubts: tuple[str, ...]


def _state(laws: Laws, table: pd.DataFrame, at: Place) -> _State:
    law, per_rank = laws.joint[measure_of_forgetting(laws)], known(laws.params_per_rank, "parameters per rank")
    own = table[table["run"].isin(laws.runs)]
    have = points(own, corpus=laws.corpus, skip_fraction=laws.skip_fraction)
    now, scatter, doubts = law.predict(trainable_params=at[0] * per_rank, steps=at[1]), run_scatter(law, have), []
    limit = 2 * t_quantile((1 + LEVEL) / 2, math.inf) * float(now.scatter)
    ends = now.run_quantile((1 - LEVEL) / 2), now.run_quantile((1 + LEVEL) / 2)
    width, law_width = (float(high - low) for low, high in (ends, now.interval(LEVEL)))
    if math.isnan(scatter.level):
        scatter = replace(scatter, level=scatter.noise)
        doubts.append("the runs do not tell how runs differ: taken to be as much as single checkpoints do")
    least = LEAST * max(abs(each.value) for each in law.parameters.values())
    scatter = replace(scatter, noise=max(scatter.noise, least))
    usual = math.sqrt(float(scatter.between(np.array([at[1]]))[0, 0]) + scatter.noise**2)
    usual *= float(law.scatter.relative(now.mean))
    if math.isnan(width):
        doubts.append("widths are of the linearised law, and only their ratios are of use")
    runs = {str(run): rows for run, rows in have.groupby("run")}
    places = [(int(rows["r"].iloc[0]), rows["steps"].to_numpy(float)) for rows in runs.values()]
    unit = np.linalg.norm(law_jacobian(law, trainable_params=have["trainable_params"], steps=have["steps"]), axis=0)
    unit = np.maximum(unit, least)
    state = _State(
        law=law, scatter=scatter, per_rank=per_rank, skip_fraction=laws.skip_fraction, at=at, width=width,
        law_width=law_width, limit=limit, point=max(float(now.scatter), usual), usual=usual, unit=unit, scale=1.0,
        reached=float(have["steps"].max()), shared=_shared(law, have) * scatter.level**2, doubts=tuple(doubts),
        direction=law_jacobian(law, trainable_params=at[0] * per_rank, steps=at[1]) / unit,
        by_run=dict(zip(runs, _terms(law, scatter, unit, per_rank, places), strict=True)),
    )  # fmt: skip
    ratio = float(now.stderr) / math.sqrt(_law_variance(state)[0])
    return replace(state, scale=ratio) if ratio > 1 else state


def _shared(law: Fit, have: pd.DataFrame) -> float:
    """Share of the variance between runs that runs of one rank have in common: a half, until runs of one rank tell.

    From the runs' mean residuals; the half counts as one repeated run.
    """
    inputs = {name: have[name].to_numpy(np.float64) for name in law.domain}
    fitted = law.predict(**inputs).mean
    missed = have.assign(missed=(have[law.quantity] - fitted) / law.scatter.relative(fitted)).groupby("run")
    ranks = missed["r"].first().to_numpy()
    found, _ = common_share(missed["missed"].mean().to_numpy(), groups=ranks, constants=BY_RANK)
    repeats = len(ranks) - len(set(ranks.tolist()))
    return SHARED if math.isnan(found) else (SHARED + repeats * found) / (1 + repeats)


def _terms(
    law: Fit, scatter: RunScatter, unit: FloatArray, per_rank: float, runs: Sequence[tuple[int, FloatArray]]
) -> list[Terms]:
    """Those of some runs, each given as its rank and the steps that the laws use."""
    ends = np.cumsum([len(steps) for _, steps in runs])
    params = np.concatenate([np.full(len(steps), r * per_rank) for r, steps in runs])
    steps = np.concatenate([steps for _, steps in runs])
    every = law_jacobian(law, trainable_params=params, steps=steps) / unit
    scale = law.scatter.relative(law.predict(trainable_params=params, steps=steps).mean)
    return [
        Terms(x.T @ x, (d * x.T) @ (scatter.between(steps) + scatter.within(len(steps))) @ (d * x.T).T, d @ x, r)
        for x, d, (r, steps) in zip(np.split(every, ends[:-1]), np.split(scale, ends[:-1]), runs, strict=True)
    ]


def _width(state: _State) -> float:
    """Of one run, as `Prediction.run_quantile`: what is not known of the law, and how single runs scatter."""
    variance, dof = _law_variance(state)
    if math.isinf(variance):
        return math.inf
    told = max(state.law.scatter.dof * len(state.by_run) / state.law.n_runs, 1)
    of_law, of_run = (t_quantile((1 + LEVEL) / 2, each) for each in (dof, told))
    return 2 * math.hypot(of_law * math.sqrt(variance), of_run * state.point)


def _law_variance(state: _State) -> tuple[float, float]:
    """Expected, of the law at the place, and its degrees of freedom as `Fit.predict` counts them.

    Infinite for one run, and where a run fewer leaves the law open, as the laws have no interval there.
    """
    own, spread, pull, r = (np.stack(each) for each in zip(*state.by_run.values(), strict=True))
    runs, j = len(own), state.direction
    if runs < 2:
        return math.inf, 0.0
    c, total = bias_reduced(own) @ j, own.sum(axis=0)
    if np.isnan(c).any():
        return math.inf, 0.0
    share = own @ np.linalg.inv(total)
    crossed = share @ spread
    moved = spread - crossed - crossed.swapaxes(1, 2) + share @ spread.sum(axis=0) @ share.swapaxes(1, 2)
    variance = float(np.einsum("gi,gij,gj->", c, moved, c))
    moves = pull @ np.linalg.solve(total, j)
    alike = (r[:, None] == r) & ~np.eye(runs, dtype=bool)
    common = state.shared * float(moves @ alike @ moves)  # below 0 where runs of a rank pull against each other
    variance += common if variance + common > 0 else 0.0
    weights = moves**2
    dof = float(weights.sum() ** 2 / (weights**2).sum()) * (runs - 1) / runs
    return state.scale**2 * variance, max(dof, 1)


def _bought(state: _State, candidate: Candidate, terms: Terms) -> _State:
    """The state once a candidate has been run."""
    name = candidate.finishes or f"new {len(state.by_run)}"
    return replace(state, by_run=state.by_run | {name: terms}, reached=max(state.reached, candidate.steps))


def _offered(state: _State, offers: Sequence[Candidate]) -> list[Terms]:
    used = [np.array([n for n in each.measured if n > state.skip_fraction * each.steps], float) for each in offers]
    runs = [(offer.r, steps) for offer, steps in zip(offers, used, strict=True)]
    return _terms(state.law, state.scatter, state.unit, state.per_rank, runs)


def _ranked(state: _State, offers: Sequence[Candidate]) -> tuple[Purchase, ...]:
    far = min(state.at[1], max(offer.steps for offer in offers)) if state.reached < state.at[1] else 0
    offers, before, purchases = [offer for offer in offers if offer.steps >= far], _width(state), []
    for offer, terms in zip(offers, _offered(state, offers), strict=True):
        after = _width(_bought(state, offer, terms))
        gain = (before - after if math.isfinite(before) else 1 / after) / (offer.flop or offer.tokens)
        known = math.inf if math.isnan(state.width) else before
        purchases.append(Purchase(candidate=offer, width_before=known, width_after=after, gain=gain))
    return tuple(sorted(purchases, key=lambda purchase: -purchase.gain))


def _verdict(state: _State, expected: float, best: float, tolerance: float | None, least: float) -> tuple[bool, str]:
    """Whether to stop, and why or why not, in a sentence. `best` is the largest share any candidate narrows it by."""
    where = f"for a run of r = {state.at[0]} and {state.at[1]} steps"
    if math.isnan(state.width):
        return False, f"There is no interval yet {where}: these runs are too few."
    limit, low = state.limit, state.limit * state.law.scatter.surely(SURE)
    now = (
        f"the {100 * LEVEL:.0f} % interval {where} is {rounded(state.width, state.width / 4)} nats wide, and "
        f"would be {rounded(limit, limit / 4)} if the law were known, as single runs scatter"
    )
    if (before := _width(state)) > (1 + HARDLY) * state.width:
        now += f"; that is narrow by luck, such runs give {rounded(before, before / 4)} on average"
    if tolerance is not None and max(state.width, expected) <= tolerance:
        return True, f"Stop: {now}; it is within {tolerance:g}."
    if tolerance is not None and low > tolerance:
        return True, f"Stop: {now}; no number of runs would bring it within {tolerance:g}."
    if best < least:
        return True, f"Stop: {now}; no run would narrow it by {100 * least:.0f} %."
    return False, f"T{now[1:]}. What follows narrows it most for its cost."
