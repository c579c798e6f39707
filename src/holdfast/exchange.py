"""What a tenth of a nat means: how what was probed goes with forgetting, over checkpoints of one run or of many.

No torch. The unit is the run: its checkpoints are one model growing older, so they say together what one run says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport, TaskResult
from holdfast.proportions import PairedShares
from holdfast.refusals import RefusalResult
from holdfast.stats import Estimate, ratio_of_sums, rounded

LEAST_MODELS = 3
"""Fewer say nothing of how two things go together."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """How a quantity of a task goes with forgetting on a corpus: per 0.1 nat, with its error over runs.

    `correlation` is Pearson's over all `models`; `low` and `high` are the forgetting of the least and the most
    forgetful of them, nats per token, and nothing is said of what lies outside. A change that bends with forgetting has
    another exchange rate in another range.
    """

    task: str
    quantity: str
    unit: str
    corpus: str
    per_tenth: Estimate
    correlation: float
    models: int
    low: float
    high: float

    def in_words(self) -> str:
        """As a person would say it."""
        value, error = self.per_tenth.value, self.per_tenth.stderr
        low, high = self.per_tenth.interval()
        sure = "one run, so no interval" if self.per_tenth.n == 1 else f"{self.per_tenth.n} runs"
        if math.isfinite(low):
            sure = f"95 % interval {rounded(low, error)} to {rounded(high, error)}, {sure}"
        return (
            f"0.1 nat of forgetting on {self.corpus} goes with {rounded(value, error)} {self.unit}: {self.quantity}, "
            f"{self.task} ({sure}; correlation {self.correlation:.2f} over {self.models} models)"
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "task": self.task,
            "quantity": self.quantity,
            "unit": self.unit,
            "corpus": self.corpus,
            "per_0.1_nat": self.per_tenth.to_dict(),
            "correlation": self.correlation,
            "models": self.models,
            "forgetting": [self.low, self.high],
        }


def exchanges(report: ProbeReport) -> tuple[Exchange, ...]:
    """Every quantity of every task against forgetting, where at least three models have both; see `Exchange`.

    With x the forgetting and y the change of a model, and sums over the models of each run i, the rate is
    Σ_i y_i / Σ_i x_i, its error the jackknife over runs (`stats.ratio_of_sums`). A quantity that is the same for every
    model has no correlation and is left out.
    """
    points: dict[tuple[str, str, str, str], list[tuple[ProbedModel, float]]] = {}
    for model, result in report.rows():
        for (quantity, unit), value in _changes(result).items():
            for corpus in model.forgetting:
                points.setdefault((result.name, quantity, unit, corpus), []).append((model, value))
    found = (_exchange(*key, at) for key, at in points.items())
    return tuple(one for one in found if one is not None)


def _exchange(
    task: str, quantity: str, unit: str, corpus: str, points: list[tuple[ProbedModel, float]]
) -> Exchange | None:
    x, y = np.array([model.forgetting[corpus].value for model, _ in points]), np.array([value for _, value in points])
    if len(points) < LEAST_MODELS or not np.isfinite(y).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    _, run = np.unique([model.run for model, _ in points], return_inverse=True)
    nats = np.bincount(run, weights=x)
    if (nats <= 0).any():  # within the noise of 0, and no rate can be had from it
        return None
    rate = ratio_of_sums(np.bincount(run, weights=y), nats)
    return Exchange(
        task=task, quantity=quantity, unit=unit, corpus=corpus,
        per_tenth=Estimate(value=0.1 * rate.value, stderr=0.1 * rate.stderr, n=rate.n),
        correlation=float(np.corrcoef(x, y)[0, 1]), models=len(points), low=float(x.min()), high=float(x.max()),
    )  # fmt: skip


def _changes(result: TaskResult) -> Mapping[tuple[str, str], float]:
    """What of a result can go with forgetting: name and unit, and the change from base to tuned."""
    if isinstance(result, ChoiceResult):
        moved = 100 * (1 - result.agreement.value)
        return {("answers moved", "points"): moved, ("accuracy", "points"): _points(result.accuracy)}
    if isinstance(result, OutcomeResult):
        return {("right answers", "points"): _points(result.accuracy)}
    if isinstance(result, RefusalResult):
        return {
            ("refusals", "points"): _points(result.refusals),
            ("loss of the base's own answers", "nats per token"): result.own_answers.value,
        }
    return {("log-odds of refusing", "nats"): result.change.value} if result.items else {}


def _points(shares: PairedShares) -> float:
    return 100 * shares.change
