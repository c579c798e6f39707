"""The runs of a study as tables for people: what each measured last, and those without a result."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from holdfast.page import Cell, Grid, heads
from holdfast.stats import Estimate
from holdfast.study_figures import last_measured


def runs_grid(table: pd.DataFrame) -> Grid | None:
    """What each finished run measured last, a line per retained text; None when no run finished."""
    done = table[table["state"] == "done"]
    last = last_measured(table).sort_values([*ORDER, "run", "corpus"])
    if last.empty:
        return None
    learned = dict(_rows(done[done["role"] == "target"], "run", "step"))
    untuned = dict(_rows(done[(done["role"] == "retain") & (done["step"] == 0)], "run", "corpus"))
    varied = [name for name in SETTINGS if name in last and last[name].nunique() > 1]
    columns = [
        *heads(["Rank", "Steps"], texts=0),
        Cell("Target loss before", link=TERMS["target_nll"]),
        Cell("after", link=TERMS["target_nll"]),
        Cell("KL", link=TERMS["kl_base_tuned"]),
        Cell("Hard loss", link=TERMS["hard_cross_entropy"]),
        Cell("Agreement", link=TERMS["agreement"]),
        *heads(["Documents"], texts=0),
    ]
    rows = [
        [
            Cell(row["run"], kind="name", link="rows", run=row["run"]),
            *(Cell(str(row[name]), kind="text") for name in varied),
            Cell("–" if pd.isna(row["r"]) else str(int(row["r"]))),
            Cell(f"{row['step']:,.0f}"),
            _measured(learned.get((run, row["step"])), "base_nll"),
            _measured(learned.get((run, row["step"])), "nll"),
            _measured(row, "kl_base_tuned"),
            _measured(row, "hard_cross_entropy", before=untuned.get((run, corpus))),
            _measured(row, "agreement"),
            Cell(f"{row['documents']:,.0f}"),
        ]
        for (run, corpus), row in _rows(last, "run", "corpus")
    ]
    names = [SETTINGS[name] for name in varied]
    return Grid("Measurements", [*heads(["Run", *names], texts=1 + len(names)), *columns], rows)


TERMS = {
    "target_nll": "term-nll",
    "kl_base_tuned": "term-kl",
    "hard_cross_entropy": "term-hard",
    "agreement": "term-agreement",
}
"""Where the page defines each quantity."""

ORDER = ["r", "learning_rate", "seed"]
SETTINGS = {
    "model": "Model",
    "target": "Target",
    "corpus": "Retained text",
    "method": "Method",
    "layers": "Layers",
    "learning_rate": "Learning rate",
    "seed": "Seed",
}
"""What is shown of a run beside its rank, where runs differ in it."""


def _rows(table: pd.DataFrame, *key: str) -> Iterable[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    return ((tuple(row[name] for name in key), row) for row in table.to_dict("records"))


def _measured(row: Mapping[Any, Any] | None, quantity: str, *, before: Mapping[Any, Any] | None = None) -> Cell:
    """A measurement with its error, and what it was of the untouched base where that is not 0."""
    if row is None or pd.isna(row[quantity]):
        return Cell("not measured")
    note = "" if before is None else f"base {_estimate(before, quantity)}"
    return Cell(str(_estimate(row, quantity)), note)


def _estimate(row: Mapping[Any, Any], quantity: str) -> Estimate:
    return Estimate(value=row[quantity], stderr=row[f"{quantity}_stderr"], n=int(row["documents"]))


def unfinished_grid(table: pd.DataFrame) -> Grid | None:
    """Every run without a result, with how far it came and why; None when there is none."""
    without = table[table["state"] != "done"]
    if without.empty:
        return None
    learned, kept = (dict(_rows(without[without["role"] == role], "run", "step")) for role in ("target", "retain"))
    ended = without.sort_values("step").drop_duplicates("run", keep="last")
    rows = [
        [
            Cell(row["run"], kind="name", link="rows", run=row["run"]),
            Cell(row["state"], kind="text"),
            Cell("–" if pd.isna(row["r"]) else str(int(row["r"]))),
            Cell("none" if pd.isna(row["step"]) else f"{row['step']:,.0f}"),
            _measured(learned.get((row["run"], row["step"])), "nll"),
            _measured(kept.get((row["run"], row["step"])), "kl_base_tuned"),
            Cell("–" if pd.isna(row["reason"]) else row["reason"], kind="words"),
        ]
        for row in ended.sort_values([*ORDER, "run"]).to_dict("records")
    ]
    columns = [
        *heads(("Run", "State", "Rank", "Last step measured"), texts=2),
        Cell("Target loss", link=TERMS["target_nll"]),
        Cell("KL", link=TERMS["kl_base_tuned"]),
    ]
    return Grid("Runs without a result", [*columns, Cell("Reason", kind="words")], rows)
