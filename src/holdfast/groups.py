"""The runs of a study by what they learned and how they were trained: the laws of each group, and one held to the rest.

A law is of one way of training. Runs of another way may pay another price, so each way has laws of its own here, and
the question whether those of the largest group hold for the others (the paper's Figure 6) has its own answer.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from holdfast.errors import FitError
from holdfast.formulas import LINE
from holdfast.laws import POOLED, SKIP_FRACTION, Fit, Laws, fit, fit_law, points
from holdfast.points import retained_texts
from holdfast.stats import Estimate, as_dict

QUANTITY = "kl_base_tuned"
"""The measure of forgetting that groups are compared by."""

WAYS = tuple(column for column in POOLED if column != "dtype")
"""Columns that a way of training is told by; precision is a matter of the machine."""

NONE = ("", "nan", "None", "{}")
"""What a setting is called that a way of training does not have."""

WORDS = {
    "learning_rate": "learning rate",
    "batch_tokens": "tokens a step",
    "lora_alpha": "alpha",
    "use_rslora": "rsLoRA",
    "corpus": "forgetting on",
}


@dataclass(frozen=True, kw_only=True)
class Missed:
    """A law of the largest group on the points of another: root mean square and mean error, predicted − measured."""

    law: str
    rmse: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one model, one target and one way of training, and what they say by themselves."""

    target: str
    corpus: str
    settings: dict[str, str]
    """In which groups of the study differ, by column; the target is one where there are several, so is the text."""
    runs: tuple[str, ...]
    n_points: int
    price: Estimate
    """Nats of KL forgotten per nat learned: slope of the group's own line."""
    laws: Laws | None
    """Of these runs alone."""
    why_no_laws: str | None
    missed: tuple[Missed, ...] | None
    """By the laws of the largest group of this target, empty where it has none; None for that group itself."""

    @property
    def n_runs(self) -> int:
        """How many there are."""
        return len(self.runs)

    @property
    def name(self) -> str:
        """What sets it apart, in words."""
        return ", ".join(itertools.starmap(_in_words, self.settings.items())) or "all runs"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, at full precision; nan becomes None."""
        return as_dict(self)


def grouped(
    table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION
) -> tuple[Group, ...]:
    """The finished runs of a table by target, retained text and way of training, the largest group of each first.

    Of every retained text, unless `corpus` names one. Ranks, seeds, layers and lengths differ within a group. An alpha
    that goes with the rank is one way of scaling, and numbers inside a PEFT config that change how many parameters are
    trained are its size, not another way.

    Raises:
        ConfigError: as `points`.
    """
    done = table[table["state"] == "done"]
    members: list[Group] = []
    for _, part in done.groupby(["model", "target"], sort=True):
        for retained in [corpus] if corpus else retained_texts(part):
            members += _ways(part, retained, skip_fraction)
    columns = ("target", "corpus", *WAYS)
    differing = [column for column in columns if len({each.settings[column] for each in members}) > 1]
    return tuple(
        replace(each, settings={name: each.settings[name] for name in differing if each.settings[name] not in NONE})
        for each in members
    )


def _ways(part: pd.DataFrame, corpus: str, skip_fraction: float) -> list[Group]:
    """The groups of one model, target and retained text."""
    ways = part.assign(way=_way(part)).groupby("way", sort=True)
    sizes = sorted(((-rows["run"].nunique(), str(way)) for way, rows in ways))
    found: list[Group] = []
    for _, way in sizes:
        made = _group(ways.get_group(way).drop(columns="way"), corpus, skip_fraction, found[0] if found else None)
        found += [] if made is None else [made]
    return found


def _way(part: pd.DataFrame) -> pd.Series[Any]:
    """A key of each row: alike for runs that one law may describe."""
    known = pd.DataFrame({column: part[column].map(str) for column in WAYS if column in part})
    if "adapter" in known:
        known["adapter"] = known["adapter"].map(lambda held: re.sub(r"(?<=:)-?[\d.]+(?:e-?\d+)?", "#", held))
    if "lora_alpha" in known and part.groupby("r")["lora_alpha"].nunique().max() == 1:
        known["lora_alpha"] = "goes with r" if part["lora_alpha"].nunique() > 1 else known["lora_alpha"]
    return known.agg(" | ".join, axis="columns")


def _group(rows: pd.DataFrame, corpus: str, skip_fraction: float, largest: Group | None) -> Group | None:
    try:
        measured = points(rows, corpus=corpus, skip_fraction=skip_fraction)
        line = fit_law(LINE, measured, QUANTITY, huber=math.inf)
    except FitError:
        return None
    try:
        laws, why = fit(rows, corpus=corpus, skip_fraction=skip_fraction), None
    except FitError as error:
        laws, why = None, str(error)
    target = str(measured["target"].iloc[0])
    return Group(
        target=target,
        corpus=corpus,
        settings={"target": target, "corpus": corpus} | {column: _value(rows, column) for column in WAYS},
        runs=tuple(sorted(set(measured["run"]))),
        n_points=len(measured),
        price=line.parameters["slope"],
        laws=laws,
        why_no_laws=why,
        missed=None if largest is None else _missed(largest.laws, measured),
    )


def _in_words(column: str, value: str) -> str:
    if column != "adapter" or not value.startswith("{"):
        return f"{WORDS.get(column, column)} {value}"
    settings = json.loads(value).items()
    return ", ".join(f"{key} {' '.join(held) if isinstance(held, list) else held}" for key, held in settings)


def _value(rows: pd.DataFrame, column: str) -> str:
    if column not in rows:
        return ""
    values = rows[column].map(lambda held: f"{held:g}" if isinstance(held, float) else str(held)).unique()
    return str(values[0]) if len(values) == 1 else "varies"


def _missed(laws: Laws | None, measured: pd.DataFrame) -> tuple[Missed, ...]:
    """The line given the target loss, and the joint law given P and N."""
    if laws is None:
        return ()
    return tuple(_error(law, measured) for law in (laws.lines[QUANTITY], laws.joint[QUANTITY]))


def _error(law: Fit, measured: pd.DataFrame) -> Missed:
    inputs: Mapping[str, Any] = {column: measured[column].to_numpy(dtype=np.float64) for column in law.domain}
    error = np.asarray(law.predict(**inputs).mean) - measured[QUANTITY].to_numpy(dtype=np.float64)
    return Missed(law=law.law, rmse=math.sqrt(float(error @ error) / len(error)), bias=float(error.mean()))
