"""The laws read backwards: which rank, and how many steps, under a budget of forgetting or for a loss to reach."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.choices import (
    FLOORED,
    REACH,
    Answer,
    Choice,
    best,
    candidates,
    frontier,
    measure_of_forgetting,
    undominated,
)
from holdfast.costs import Cost
from holdfast.display import html_table
from holdfast.errors import ConfigError
from holdfast.laws import Fit, Laws
from holdfast.stats import Estimate, Prediction, as_dict, rounded, t_quantile

__all__ = ["Choice", "Cost", "Plan", "frontier", "plan", "price_in_words"]

LEVEL = 0.9
"""Of every interval named in a reason."""

HARDLY = 0.5
"""Rank hardly matters when all of its exponent's interval lies below this share of that of steps."""

AVERAGE = 0.15
"""Share of the variation left by the line above which its price is no more than an average."""

ALIKE = 0.1
"""Ranks pay the same price when, at equal loss, they forget alike to this share of all that forgetting varies."""

OFF_RANK = 0.01
"""Share by which parameters asked for may differ from a whole rank's before it is said."""

EXPONENTS = ("multiplicative", "paper", "growth")
"""Laws whose x and y are what forgetting follows parameters and steps with."""

WORDS = {"kl_base_tuned": "forgetting", "hard_cross_entropy": "hard forgetting loss"}
"""What each measure of forgetting is called in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recommendation and its risk, or the nearest miss. Losses and forgetting in nats per scored token."""

    feasible: bool
    measure: str
    """Of forgetting, that the budget is held to."""
    r: int
    trainable_params: int
    steps: int
    forgetting: Prediction
    target_nll: Prediction
    price: Estimate
    """Nats forgotten per nat learned: the slope of the line."""
    probability_over_budget: float | None
    """That one such run forgets more than `max_forgetting`; None without one, nan without an interval."""
    cost: Cost
    extrapolates: bool
    """Its steps or parameters lie outside what was run: nothing within will do, or it was asked for."""
    at_half_budget: Choice | None
    """What the answer would be; None without a budget, or when half of it cannot be kept."""
    at_double_budget: Choice | None
    """The same for twice the budget."""
    frontier: tuple[Choice, ...]
    """What no other choice beats, from least forgetting to most; see `choices.frontier`."""
    reasons: tuple[str, ...]
    """Plain sentences; the first is the price of learning."""
    warnings: tuple[str, ...]
    max_forgetting: float | None
    target_loss: float | None
    risk: float

    def __str__(self) -> str:
        return "\n".join([*self.reasons, *(f"Note: {warning}." for warning in self.warnings)])

    def _repr_html_(self) -> str:
        over = self.probability_over_budget
        rows = [
            ("Rank", self.r),
            ("Steps", f"{self.steps:,}"),
            ("Trainable parameters", f"{self.trainable_params:,}"),
            ("Forgetting, nats per token", _one_run(self.forgetting, "")),
            ("Target loss, nats per token", _one_run(self.target_nll, "")),
            ("Chance of exceeding the budget", _chance(over)),
        ]
        head = ("Recommended" if self.feasible else "Not feasible; the nearest miss", "")
        return html_table(head, rows, (*self.reasons, *self.warnings))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def plan(
    laws: Laws,
    *,
    max_forgetting: float | None = None,
    target_loss: float | None = None,
    risk: float = 0.1,
    trainable_params: float | None = None,
    r: int | None = None,
    seconds_per_token: float | None = None,
) -> Plan:
    """The best rank and number of steps, by the joint laws of forgetting and of the target loss.

    Forgetting is KL, base to tuned, or the paper's hard loss where the laws have that alone; `Plan.measure` names it.

    Under `max_forgetting`, the lowest expected target loss among choices whose run exceeds the budget with a
    probability of at most `risk`. Under `target_loss`, the least expected forgetting among choices expected to reach
    it. Under both, the lowest loss among choices that satisfy both. Equals go to the fewest parameters, then steps.

    The risk is that of one run, so it counts a run's own scatter and not only the uncertainty of the law. Ranks are
    those of the study and the powers of two between, or the one of `r` or `trainable_params`; steps those within the
    study or, only if none will do, up to four times fewer or more, which `extrapolates` says. Fewer are taken to forget
    in proportion to the fewest fitted, or more. Never fewer for the hard loss: its law does not know the base's own.

    The cost is known as far as the laws know the size of the base, and `seconds_per_token`, the time to train on one,
    is given (`progress.seconds_per_token`); see `costs`.

    Raises:
        ConfigError: neither budget nor loss, or one that is not a positive number, a risk not between 0 and 1, both a
            rank and a number of parameters, or a rank or number that is not positive.
        FitError: trainable parameters per rank differ between the runs, so a rank does not say how many they are; or
            the laws measure no forgetting.
    """
    _check(
        max_forgetting=max_forgetting, target_loss=target_loss, risk=risk, trainable_params=trainable_params, r=r,
    )  # fmt: skip
    measure = measure_of_forgetting(laws)
    within, beyond = (
        candidates(laws, reach=reach, trainable_params=trainable_params, r=r, seconds_per_token=seconds_per_token)
        for reach in (1, REACH)
    )

    def under(times: float) -> Answer:
        budget = None if max_forgetting is None else times * max_forgetting
        return best([within, beyond], max_forgetting=budget, target_loss=target_loss, risk=risk)

    answer = under(1)
    choice = answer.choice
    other = {} if max_forgetting is None else {times: under(times) for times in (0.5, 2)}
    at = {times: found.choice if found.feasible else None for times, found in other.items()}
    over = None if max_forgetting is None else float(choice.forgetting.probability_above(max_forgetting))
    spent = Cost(tokens=choice.tokens, flop=choice.flop, seconds=choice.seconds)
    low, high = laws.joint[measure].domain["steps"]

    reasons = [price_in_words(laws), _outcome(laws, answer)]
    if over is not None and not math.isnan(over):
        reasons.append(f"The probability that such a run forgets more than {max_forgetting:g} is {percent(over)}.")
    if answer.feasible and choice.steps in {low, high}:
        reasons.append(f"It is at the edge of the {low:g} to {high:g} steps that were run: beyond may be better still.")
    reasons += _rank_against_steps(laws.joint[measure])
    if max_forgetting is not None:
        reasons += _other_budgets(laws, answer, other, max_forgetting=max_forgetting)
    if spent.tokens is not None:
        reasons.append(f"It trains on {spent}.")

    fits = (laws.lines[measure], laws.joint[measure], laws.joint["target_nll"])
    warnings = [*laws.warnings, *(warning for fit in fits for warning in fit.warnings)]
    warnings += _beyond(laws, choice)
    if answer.excess > 0 and measure in FLOORED:
        warnings.append(
            f"fewer than {low:g} steps are not considered: the {WORDS[measure]} ends at the untuned base's own, which "
            "the law does not know"
        )
    if over is not None and math.isnan(over):
        warnings.append(f"no interval: the budget is held by the mean, and a risk of {percent(risk)} is not assured")
    return Plan(
        feasible=answer.feasible,
        measure=measure,
        r=choice.r,
        trainable_params=choice.trainable_params,
        steps=choice.steps,
        forgetting=choice.forgetting,
        target_nll=choice.target_nll,
        price=laws.lines[measure].parameters["slope"],
        probability_over_budget=over,
        cost=spent,
        extrapolates=choice.extrapolates,
        at_half_budget=at.get(0.5),
        at_double_budget=at.get(2),
        frontier=undominated(within),
        reasons=tuple(reasons),
        warnings=tuple(dict.fromkeys(warnings)),
        max_forgetting=max_forgetting,
        target_loss=target_loss,
        risk=risk,
    )


def price_in_words(laws: Laws) -> str:
    """The price of learning, as one sentence: what a tenth of a nat learned costs in nats forgotten.

    It is the price "whatever the rank" only where several ranks were run, the line explains what was measured
    (R² of at least .85), and the joint laws expect ranks to forget alike at equal loss.
    """
    measure = measure_of_forgetting(laws)
    price = laws.lines[measure].parameters["slope"]
    tenth = Estimate(value=price.value / 10, stderr=price.stderr / 10, n=price.n)
    low, high = (rounded(end, tenth.stderr) for end in tenth.interval(LEVEL))
    interval = "no interval" if math.isnan(tenth.stderr) else f"{percent(LEVEL)} interval {low} to {high}"
    cost = f"{rounded(tenth.value, tenth.stderr)} nats of {WORDS[measure]} on {laws.corpus} ({interval})"
    everywhere = f", whatever the rank from {min(laws.ranks)} to {max(laws.ranks)}" if _ranks_pay_alike(laws) else ""
    return f"Each 0.1 nat of improvement on {laws.target} costs {cost}{everywhere}."


def _ranks_pay_alike(laws: Laws) -> bool:
    """Whether the smallest and the largest rank, trained to the same loss, are expected to forget the same."""
    measure = measure_of_forgetting(laws)
    if len(laws.ranks) < 2 or laws.params_per_rank is None or not laws.lines[measure].r2 >= 1 - AVERAGE:
        return False
    steps = np.geomspace(*laws.joint[measure].domain["steps"], 100)
    paths = []
    for r in (min(laws.ranks), max(laws.ranks)):
        params = np.full_like(steps, r * laws.params_per_rank)
        loss, forgotten = (
            np.asarray(laws.joint[name].predict(trainable_params=params, steps=steps).mean)
            for name in ("target_nll", measure)
        )
        order = np.argsort(loss)
        paths.append((loss[order], forgotten[order]))
    lowest, highest = max(loss[0] for loss, _ in paths), min(loss[-1] for loss, _ in paths)
    if lowest >= highest:
        return False
    equal = np.linspace(lowest, highest, 100)
    few, many = (np.interp(equal, loss, forgotten) for loss, forgotten in paths)
    every = np.concatenate([forgotten for _, forgotten in paths])
    return bool(np.abs(many - few).max() <= ALIKE * np.ptp(every))


def _outcome(laws: Laws, answer: Answer) -> str:
    choice = answer.choice
    forgotten, loss = (
        _one_run(prediction, f" nats per token on {where}")
        for prediction, where in ((choice.forgetting, laws.corpus), (choice.target_nll, laws.target))
    )
    if measure_of_forgetting(laws) == "kl_base_tuned":
        forgets = f"forget {forgotten}"
    else:
        forgets = f"have a {WORDS[measure_of_forgetting(laws)]} of {forgotten}"
    forecast = f"r = {choice.r} for {choice.steps} steps should {forgets} and reach a loss of {loss}."
    return forecast if answer.feasible else f"Not feasible: the nearest choice misses {_misses(answer)}. {forecast}"


def _misses(answer: Answer) -> str:
    misses = []
    if answer.excess > 0:
        sure = "" if math.isnan(float(answer.choice.forgetting.run_quantile(0.5))) else ", at the risk allowed"
        misses.append(f"the budget by {answer.excess:.2g} nats{sure}")
    if answer.shortfall > 0:
        misses.append(f"the target loss by {answer.shortfall:.2g} nats")
    return " and ".join(misses)


def _one_run(prediction: Prediction, unit: str) -> str:
    """The expected value, and where most single runs come out: at 0 or above, as every loss and every KL."""
    error = math.hypot(float(prediction.stderr), float(prediction.scatter))
    expected = f"{rounded(max(float(prediction.mean), 0.0), error)}{unit}"
    ends = [float(prediction.run_quantile(tail)) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
    if math.isnan(ends[0]):
        return expected
    low, high = (rounded(max(end, 0.0), error) for end in ends)
    return f"{expected} ({percent(LEVEL)} of runs {low} to {high})"


def _other_budgets(laws: Laws, answer: Answer, other: dict[float, Answer], *, max_forgetting: float) -> list[str]:
    """What half and double the budget would change; half of one that cannot be kept goes without saying."""
    sentences = []
    for times, word in ((0.5, "half"), (2, "double")):
        found, budget = other[times], f"{word} the budget ({times * max_forgetting:g})"
        choice = found.choice
        if found.feasible and answer.feasible and _same(choice, answer.choice):
            sentences.append(f"At {budget} the answer would be the same.")
        elif found.feasible:
            error = math.hypot(float(choice.target_nll.stderr), float(choice.target_nll.scatter))
            loss = f"{rounded(float(choice.target_nll.mean), error)} nats per token on {laws.target}"
            beyond = ", beyond what was run" if choice.extrapolates else ""
            sentences.append(
                f"At {budget} it would be r = {choice.r} for {choice.steps} steps, with a loss of {loss}{beyond}."
            )
        elif answer.feasible or times > 1:
            sentences.append(f"At {budget} nothing would do: the nearest choice misses {_misses(found)}.")
    return sentences


def _same(one: Choice, other: Choice) -> bool:
    return (one.r, one.steps) == (other.r, other.steps)


def _beyond(laws: Laws, choice: Choice) -> list[str]:
    """What of a choice was never run, and whether its rank is only the nearest."""
    domain = laws.joint["target_nll"].domain
    values = {"trainable_params": choice.trainable_params, "steps": choice.steps}
    notes = []
    for name, word in (("trainable_params", "trainable parameters"), ("steps", "steps")):
        low, high = domain[name]
        if not low <= values[name] <= high:
            run = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
            notes.append(f"{values[name]:,} {word} were never run, only {run}: the laws may not hold there")
    whole = choice.r * (laws.params_per_rank or math.nan)
    if abs(choice.trainable_params - whole) > OFF_RANK * whole:
        notes.append(
            f"{choice.trainable_params:,} trainable parameters are no whole rank of the adapters that were run; the "
            f"nearest, r = {choice.r}, has {whole:,.0f}"
        )
    return notes


def _rank_against_steps(fit: Fit) -> list[str]:
    """Which of the two matters more for forgetting, when the exponents tell; nothing otherwise."""
    x, y = fit.parameters.get("x"), fit.parameters.get("y")
    if fit.law not in EXPONENTS or x is None or y is None or math.isnan(x.stderr) or math.isnan(y.stderr):
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
    return f"{rounded(estimate.value, estimate.stderr)} ({percent(LEVEL)} interval {low} to {high})"


def _chance(over: float | None) -> str:
    return "no budget" if over is None else "unknown" if math.isnan(over) else percent(over)


def percent(share: float) -> str:
    """A chance, in whole per cent."""
    return "under 1 %" if 0 < share < 0.005 else "over 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _check(
    *,
    max_forgetting: float | None,
    target_loss: float | None,
    risk: float,
    trainable_params: float | None,
    r: int | None,
) -> None:
    """Refuse a question that has no answer, with everything wrong about it."""
    wrong = []
    if max_forgetting is None and target_loss is None:
        wrong.append("got neither max_forgetting nor target_loss, expected at least one")
    for name, value in (("max_forgetting", max_forgetting), ("target_loss", target_loss)):
        if value is not None and not (math.isfinite(value) and value > 0):
            wrong.append(f"got {name} {value}, expected a positive number of nats per token")
    if not 0 < risk < 1:
        wrong.append(f"got risk {risk}, expected a probability between 0 and 1")
    if trainable_params is not None and r is not None:
        wrong.append("got both trainable_params and r, expected at most one")
    for name, value in (("trainable_params", trainable_params), ("r", r)):
        if value is not None and not (math.isfinite(value) and value >= 1):
            wrong.append(f"got {name} {value}, expected a number of at least 1")
    if wrong:
        raise ConfigError("; ".join(wrong) + ", at the plan asked for")
