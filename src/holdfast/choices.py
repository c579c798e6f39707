"""What can be chosen: ranks and numbers of steps, what the laws expect of each, and those that nothing else beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.costs import cost
from holdfast.errors import FitError
from holdfast.laws import Laws
from holdfast.stats import FloatArray, Prediction, as_dict

MEASURES = ("kl_base_tuned", "hard_cross_entropy")
"""Of forgetting: budgets are held to the first of these that the laws have."""

FLOORED = ("hard_cross_entropy",)
"""Measures that are above 0 before any training, by an amount the laws do not hold."""

STEP_CHOICES = 400
REACH = 4
"""How many times fewer or more steps than were run are considered, when nothing within them will do."""

MOST = 24
"""Choices on a frontier: as many as can be read."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One rank and number of steps, what the laws expect of it, and its cost. Nats per scored token."""

    r: int
    """Where a number of parameters was asked for: the rank nearest to it."""
    trainable_params: int
    steps: int
    forgetting: Prediction
    target_nll: Prediction
    tokens: int | None
    """Trained on; None where runs differ in tokens per step."""
    flop: float | None
    """See `costs.flop_per_token`; None without the size of the base."""
    seconds: float | None
    """None without a measured speed."""
    extrapolates: bool
    """Its parameters or steps lie outside what was run."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan and what is not known become None."""
        return as_dict(self)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Every choice of a span, side by side (n,): fewest parameters first, then fewest steps."""

    r: Numbers
    trainable_params: Numbers
    steps: Numbers
    forgetting: Prediction
    target_nll: Prediction
    tokens_per_step: float | None
    base_params: float | None
    seconds_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best choice, with how far it misses what was asked, in nats: 0 where it does not."""

    choice: Choice
    excess: float
    """Of forgetting over the budget, at the risk allowed."""
    shortfall: float
    """Of the expected target loss."""

    @property
    def feasible(self) -> bool:
        """It misses nothing."""
        return self.excess + self.shortfall <= 0


def measure_of_forgetting(laws: Laws) -> str:
    """What budgets are held to: KL, base to tuned, where the laws have it; else the paper's hard loss.

    Raises:
        FitError: the laws have neither.
    """
    for name in MEASURES:
        if name in laws.joint and name in laws.lines:
            return name
    raise FitError(f"got laws of {', '.join(laws.joint)}, expected {' or '.join(MEASURES)}, at the laws to plan by")


def frontier(
    laws: Laws,
    *,
    trainable_params: float | None = None,
    r: int | None = None,
    seconds_per_token: float | None = None,
) -> tuple[Choice, ...]:
    """The choices that no other beats in both expected forgetting and expected loss, from least forgetting to most.

    Among the ranks of the study and the powers of two between, or the one of `r` or `trainable_params`, and all steps
    that were run; of equals the one with the fewest parameters, then steps. At most 24, spread evenly in forgetting,
    the ends always among them.

    Raises:
        FitError: trainable parameters per rank differ between the runs, or the laws measure no forgetting.
    """
    return undominated(
        candidates(
            laws,
            reach=1,
            trainable_params=trainable_params,
            r=r,
            seconds_per_token=seconds_per_token,
        )
    )


def candidates(
    laws: Laws, *, reach: float, trainable_params: float | None, r: int | None, seconds_per_token: float | None
) -> Candidates:
    """Every rank, or the one asked for, with every number of steps up to `reach` times outside those that were run.

    Raises:
        FitError: trainable parameters per rank differ between the runs, or the laws measure no forgetting.
    """
    measure = measure_of_forgetting(laws)
    ranks, sizes = _sizes(laws, trainable_params=trainable_params, r=r)
    which, steps = (axis.ravel() for axis in np.meshgrid(np.arange(len(ranks)), _steps(laws, reach), indexing="ij"))
    forgetting = laws.joint[measure].predict(trainable_params=sizes[which], steps=steps)
    if measure not in FLOORED:
        forgetting = replace(forgetting, mean=np.maximum(forgetting.mean, _least(laws, sizes[which], steps)))
    return Candidates(
        r=ranks[which],
        trainable_params=sizes[which],
        steps=steps,
        forgetting=forgetting,
        target_nll=laws.joint["target_nll"].predict(trainable_params=sizes[which], steps=steps),
        tokens_per_step=laws.tokens_per_step,
        base_params=laws.base_params,
        seconds_per_token=seconds_per_token,
    )


def best(
    spans: Sequence[Candidates], *, max_forgetting: float | None, target_loss: float | None, risk: float
) -> Answer:
    """The best of the first span in which anything will do, or else the nearest miss in the last.

    What will do, and what is best of it, is told at `planning.plan`.
    """
    answer = _best(spans[0], max_forgetting=max_forgetting, target_loss=target_loss, risk=risk)
    if answer.feasible or len(spans) == 1:
        return answer
    return best(spans[1:], max_forgetting=max_forgetting, target_loss=target_loss, risk=risk)


def undominated(among: Candidates) -> tuple[Choice, ...]:
    """Those that no other beats in both expectations, thinned; see `frontier`."""
    forgetting, loss = np.asarray(among.forgetting.mean), np.asarray(among.target_nll.mean)
    order = np.lexsort((loss, forgetting))
    before = np.concatenate([[math.inf], np.minimum.accumulate(loss[order])[:-1]])
    kept = order[loss[order] < before]
    if len(kept) > MOST:
        at = forgetting[kept]
        wanted = np.linspace(at[0], at[-1], MOST)
        kept = kept[np.unique(np.abs(at[:, None] - wanted).argmin(axis=0))]
    return tuple(_choice(among, int(index)) for index in kept)


def _best(among: Candidates, *, max_forgetting: float | None, target_loss: float | None, risk: float) -> Answer:
    forgetting, loss = among.forgetting, among.target_nll
    ceiling = forgetting.run_quantile(1 - risk)
    ceiling = np.where(np.isnan(ceiling), forgetting.mean, ceiling)
    excess = np.maximum(ceiling - (math.inf if max_forgetting is None else max_forgetting), 0)
    shortfall = np.maximum(loss.mean - (math.inf if target_loss is None else target_loss), 0)
    miss, wish = excess + shortfall, forgetting.mean if max_forgetting is None else loss.mean
    index = int(np.argmin(np.where(miss <= 0, wish, np.inf) if (miss <= 0).any() else miss))
    return Answer(choice=_choice(among, index), excess=float(excess[index]), shortfall=float(shortfall[index]))


def _choice(among: Candidates, index: int) -> Choice:
    params, steps = int(among.trainable_params[index]), int(among.steps[index])
    forgetting, target_nll = (_one(prediction, index) for prediction in (among.forgetting, among.target_nll))
    spent = cost(
        steps=steps,
        tokens_per_step=among.tokens_per_step,
        trainable_params=params,
        base_params=among.base_params,
        seconds_per_token=among.seconds_per_token,
    )
    return Choice(
        r=int(among.r[index]),
        trainable_params=params,
        steps=steps,
        forgetting=forgetting,
        target_nll=target_nll,
        tokens=spent.tokens,
        flop=spent.flop,
        seconds=spent.seconds,
        extrapolates=bool(forgetting.extrapolates or target_nll.extrapolates),
    )


def _one(prediction: Prediction, index: int) -> Prediction:
    """One of many predictions made together."""
    fields = ("mean", "stderr", "scatter", "dof")
    every = np.broadcast_arrays(*(getattr(prediction, name) for name in fields))
    return Prediction(
        **{name: float(each[index]) for name, each in zip(fields, every, strict=True)},
        scatter_dof=prediction.scatter_dof,
        extrapolates=bool(np.asarray(prediction.extrapolates)[index]),
    )


def _sizes(laws: Laws, *, trainable_params: float | None, r: int | None) -> tuple[Numbers, Numbers]:
    """Ranks and the parameters of each: those of the study and the powers of two between, or what was asked for."""
    if laws.params_per_rank is None:
        raise FitError(
            "got runs that have no rank, or whose parameters per rank differ, expected LoRA runs of one kind, for "
            "instance by --only method=lora, or only= in Python, at the laws to plan by"
        )
    if trainable_params is not None:
        nearest = max(round(trainable_params / laws.params_per_rank), 1)
        return np.array([nearest]), np.array([round(trainable_params)])
    low, high = min(laws.ranks), max(laws.ranks)
    between = (2**k for k in range(high.bit_length()) if low <= 2**k <= high)
    ranks = np.array(sorted({*laws.ranks, *between}) if r is None else [r])
    return ranks, np.rint(ranks * laws.params_per_rank).astype(np.int64)


def _least(laws: Laws, params: Numbers, steps: Numbers) -> FloatArray:
    """What fewer steps than were fitted are taken to forget: in proportion, unless the law says more.

    A law that flattens falls below 0 there, and a plan that believed it would promise that nothing is forgotten. KL
    begins at 0 with the square of what moved, so this is rather too much.
    """
    law = laws.joint[measure_of_forgetting(laws)]
    low = law.domain["steps"][0]
    expected = np.maximum(law.predict(trainable_params=params, steps=np.full(steps.shape, low)).mean, 0.0)
    return np.where(steps < low, expected * steps / low, -np.inf)


def _steps(laws: Laws, reach: float) -> Numbers:
    measure = measure_of_forgetting(laws)
    low, high = laws.joint[measure].domain["steps"]
    # Below the first steps that were fitted a measure with a floor stops falling, and its law does not.
    fewest = low if measure in FLOORED else max(low / reach, 1)
    return np.unique(np.rint(np.geomspace(fewest, high * reach, STEP_CHOICES)).astype(np.int64))
