"""The laws read backwards: which rank, and how many steps, under a budget of forgetting or for a loss to reach."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.errors import ConfigError, FitError
from holdfast.laws import Fit, Laws
from holdfast.stats import Estimate, Prediction, as_dict, rounded, t_quantile

MEASURE = "kl_base_tuned"
"""Of forgetting, that budgets are held to."""

LEVEL = 0.9
"""Of every interval named in a reason."""

STEP_CHOICES = 400
REACH = 4
"""How many times fewer or more steps than were run are considered, when nothing within them will do."""

HARDLY = 0.5
"""Rank hardly matters when all of its exponent's interval lies below this share of that of steps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recommendation and its risk, or the nearest miss. Losses and forgetting in nats per scored token."""

    feasible: bool
    r: int
    trainable_params: int
    steps: int
    forgetting: Prediction
    target_nll: Prediction
    price: Estimate
    """Nats forgotten per nat learned: the slope of the line."""
    probability_over_budget: float | None
    """That one such run forgets more than `max_forgetting`; None without one, nan without an interval."""
    extrapolates: bool
    """Nothing within what was run will do, so this lies beyond it."""
    reasons: tuple[str, ...]
    """Plain sentences; the first is the price of learning."""
    warnings: tuple[str, ...]
    max_forgetting: float | None
    target_loss: float | None
    risk: float

    def __str__(self) -> str:
        return "\n".join([*self.reasons, *(f"Note: {warning}." for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def plan(
    laws: Laws, *, max_forgetting: float | None = None, target_loss: float | None = None, risk: float = 0.1
) -> Plan:
    """The best rank and number of steps, by the joint laws of forgetting (KL, base to tuned) and of the target loss.

    Under `max_forgetting`, the lowest expected target loss among choices whose run exceeds the budget with a
    probability of at most `risk`. Under `target_loss`, the least expected forgetting among choices expected to reach
    it. Under both, the lowest loss among choices that satisfy both. Equals go to the fewest parameters, then steps.

    The risk is that of one run, so it counts a run's own scatter and not only the uncertainty of the law. Ranks are
    those of the study and the powers of two between; steps those within the study or, only if none will do, up to
    four times fewer or more, which `extrapolates` says.

    Raises:
        ConfigError: neither budget nor loss, or one that is not a positive number, or a risk not between 0 and 1.
        FitError: trainable parameters per rank differ between the runs, so a rank does not say how many they are.
    """
    _check(max_forgetting=max_forgetting, target_loss=target_loss, risk=risk)
    choice = _choose(laws, max_forgetting=max_forgetting, target_loss=target_loss, risk=risk, reach=1)
    if not choice.feasible:
        choice = _choose(laws, max_forgetting=max_forgetting, target_loss=target_loss, risk=risk, reach=REACH)
    params = round(choice.r * _params_per_rank(laws))
    forgetting = laws.joint[MEASURE].predict(trainable_params=params, steps=choice.steps)
    target_nll = laws.joint["target_nll"].predict(trainable_params=params, steps=choice.steps)
    over = None if max_forgetting is None else float(forgetting.probability_above(max_forgetting))
    low, high = laws.joint[MEASURE].domain["steps"]

    reasons = [price_in_words(laws), _outcome(laws, choice, forgetting, target_nll)]
    if over is not None and not math.isnan(over):
        reasons.append(f"The probability that such a run forgets more than {max_forgetting:g} is {_percent(over)}.")
    if choice.feasible and choice.steps in {low, high}:
        reasons.append(f"It is at the edge of the {low:g} to {high:g} steps that were run: beyond may be better still.")
    reasons += _rank_against_steps(laws.joint[MEASURE])

    fits = (laws.lines[MEASURE], laws.joint[MEASURE], laws.joint["target_nll"])
    warnings = [*laws.warnings, *(warning for fit in fits for warning in fit.warnings)]
    if forgetting.extrapolates:
        warnings.append(f"{choice.steps} steps were never run, only {low:g} to {high:g}: the laws may not hold there")
    if over is not None and math.isnan(over):
        warnings.append(f"no interval: the budget is held by the mean, and a risk of {_percent(risk)} is not assured")
    return Plan(
        feasible=choice.feasible,
        r=choice.r,
        trainable_params=params,
        steps=choice.steps,
        forgetting=forgetting,
        target_nll=target_nll,
        price=laws.lines[MEASURE].parameters["slope"],
        probability_over_budget=over,
        extrapolates=bool(forgetting.extrapolates),
        reasons=tuple(reasons),
        warnings=tuple(dict.fromkeys(warnings)),
        max_forgetting=max_forgetting,
        target_loss=target_loss,
        risk=risk,
    )


def price_in_words(laws: Laws) -> str:
    """The price of learning, as one sentence: what a tenth of a nat learned costs in nats forgotten."""
    price = laws.lines[MEASURE].parameters["slope"]
    tenth = Estimate(value=price.value / 10, stderr=price.stderr / 10, n=price.n)
    low, high = (rounded(end, tenth.stderr) for end in tenth.interval(LEVEL))
    interval = "no interval" if math.isnan(tenth.stderr) else f"{_percent(LEVEL)} interval {low} to {high}"
    cost = f"{rounded(tenth.value, tenth.stderr)} nats of forgetting on {laws.corpus} ({interval})"
    return f"Each 0.1 nat of improvement on {laws.target} costs {cost}."


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """One rank and number of steps, with how far it misses what was asked, in nats."""

    r: int
    steps: int
    excess: float
    shortfall: float

    @property
    def feasible(self) -> bool:
        return self.excess + self.shortfall <= 0


def _choose(
    laws: Laws, *, max_forgetting: float | None, target_loss: float | None, risk: float, reach: float
) -> _Choice:
    """The best of all choices up to `reach` times outside the steps that were run, or the nearest miss."""
    r, steps = (axis.ravel() for axis in np.meshgrid(_ranks(laws), _steps(laws, reach), indexing="ij"))
    at = {"trainable_params": r * _params_per_rank(laws), "steps": steps}
    forgetting, loss = laws.joint[MEASURE].predict(**at), laws.joint["target_nll"].predict(**at)
    ceiling = forgetting.run_quantile(1 - risk)
    ceiling = np.where(np.isnan(ceiling), forgetting.mean, ceiling)
    excess = np.maximum(ceiling - (math.inf if max_forgetting is None else max_forgetting), 0)
    shortfall = np.maximum(loss.mean - (math.inf if target_loss is None else target_loss), 0)
    miss, wish = excess + shortfall, forgetting.mean if max_forgetting is None else loss.mean
    best = int(np.argmin(np.where(miss <= 0, wish, np.inf) if (miss <= 0).any() else miss))
    return _Choice(r=int(r[best]), steps=int(steps[best]), excess=float(excess[best]), shortfall=float(shortfall[best]))


def _params_per_rank(laws: Laws) -> float:
    if laws.params_per_rank is None:
        raise FitError(
            "got runs whose trainable parameters per rank differ, expected one ratio, at the laws to plan by"
        )
    return laws.params_per_rank


def _ranks(laws: Laws) -> npt.NDArray[np.int64]:
    """Those of the study, and the powers of two between."""
    low, high = min(laws.ranks), max(laws.ranks)
    return np.array(sorted({*laws.ranks, *(2**k for k in range(high.bit_length()) if low <= 2**k <= high)}))


def _steps(laws: Laws, reach: float) -> npt.NDArray[np.int64]:
    low, high = laws.joint[MEASURE].domain["steps"]
    return np.unique(np.rint(np.geomspace(max(low / reach, 1), high * reach, STEP_CHOICES)).astype(np.int64))


def _outcome(laws: Laws, choice: _Choice, forgetting: Prediction, target_nll: Prediction) -> str:
    forecast = (
        f"r = {choice.r} for {choice.steps} steps should forget {_one_run(forgetting, laws.corpus)} "
        f"and reach a loss of {_one_run(target_nll, laws.target)}."
    )
    if choice.feasible:
        return forecast
    misses = []
    if choice.excess > 0:
        misses.append(f"the budget by {choice.excess:.2g} nats, at the risk allowed")
    if choice.shortfall > 0:
        misses.append(f"the target loss by {choice.shortfall:.2g} nats")
    return f"Not feasible: the nearest choice misses {' and '.join(misses)}. {forecast}"


def _one_run(prediction: Prediction, corpus: str) -> str:
    """The expected value, and where most single runs come out."""
    error = math.hypot(float(prediction.stderr), prediction.scatter)
    expected = f"{rounded(float(prediction.mean), error)} nats per token on {corpus}"
    if math.isnan(error):
        return expected
    low, high = (rounded(float(prediction.run_quantile(tail)), error) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return f"{expected} ({_percent(LEVEL)} of runs {low} to {high})"


def _rank_against_steps(fit: Fit) -> list[str]:
    """Which of the two matters more for forgetting, when the exponents tell; nothing otherwise."""
    x, y = fit.parameters.get("x"), fit.parameters.get("y")
    if x is None or y is None or math.isnan(x.stderr) or math.isnan(y.stderr):
        return []
    i, j = list(fit.parameters).index("x"), list(fit.parameters).index("y")
    covariance = fit.covariance
    error = math.sqrt(max(covariance[i][i] + covariance[j][j] - 2 * covariance[i][j], 0))
    if abs(y.value - x.value) <= t_quantile((1 + LEVEL) / 2, fit.dof) * error:
        return []
    if x.interval(LEVEL)[1] < HARDLY * y.interval(LEVEL)[0]:
        verdict = "Rank hardly matters, steps do"
    else:
        verdict = "Steps matter more than rank" if y.value > x.value else "Rank matters more than steps"
    by_rank, by_steps = (_exponent(estimate) for estimate in (x, y))
    return [f"{verdict}: forgetting follows parameters with exponent {by_rank}, steps with {by_steps}."]


def _exponent(estimate: Estimate) -> str:
    low, high = (rounded(end, estimate.stderr) for end in estimate.interval(LEVEL))
    return f"{rounded(estimate.value, estimate.stderr)} ({_percent(LEVEL)} interval {low} to {high})"


def _percent(share: float) -> str:
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _check(*, max_forgetting: float | None, target_loss: float | None, risk: float) -> None:
    """Refuse a question that has no answer, with everything wrong about it."""
    wrong = []
    if max_forgetting is None and target_loss is None:
        wrong.append("got neither max_forgetting nor target_loss, expected at least one")
    for name, value in (("max_forgetting", max_forgetting), ("target_loss", target_loss)):
        if value is not None and not (math.isfinite(value) and value > 0):
            wrong.append(f"got {name} {value}, expected a positive number of nats per token")
    if not 0 < risk < 1:
        wrong.append(f"got risk {risk}, expected a probability between 0 and 1")
    if wrong:
        raise ConfigError("; ".join(wrong) + ", at the plan asked for")
