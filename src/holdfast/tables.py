"""Laws of a whole table at once: of a study with everything that says how far to trust them, or of anyone's points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast.errors import ConfigError, FitError
from holdfast.fits import HUBER
from holdfast.forms import Forms, compare_forms
from holdfast.formulas import ADDITIVE, LAWS, MULTIPLICATIVE, PAPER, POWER
from holdfast.groups import Group, grouped
from holdfast.laws import SKIP_FRACTION, Fit, Laws, fit, fit_law, points
from holdfast.points import read_points
from holdfast.slopes import Prices, SlopeTest, prices, slope_equality
from holdfast.stats import as_dict
from holdfast.validation import Validation, validate

COMPARED = ("r", "learning_rate", "method")
"""Columns across which the price of learning is tested to be one: ranks of the laws' own runs, else all runs."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The laws of a study, and how far to trust them."""

    laws: Laws
    validation: Validation
    prices: Prices
    tests: tuple[SlopeTest, ...]
    """Whether the price is the same across `COMPARED`."""
    forms: Forms
    """Every other form of the same quantities, and how well each forecasts."""
    groups: tuple[Group, ...]
    """The laws of each way of training by itself, the largest group first."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None. Key `laws` is what `Laws.from_dict` reads."""
        return as_dict(self)


def examine(
    table: pd.DataFrame,
    *,
    corpus: str | None = None,
    skip_fraction: float = SKIP_FRACTION,
    quantity: str = "kl_base_tuned",
) -> Examined:
    """Fit the laws of a study, hold them and all other forms to parts they have not seen, and test the price.

    `quantity` is the measure of forgetting of the prices, the tests and the forms.

    Raises:
        FitError: as `laws.fit`.
    """
    fitted = fit(table, corpus=corpus, skip_fraction=skip_fraction)
    measured = points(table, corpus=corpus, skip_fraction=skip_fraction)
    used = measured[measured["run"].isin(fitted.runs)]
    return Examined(
        laws=fitted,
        validation=validate(table, corpus=corpus, skip_fraction=skip_fraction),
        prices=prices(used, quantity),
        tests=tuple(slope_equality(used if column == "r" else measured, quantity, by=column) for column in COMPARED),
        forms=compare_forms(measured, quantity, runs=fitted.runs),
        groups=grouped(table, corpus=corpus, skip_fraction=skip_fraction),
    )


def fit_table(
    path: str | Path, *, x: Sequence[str], y: str, group: str | None = None, laws: Sequence[str] | None = None,
    log_huber: float | None = None,
) -> tuple[Fit, ...]:  # fmt: skip
    """Fit laws to the columns of a CSV file: a power law of one input `x`, joint laws of two.

    `laws` are names in `formulas.LAWS`; by default the power law, or the multiplicative, the additive and the paper's,
    of those that the number of rows allows. Rows that share `group` are one run, the unit of every interval; without
    it each row is. `log_huber` fits logarithms by Huber's loss with that limit, as the Chinchilla fits do.

    Raises:
        ConfigError: an unknown law, or one of another number of inputs; as `points.read_points`.
        DataError: as `points.read_points`.
        FitError: too few rows, or values the laws cannot take.
    """
    measured = read_points(path, x=x, y=y, group=group)
    if log_huber is not None and not (math.isfinite(log_huber) and log_huber > 0):
        raise ConfigError(f"got {log_huber} as the limit of Huber's loss, expected a positive number, at {path}")
    named = laws or {1: (POWER.name,), 2: (MULTIPLICATIVE.name, ADDITIVE.name, PAPER.name)}.get(len(x), ())
    if not named:
        raise ConfigError(f"got {len(x)} input columns, expected one or two, at {path}")
    for name in named:
        if name not in LAWS or len(LAWS[name].inputs) != len(x):
            fitting = ", ".join(law.name for law in LAWS.values() if len(law.inputs) == len(x))
            raise ConfigError(f"got law {name!r} for {len(x)} input columns, expected one of {fitting}, at {path}")
    found = []
    for name in named:
        try:
            found.append(
                fit_law(
                    LAWS[name], measured, y, inputs=x,
                    huber=HUBER if log_huber is None else log_huber, logarithmic=log_huber is not None,
                )
            )  # fmt: skip
        except FitError:
            if laws or name == named[0]:
                raise
    return tuple(found)
