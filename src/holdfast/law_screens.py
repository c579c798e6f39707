"""Laws, plans and forecasts in a terminal, as tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from holdfast.display import duration
from holdfast.laws import LAWS
from holdfast.planning import price_in_words
from holdfast.stats import rounded
from holdfast.terminal import escape, out, show_warnings

if TYPE_CHECKING:
    from holdfast.choices import Choice
    from holdfast.design import NextRuns
    from holdfast.forecasting import Forecast
    from holdfast.laws import Fit, Laws
    from holdfast.planning import Plan
    from holdfast.slopes import Prices, SlopeTest
    from holdfast.validation import Validation

LEVEL = 0.9
"""Of every interval printed here."""

SHOWN = 9
"""Choices of the frontier in a terminal; the JSON has them all."""

NAMES = {"target_nll": "target loss", "kl_base_tuned": "forgetting, KL", "hard_cross_entropy": "hard loss"}


def show_laws(laws: Laws, validation: Validation, prices: Prices, tests: Sequence[SlopeTest]) -> None:
    """How well the laws forecast, every fit with its intervals, the warnings, and the price of learning in words."""
    _show_held_out(validation)
    fits = (*laws.lines.values(), *laws.orthogonal.values(), *laws.joint.values())
    for fit in fits:
        show_fit(fit)
    warnings = [*laws.warnings, *(warning for fit in fits for warning in fit.warnings), *prices.warnings]
    warnings += [w for w in validation.warnings if w not in laws.warnings]
    show_warnings(dict.fromkeys(warnings))
    for sentence in (price_in_words(laws), *str(prices).splitlines()[:1], *(str(t) for t in tests if t.testable)):
        out().print(escape(sentence), soft_wrap=True)


def _show_held_out(validation: Validation) -> None:
    """Errors on what no fit has seen, beside two plain baselines."""
    table = Table(title="Held out, then predicted: error in nats per token", title_justify="left")
    for name in ("held out", "quantity", "law"):
        table.add_column(name)
    for name in ("error", "constant", "line in log N", "R²", "in 90 % interval", "R² in sample"):
        table.add_column(name, justify="right")
    seen = {(fit.quantity, fit.law): fit.r2 for fit in validation.in_sample}
    for held in validation.held_out:
        if held.quantity not in NAMES:
            continue
        inside = "no interval" if held.inside is None else f"{held.inside} of {held.n_points}"
        known = seen.get((held.quantity, held.law))
        table.add_row(
            escape(held.split), NAMES[held.quantity], held.law, f"{held.rmse:.2g}", f"{held.rmse_constant:.2g}",
            f"{held.rmse_log_steps:.2g}", f"{held.r2:.2f}", inside, "" if known is None else f"{known:.3f}",
        )  # fmt: skip
    out().print(table)
    for skipped in validation.skipped:
        out().print(f"[dim]Not held out, {escape(skipped.split)}: {escape(skipped.reason)}.[/]", soft_wrap=True)
    out().print()


def show_fit(fit: Fit) -> None:
    """One law: its formula, what it rests on, its parameters."""
    evidence = f"{fit.estimator}; R² {fit.r2:.3f} in sample, {fit.n_points} points, {fit.n_runs} runs"
    formula = escape(LAWS[fit.law].formula)
    out().print(f"[bold]{escape(fit.quantity)}[/] = {formula}\n  [dim]{evidence}[/]", soft_wrap=True)
    if LAWS[fit.law].scaling == "ratio":
        letters = ("P", "N") if len(fit.reference) == 2 else ("X",)
        named = (f"{a} is {escape(n)}, {a}0 {v:.4g}" for a, (n, v) in zip(letters, fit.reference.items(), strict=True))
        out().print(f"  [dim]{'; '.join(named)}[/]", soft_wrap=True)
    grid = Table.grid(padding=(0, 3))
    for name, estimate in fit.parameters.items():
        low, high = estimate.interval(LEVEL)
        known = f"{100 * LEVEL:.0f} % interval {low:.3g} to {high:.3g}"
        grid.add_row(f"  {name}", f"{estimate.value:.4g}", _why(fit, name) if math.isnan(low) else known)
    out().print(grid)
    out().print()


def _why(fit: Fit, name: str) -> str:
    at = list(fit.parameters).index(name)
    return "not identified" if math.isfinite(fit.covariance[at][at]) else "no interval"


def show_fits(fits: Sequence[Fit]) -> None:
    """Several laws of one quantity, side by side in sample and then one by one."""
    table = Table(title="In sample, which says little of forecasts", title_justify="left")
    table.add_column("law")
    for name in ("R²", "residual", "constants", "starts agreeing"):
        table.add_column(name, justify="right")
    for fit in fits:
        agreeing = f"{fit.starts_agreeing:.0%}"
        table.add_row(fit.law, f"{fit.r2:.4f}", f"{fit.rmse:.3g}", str(len(fit.parameters)), agreeing)
    out().print(table)
    for fit in fits:
        show_fit(fit)
    show_warnings(dict.fromkeys(warning for fit in fits for warning in fit.warnings))


def _thinned(choices: Sequence[Choice]) -> list[Choice]:
    """A screenful, the ends among them."""
    last = len(choices) - 1
    return [choices[i] for i in sorted({round(k * last / (SHOWN - 1)) for k in range(SHOWN)})] if choices else []


def show_plan(plan: Plan) -> None:
    """The recommendation in sentences, the frontier, then every warning."""
    headline = f"r = {plan.r}, {plan.steps} steps" if plan.feasible else "No rank and number of steps will do"
    out().print(f"[bold]{headline}[/]")
    for reason in plan.reasons:
        out().print(f"  {escape(reason)}", soft_wrap=True)
    table = Table(title="The least forgetting for each loss, within what was run", title_justify="left")
    for name in ("rank", "steps", "loss", "forgetting", "90 % interval", "FLOP", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in _thinned(plan.frontier):
        error = float(choice.forgetting.stderr)
        ends = [rounded(float(end), error) for end in choice.forgetting.interval(LEVEL)]
        table.add_row(
            str(choice.r), str(choice.steps), rounded(float(choice.target_nll.mean), float(choice.target_nll.stderr)),
            rounded(float(choice.forgetting.mean), error), "none" if math.isnan(error) else f"{ends[0]} to {ends[1]}",
            "" if choice.flop is None else f"{choice.flop:.1e}",
            "" if choice.seconds is None else duration(choice.seconds),
        )  # fmt: skip
    out().print(table)
    show_warnings(plan.warnings)


def show_forecasts(forecasts: Sequence[Forecast], max_forgetting: float | None) -> None:
    """Where a run will be, a row for each quantity and number of steps, beside the two answers it lies between."""
    table = Table(title=f"Run {escape(forecasts[0].run)}", title_justify="left")
    table.add_column("quantity")
    for name in ("steps", "expected", "90 % interval", "the law alone", "the run alone"):
        table.add_column(name, justify="right")
    for made in forecasts:
        low, high = made.interval(LEVEL)
        means, laws = np.atleast_1d(made.prediction.mean), np.atleast_1d(made.law.mean)
        errors = np.hypot(np.atleast_1d(made.prediction.stderr), made.prediction.scatter)
        for i, steps in enumerate(made.steps):
            error = float(errors[i])
            ends = "none" if math.isnan(error) else f"{rounded(low[i], error)} to {rounded(high[i], error)}"
            expected, law, alone = (rounded(float(value), error) for value in (means[i], laws[i], made.alone[i]))
            table.add_row(NAMES[made.quantity], str(steps), expected, ends, law, alone)
    out().print(table)
    forgetting = next((made for made in forecasts if made.quantity == "kl_base_tuned"), None)
    if forgetting is not None:
        out().print(escape(str(forgetting)), soft_wrap=True)
        if max_forgetting is not None:
            over = forgetting.probability_above(max_forgetting)[-1]
            chance = "unknown" if math.isnan(over) else f"{100 * over:.2g} %"
            out().print(f"The probability that it will forget more than {max_forgetting:g} is {chance}.")
    show_warnings(dict.fromkeys(warning for made in forecasts for warning in made.warnings))


def show_next(found: NextRuns) -> None:
    """What to run next, and why; the best candidates with their costs."""
    out().print(f"[bold]{escape(found.reason)}[/]", soft_wrap=True)
    for purchase in found.chosen:
        out().print(f"  {escape(str(purchase))}", soft_wrap=True)
    table = Table(title=f"Candidates, for r = {found.at[0]} at {found.at[1]} steps", title_justify="left")
    for name in ("rank", "steps", "takes further", "tokens", "FLOP", "interval now", "then"):
        table.add_column(name, justify="right")
    for purchase in found.ranked[:SHOWN]:
        asked = purchase.candidate
        table.add_row(
            str(asked.r), str(asked.steps), "" if asked.extends is None else escape(asked.extends),
            f"{asked.tokens:,.0f}", "" if asked.flop is None else f"{asked.flop:.1e}",
            f"{purchase.width_before:.2g}", f"{purchase.width_after:.2g}",
        )  # fmt: skip
    out().print(table)
    show_warnings(found.warnings)
