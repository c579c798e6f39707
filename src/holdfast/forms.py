"""Every form a quantity may take, fitted to the same points and held to the same parts that it has not seen.

Which form `laws.fit` uses does not follow from this: a form picked because it was nearest on a held-out part has then
seen that part. It shows what the choice costs, and what a reader of papers may compare.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from holdfast.coupling import fit_coupled
from holdfast.fits import HUBER
from holdfast.formulas import (
    ADDITIVE,
    GROWTH,
    GROWTH_IN_STEPS,
    LINE,
    MULTIPLICATIVE,
    PAPER,
    SATURATING,
    STEPS,
    Law,
)
from holdfast.laws import Fit, fit_law
from holdfast.stats import as_dict
from holdfast.validation import LEFT_OUT, LEVEL, Validation, check_level, in_sample, judge

FROM_LOSS = (LINE, SATURATING)
"""Forms of forgetting alone, that are given the target loss."""

FROM_BOTH = (MULTIPLICATIVE, GROWTH, ADDITIVE)
FROM_STEPS = (STEPS, GROWTH_IN_STEPS)
"""Forms of the target loss and of forgetting, where several numbers of parameters were run (the
paper's comes to these) and where one was."""

QUICK = replace(PAPER, starts=((0.05, 0.3), (0.2, 0.8), PAPER.starts[2], (0.003, 0.1, 0.9)))
"""For parts of the data, from fewer starts: of all 500 most end alike."""

COUPLED = "paper, coupled"
"""`PAPER` for both at once, as the paper's equations 5 and 6 tie them; see `coupling`."""


@dataclass(frozen=True, kw_only=True)
class FormScore:
    """How one form of one quantity fits and forecasts, nats per token."""

    quantity: str
    form: str
    constants: int
    r2: float
    """In sample, for comparison with papers."""
    rmse: float
    """In sample."""
    errors: dict[str, float]
    """Root mean square error of each part held out; methods as one, learning rates too. Missing where it could not be
    fitted to the rest."""


@dataclass(frozen=True, kw_only=True)
class Forms:
    """Every form of the target loss and of one measure of forgetting, held to what it has not seen."""

    fits: dict[str, dict[str, Fit]]
    """To all points, by quantity and form."""
    validation: Validation
    """Its `law` is the name of the form."""

    def scores(self) -> tuple[FormScore, ...]:
        """One per quantity and form, in the order of the forms."""
        return tuple(
            FormScore(
                quantity=quantity, form=form, constants=len(fit.parameters), r2=fit.r2, rmse=fit.rmse,
                errors=self._pooled("rmse", quantity, form),
            )
            for quantity, fits in self.fits.items()
            for form, fit in fits.items()
        )  # fmt: skip

    def baselines(self, quantity: str) -> dict[str, dict[str, float]]:
        """The errors of a constant, and of a line in log N, on the same parts."""
        first = next(iter(self.fits[quantity]))
        names = {"a constant": "rmse_constant", "a line in log N": "rmse_log_steps"}
        return {name: self._pooled(field, quantity, first) for name, field in names.items()}

    def parts(self) -> tuple[str, ...]:
        """What was held out, methods and learning rates each as one."""
        return tuple(dict.fromkeys(_part(held.split) for held in self.validation.held_out))

    def nearest(self, quantity: str) -> dict[str, str]:
        """The form with the least error on each part."""
        scores = [score for score in self.scores() if score.quantity == quantity]
        found = {}
        for part in self.parts():
            tried = [score for score in scores if part in score.errors]
            if tried:
                found[part] = min(tried, key=lambda score: score.errors[part]).form
        return found

    def _pooled(self, field: str, quantity: str, form: str) -> dict[str, float]:
        """Root mean squares over all points of a part."""
        every: dict[str, list[tuple[float, int]]] = {}
        for held in self.validation.held_out:
            if (held.quantity, held.law) == (quantity, form):
                every.setdefault(_part(held.split), []).append((getattr(held, field), held.n_points))
        return {
            part: math.sqrt(sum(n * error**2 for error, n in each) / sum(n for _, n in each))
            for part, each in every.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def compare_forms(
    points: pd.DataFrame, measure: str = "kl_base_tuned", *, runs: Collection[str] | None = None, level: float = LEVEL
) -> Forms:
    """Every form of the target loss and of a measure of forgetting, on a table of `laws.points`.

    Held out is what `validation.validate` holds out, and each form is fitted to each training part anew. A form with as
    many constants as there are points is left out. The forms are fitted to `runs`, those of the laws (`Laws.runs`), and
    held to the others; None is all.

    Raises:
        ConfigError: `level` is not between 0 and 1.
        FitError: the simplest forms cannot be fitted to all of the points.
    """
    check_level(level)
    measured = points.sort_values(["run", "steps"]).reset_index(drop=True)
    of = set(measured["run"]) if runs is None else runs
    fits = fit_forms(measured[measured["run"].isin(of)], measure)
    held_out, skipped = judge(
        measured, lambda hidden: _named(_fitted(measured[~hidden], measure, QUICK)), runs=of, level=level
    )
    return Forms(
        fits=fits,
        validation=Validation(
            corpus=next(iter(fits[measure].values())).corpus,
            target=", ".join(sorted(set(measured["target"]))),
            held_out=held_out,
            in_sample=tuple(in_sample(name, fit) for name, fit in _named(fits)),
            skipped=skipped,
            warnings=(),
        ),
    )


def fit_forms(points: pd.DataFrame, measure: str = "kl_base_tuned") -> dict[str, dict[str, Fit]]:
    """Every form fitted to points of `laws.points`, by quantity ("target_nll" and `measure`) and name of the form.

    The line by ordinary least squares, as in the paper; the rest by Huber's loss. Without several numbers of parameters
    the forms are those in steps alone.

    Raises:
        FitError: too few points for the simplest form, or a value that a form cannot take.
    """
    return _fitted(points, measure, PAPER)


def _fitted(points: pd.DataFrame, measure: str, paper: Law) -> dict[str, dict[str, Fit]]:
    joint = (*FROM_BOTH, paper) if points["trainable_params"].nunique() > 1 else FROM_STEPS
    found = {
        quantity: {
            law.name: fit_law(law, points, quantity, huber=math.inf if law is LINE else HUBER)
            for law in laws
            if law is laws[0] or len(law.parameters) < len(points)
        }
        for quantity, laws in {"target_nll": joint, measure: (*FROM_LOSS, *joint)}.items()
    }
    alone = {quantity: fits[PAPER.name] for quantity, fits in found.items() if PAPER.name in fits}
    if alone:
        for quantity, fit in fit_coupled(points, measure, alone=alone).items():
            found[quantity][COUPLED] = fit
    return found


def _named(fits: dict[str, dict[str, Fit]]) -> list[tuple[str, Fit]]:
    return [named for by_form in fits.values() for named in by_form.items()]


def _part(split: str) -> str:
    """The name of a part, with every level of what is left out level by level as one."""
    return next((f"a {word} not seen" for word in LEFT_OUT.values() if split.startswith(word)), split)
