"""The commands of laws, plans, forecasts and the next run; no torch on the way to any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import ConfigError
from holdfast.options import SKIP_FRACTION, Budget, Corpus, Goal, Json, Only, Risk, Runs, Skip, print_json


def fit(
    runs: Annotated[Path, typer.Argument(help="Folder of runs made by `holdfast sweep`, or a CSV file of points.")],
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
    x: Annotated[str | None, typer.Option(help="Of a CSV file: its input columns, one or two, with a comma.")] = None,
    y: Annotated[str | None, typer.Option(help="Of a CSV file: the column to fit.")] = None,
    group: Annotated[str | None, typer.Option(help="Of a CSV file: the column that names each row's run.")] = None,
    law: Annotated[list[str] | None, typer.Option(help="Of a CSV file: laws to fit, by name; repeatable.")] = None,
    log_huber: Annotated[
        float | None, typer.Option(help="Of a CSV file: Huber's loss of logarithms with this limit; 0.001 is usual.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the laws of forgetting to the finished runs of a folder, held to what they have not seen; or any CSV file.

    Example: `holdfast fit runs --json > laws.json`, or `holdfast fit points.csv --x params,tokens --y loss --group run`
    """
    from holdfast import archive, law_screens, tables

    if x is not None or y is not None or runs.suffix == ".csv":
        if x is None or y is None:
            raise ConfigError(f"got no {'--x' if x is None else '--y'}, expected the columns to fit, at {runs}")
        fits = tables.fit_table(runs, x=x.split(","), y=y, group=group, laws=law, log_huber=log_huber)
        print_json({"fits": [one.to_dict() for one in fits]}) if as_json else law_screens.show_fits(fits)
        return
    found = tables.examine(archive.table(runs, only=only), corpus=corpus, skip_fraction=skip_fraction)
    print_json(found.to_dict()) if as_json else law_screens.show_laws(found)


def plan(
    runs: Annotated[Path | None, typer.Argument(help="Folder of runs made by `holdfast sweep`; or --law.")] = None,
    law: Annotated[
        str | None, typer.Option(help="A published law instead: kalajdzievski2024-openorca, …-news.")
    ] = None,
    max_forgetting: Budget = None,
    target_loss: Goal = None,
    risk: Risk = 0.1,
    trainable_params: Annotated[float | None, typer.Option(help="Plan for this many; only steps are chosen.")] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", "--r", help="Plan for this rank; only steps are chosen.")
    ] = None,
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
    as_json: Json = False,
) -> None:
    """The best rank and number of steps under a forgetting budget, for a loss to reach, or both.

    Example: `holdfast plan runs --max-forgetting 0.1`, or before any run
    `holdfast plan --law kalajdzievski2024-openorca --trainable-params 20e6 --max-forgetting 0.9`
    """
    from holdfast import archive, law_screens, laws, planning, presets, progress

    if runs is not None and law is None:
        fitted = laws.fit(archive.table(runs, only=only), corpus=corpus, skip_fraction=skip_fraction)
        speed = progress.seconds_per_token(runs, only=only)
    elif law is not None and runs is None:
        fitted, speed = presets.published(law), None
    else:
        raise ConfigError("got both or neither, expected a folder of runs or --law, at the plan asked for")
    planned = planning.plan(
        fitted, max_forgetting=max_forgetting, target_loss=target_loss, risk=risk, trainable_params=trainable_params,
        r=rank, seconds_per_token=speed,
    )  # fmt: skip
    print_json(planned.to_dict()) if as_json else law_screens.show_plan(planned)


def forecast(
    runs: Runs,
    run: Annotated[str, typer.Option(help="Name of the run in progress; its first letters will do.")],
    steps: Annotated[list[int], typer.Option(help="Steps to look ahead to; repeatable.")],
    max_forgetting: Budget = None,
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
    as_json: Json = False,
) -> None:
    """Where a run in progress will be, from its own first part and the laws of the finished runs.

    Example: `holdfast forecast runs --run 3f2a --steps 260 --max-forgetting 0.1`
    """
    from holdfast import archive, forecasting, law_screens, laws, store

    table = archive.table(runs, only=only)
    fitted, name = laws.fit(table, corpus=corpus, skip_fraction=skip_fraction), store.full_name(table, run)
    made = [
        forecasting.forecast(fitted, table, name, steps=steps, quantity=quantity)
        for quantity in ("target_nll", *laws.FORGETTING)
    ]
    if as_json:
        print_json({"forecasts": [one.to_dict() for one in made]})
    else:
        law_screens.show_forecasts(made, max_forgetting)


def next_(
    runs: Runs,
    max_forgetting: Budget = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Stop when the plan's interval, of what one run forgets, is this wide, nats per token."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="How many runs to choose, each counting on those before.")] = 5,
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
    as_json: Json = False,
) -> None:
    """Which run to make next, or to finish: what narrows the plan's interval most for its cost; or to stop.

    Example: `holdfast next runs --max-forgetting 0.1 --tolerance 0.01`
    """
    from holdfast import archive, design, law_screens, laws

    table = archive.table(runs, only=only)
    fitted = laws.fit(table, corpus=corpus, skip_fraction=skip_fraction)
    found = design.next_runs(fitted, table, max_forgetting=max_forgetting, tolerance=tolerance, number=number)
    print_json(found.to_dict()) if as_json else law_screens.show_next(found)
