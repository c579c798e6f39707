"""The points that laws are fitted to: one row a measurement, from a table of runs or from anyone's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from holdfast.errors import ConfigError, DataError, FitError
from holdfast.store import QUANTITIES

SKIP_FRACTION = 50 / 260
"""Share of a run's steps left out of the fits: the paper leaves out the first 50 of 260."""

IDENTITY = (
    "run", "model", "target", "method", "r", "learning_rate", "seed", "trainable_params", "steps", "tokens", "corpus",
)  # fmt: skip
"""What says which measurement a row of `points` is."""


def points(table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION) -> pd.DataFrame:
    """What the laws are fitted to: one row per finished run and step, target and retained corpus side by side.

    `target` is the name of what is learned, `target_nll` the loss on its held-out part, `steps` the updates N; the
    other quantities are the retained corpus's, which need not be named when there is one; `r` is 0 for methods without
    a rank. Left out are rows of runs
    that failed, diverged or are in progress, the first `skip_fraction` of each run's steps, step 0 always, and steps at
    which only one of the two was measured. The order of the table's rows does not matter.

    Raises:
        ConfigError: `skip_fraction` is not at least 0 and below 1.
        FitError: no such row, runs of several models or targets, or not exactly one target and one retained corpus.
    """
    if not 0 <= skip_fraction < 1:
        raise ConfigError(f"got skip_fraction {skip_fraction}, expected at least 0 and below 1, at the points to fit")
    done = table[table["state"] == "done"]
    if done.empty:
        raise FitError(f"got no finished run among {table['run'].nunique()}, expected at least one, at the run table")
    for column in ("model", "target"):
        only(done[column], f"{column}, for which a law holds; with several, choose by --only {column}=…")
    retained, learned = done[done["role"] == "retain"], done[done["role"] == "target"]
    target = only(learned["corpus"], "corpus of role target")
    if corpus is None:
        corpus = only(
            retained["corpus"], "corpus of role retain; with several, choose by --corpus, or corpus= in Python"
        )
    elif corpus not in set(retained["corpus"]):
        raise FitError(
            f"got corpus {corpus!r}, expected one of {names_of(retained['corpus'])}, at the retained corpora"
        )
    retained = retained[(retained["corpus"] == corpus) & (retained["step"] > skip_fraction * retained["total_steps"])]
    loss = learned[["run", "step", "nll", "nll_stderr"]]
    loss = loss.rename(columns={"nll": "target_nll", "nll_stderr": "target_nll_stderr"})
    paired = retained.merge(loss, on=["run", "step"], validate="one_to_one").sort_values(["run", "step"])
    if paired.empty:
        raise FitError(f"got no step past the first {skip_fraction:.0%} with both losses, expected some, at {corpus!r}")
    paired = paired.assign(r=paired["r"].fillna(0), target=target)  # of a method that has no rank
    paired = paired.astype({"step": int, "r": int, "trainable_params": int})
    paired = paired.rename(columns={"step": "steps"})
    quantities = [name for quantity in ("target_nll", *QUANTITIES) for name in (quantity, f"{quantity}_stderr")]
    return paired[[*IDENTITY, *quantities]].reset_index(drop=True)


def read_points(path: str | Path, *, x: Sequence[str], y: str, group: str | None = None) -> pd.DataFrame:
    """Points of a CSV file: inputs `x`, the quantity `y`, and what the rows of one unit share in column `group`.

    Without `group` every row is a unit of its own. The columns keep their names; `run` is added, and `corpus` names the
    file. Rows in which a number is missing are refused, since nothing says why.

    Raises:
        ConfigError: a column is not in the file, or named twice.
        DataError: the file cannot be read as CSV, or a value of x or y is not a number.
    """
    path = Path(path)
    wanted = [*x, y, *([group] if group else [])]
    if len(set(wanted)) < len(wanted) or not x:
        raise ConfigError(f"got columns {wanted}, expected at least one x, a y and a group that differ, at {path}")
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"got {error}, expected a CSV file with a header, at {path}") from error
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ConfigError(
            f"got no column {missing[0]!r}, expected one of {', '.join(map(str, table.columns))}, at {path}"
        )
    numbers: pd.DataFrame = table[[*x, y]].apply(pd.to_numeric, errors="coerce").astype(float)
    for row, column in np.argwhere(~np.isfinite(numbers.to_numpy()))[:1]:
        held = table[numbers.columns[column]].iloc[row]
        raise DataError(
            f"got {str(held)!r} in column {numbers.columns[column]}, expected a number, at {path}, row {row + 2}"
        )
    runs = table[group].astype(str) if group else table.index.astype(str)
    return numbers.assign(run=runs, corpus=path.stem)


def retained_texts(table: pd.DataFrame) -> list[str]:
    """The names of the retained texts that were measured."""
    return sorted(map(str, table.loc[table["role"] == "retain", "corpus"].unique()))


def names_of(values: pd.Series[Any]) -> str:
    """The different values of a column, for a sentence."""
    return ", ".join(sorted({str(value) for value in values}))


def only(values: pd.Series[Any], what: str) -> str:
    """The one value of a column.

    Raises:
        FitError: there are several, or none.
    """
    if values.nunique() != 1:
        raise FitError(f"got {names_of(values) or 'none'}, expected exactly one {what}")
    return str(values.iloc[0])
