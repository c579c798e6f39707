"""Laws, plans and forecasts in a terminal, as tables and sentences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table

from holdfast.display import duration
from holdfast.laws import LAWS, LINE
from holdfast.planning import percent, price_in_words
from holdfast.stats import rounded
from holdfast.terminal import escape, out, show_warnings

if TYPE_CHECKING:
    from holdfast.choices import Choice
    from holdfast.design import NextRuns
    from holdfast.forecasting import Forecast
    from holdfast.forms import Forms
    from holdfast.groups import Group
    from holdfast.laws import Fit
    from holdfast.planning import Plan
    from holdfast.tables import Examined
    from holdfast.validation import Validation

LEVEL = 0.9
"""Of every interval printed here."""

SHOWN = 9
"""Choices of the frontier in a terminal; the JSON has them all."""

OPEN, NO_INTERVAL = "not identified", "no interval"

NAMES = {"target_nll": "target loss", "kl_base_tuned": "forgetting, KL", "hard_cross_entropy": "hard loss"}


def show_laws(found: Examined) -> None:
    """The price of learning in words, how well each law and form forecasts, then every constant and every warning."""
    out().print(f"[bold]{escape(price_in_words(found.laws))}[/]", soft_wrap=True)
    for sentence in (*str(found.prices).splitlines()[:1], *(str(test) for test in found.tests if test.testable)):
        out().print(f"  {escape(sentence)}", soft_wrap=True)
    if len(found.groups) > 1:
        _show_groups(found.groups)
    _show_held_out(found.validation)
    _show_forms(found.forms)
    _show_constants(found)
    fits = (*found.laws.lines.values(), *found.laws.orthogonal.values(), *found.laws.joint.values())
    warnings = [*found.laws.warnings, *(warning for fit in fits for warning in fit.warnings), *found.prices.warnings]
    show_warnings(dict.fromkeys([*warnings, *found.validation.warnings]))


def _show_groups(groups: Sequence[Group]) -> None:
    """The price of each way of training, and how far the largest group's line was off on the others."""
    table = _table("Each way of training by itself: price, and error of the largest group's line in nats")
    table.add_column("runs that share")
    for name in ("runs", "points", "price", "R²", "line off by", "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        missed = ["itself" if group.missed is None else "–", ""]
        if group.missed:
            missed = [f"{group.missed[0].rmse:.2g}", f"{group.missed[0].bias:+.2g}"]
        r2 = "–" if group.laws is None else f"{group.laws.lines['kl_base_tuned'].r2:.3f}"
        table.add_row(escape(group.name), str(group.n_runs), str(group.n_points), str(group.price), r2, *missed)
    out().print()
    out().print(table)


def _show_held_out(validation: Validation) -> None:
    """Errors on what no fit has seen, beside two plain baselines."""
    table = _table("The laws, held to what they had not seen: error in nats, how many inside 90 %")
    table.add_column("held out", no_wrap=True)
    for name in ("error", "of a constant", "of a log N line", "R²", "inside", "R² in sample"):
        table.add_column(name, justify="right")
    seen = {(fit.quantity, fit.law): fit.r2 for fit in validation.in_sample}
    for split, held_out in itertools.groupby(validation.held_out, key=lambda held: held.split):
        table.add_row(f"[bold]{escape(split)}[/]")
        for held in (each for each in held_out if each.quantity in NAMES):
            inside = "–" if held.inside is None else f"{held.inside}/{held.n_points}"
            known = seen.get((held.quantity, held.law))
            table.add_row(
                f" {NAMES[held.quantity]}: {held.law}", f"{held.rmse:.2g}", f"{held.rmse_constant:.2g}",
                f"{held.rmse_log_steps:.2g}", f"{held.r2:.2f}", inside, "" if known is None else f"{known:.3f}",
            )  # fmt: skip
    out().print()
    out().print(table)
    for skipped in validation.skipped:
        out().print(f"[dim]Not held out, {escape(skipped.split)}: {escape(skipped.reason)}.[/]", soft_wrap=True)


def _show_forms(forms: Forms) -> None:
    """What each form would have been off by, the nearest of each part marked."""
    table = _table("Every form, held to the same: error in nats, * the nearest")
    table.add_column("form", no_wrap=True)
    for name in ("constants", *forms.parts(), "R² in sample"):
        table.add_column(escape(name), justify="right")
    for quantity in forms.fits:
        table.add_row(f"[bold]{NAMES[quantity]}[/]")
        nearest = forms.nearest(quantity)
        for score in (each for each in forms.scores() if each.quantity == quantity):
            errors = (_error(score.errors.get(part), star=nearest.get(part) == score.form) for part in forms.parts())
            table.add_row(f"  {score.form}", str(score.constants), *errors, f"{score.r2:.3f}")
        for name, found in forms.baselines(quantity).items():
            table.add_row(f"  [dim]{name}[/]", "", *(_error(found.get(part), star=False) for part in forms.parts()))
    out().print()
    out().print(table)
    if any(LINE.name in fits for fits in forms.fits.values()):
        out().print("[dim]Line and saturating line are given the target loss, the other forms P and N.[/]")


def _table(title: str) -> Table:
    """Few lines, for many numbers."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _error(value: float | None, *, star: bool) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2g}{' *' if star else '  '}"


def _show_constants(found: Examined) -> None:
    """A row for each fit, and the formulas of their forms once."""
    laws, table = found.laws, Table.grid(padding=(0, 2))
    lines = {quantity: (laws.lines[quantity], laws.orthogonal[quantity]) for quantity in laws.lines}
    shown = []
    for quantity, joint in laws.joint.items():
        fits = [(f"{fit.law}, {fit.estimator}", fit) for fit in lines.get(quantity, ())] + [(joint.law, joint)]
        named = {fit.law for _, fit in fits}
        fits += [each for each in found.forms.fits.get(quantity, {}).items() if each[0] not in named]
        table.add_row(f"[bold]{NAMES[quantity]}[/]")
        for name, fit in fits:
            table.add_row(f"  {escape(name)}", _constants(fit))
        shown += [fit.law for _, fit in fits]
    out().print()
    out().print(
        f"[bold]Constants[/], with {100 * LEVEL:.0f} % intervals by run; by {escape(joint.estimator)} unless named",
        soft_wrap=True,
    )
    out().print(table)
    for law in dict.fromkeys(shown):
        out().print(f"[dim]{law}: {escape(LAWS[law].formula)}[/]", soft_wrap=True)
    out().print(f"[dim]{_reference(joint)}[/]", soft_wrap=True)


def _constants(fit: Fit) -> str:
    """Each with its interval, or why it has none; once where none has one."""
    if all(_why(fit, name) == NO_INTERVAL for name in fit.parameters):
        values = (f"{name} {estimate.value:.3g}" for name, estimate in fit.parameters.items())
        return f"{';  '.join(values)}  ({NO_INTERVAL})"
    told = []
    for name, estimate in fit.parameters.items():
        if math.isnan(estimate.stderr):
            told.append(f"{name} {_why(fit, name)}")
        else:
            low, high = (rounded(end, estimate.stderr) for end in estimate.interval(LEVEL))
            told.append(f"{name} {rounded(estimate.value, estimate.stderr)} ({low} to {high})")
    return ";  ".join(told)


def _reference(fit: Fit) -> str:
    letters = ("P", "N") if len(fit.reference) == 2 else ("X",)
    named = (f"{a} is {escape(n)}, {a}0 {v:.4g}" for a, (n, v) in zip(letters, fit.reference.items(), strict=True))
    return "; ".join(named)


def show_fit(fit: Fit) -> None:
    """One law: its formula, what it rests on, its parameters."""
    evidence = f"{fit.estimator}; R² {fit.r2:.3f} in sample, {fit.n_points} points, {fit.n_runs} runs"
    formula = escape(LAWS[fit.law].formula)
    out().print(f"[bold]{escape(fit.quantity)}[/] = {formula}\n  [dim]{evidence}[/]", soft_wrap=True)
    if LAWS[fit.law].scaling == "ratio":
        out().print(f"  [dim]{_reference(fit)}[/]", soft_wrap=True)
    grid = Table.grid(padding=(0, 3))
    for name, estimate in fit.parameters.items():
        low, high = estimate.interval(LEVEL)
        known = f"{100 * LEVEL:.0f} % interval {low:.3g} to {high:.3g}"
        grid.add_row(f"  {name}", f"{estimate.value:.4g}", _why(fit, name) if math.isnan(low) else known)
    out().print(grid)
    out().print()


def _why(fit: Fit, name: str) -> str:
    at = list(fit.parameters).index(name)
    return OPEN if math.isfinite(fit.covariance[at][at]) else NO_INTERVAL


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
        ends = [rounded(max(float(end), 0.0), error) for end in choice.forgetting.interval(LEVEL)]
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
            ends = "none" if math.isnan(error) else f"{rounded(max(low[i], 0.0), error)} to {rounded(high[i], error)}"
            expected, law = (rounded(float(value), error) for value in (means[i], laws[i]))
            alone = "–" if math.isnan(made.alone[i]) else rounded(float(made.alone[i]), error)
            table.add_row(NAMES[made.quantity], str(steps), expected, ends, law, alone)
    out().print(table)
    forgetting = next((made for made in forecasts if made.quantity == "kl_base_tuned"), None)
    if forgetting is not None:
        out().print(escape(str(forgetting)), soft_wrap=True)
        if max_forgetting is not None:
            over = forgetting.probability_above(max_forgetting)[-1]
            chance = "unknown" if math.isnan(over) else percent(over)
            out().print(f"The probability that it will forget more than {max_forgetting:g} is {chance}.")
    show_warnings(dict.fromkeys(warning for made in forecasts for warning in made.warnings))


def show_next(found: NextRuns) -> None:
    """What to run next, and why; the best candidates with their costs."""
    out().print(f"[bold]{escape(found.reason)}[/]", soft_wrap=True)
    for purchase in found.chosen:
        out().print(f"  {escape(str(purchase))}", soft_wrap=True)
    if found.chosen:
        out().print("[dim]A rank and number of steps that were run before need another seed.[/]")
    table = Table(title=f"Candidates, for a run of r = {found.at[0]} and {found.at[1]} steps", title_justify="left")
    for name in ("rank", "steps", "finishes", "tokens", "FLOP", "interval now", "then"):
        table.add_column(name, justify="right")
    for purchase in found.ranked[:SHOWN]:
        asked = purchase.candidate
        table.add_row(
            str(asked.r), str(asked.steps), "" if asked.finishes is None else escape(asked.finishes),
            f"{asked.tokens:,.0f}", "" if asked.flop is None else f"{asked.flop:.1e}",
            f"{purchase.width_before:.2g}", f"{purchase.width_after:.2g}",
        )  # fmt: skip
    out().print(table)
    show_warnings(found.warnings)
