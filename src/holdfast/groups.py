"""The runs of a study by what they learned and how they were trained: the laws of each group, and one held to the rest.

A law is of one way of training. Runs of another way may pay another price, so each way has laws of its own here, and
the question whether those of the largest group hold for the others (the paper's Figure 6) has its own answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from holdfast.errors import FitError
from holdfast.formulas import LINE
from holdfast.laws import SKIP_FRACTION, WAYS, Fit, Laws, by_size, fit, fit_law, points, ways
from holdfast.points import retained_texts
from holdfast.stats import Estimate, as_dict

QUANTITY = "kl_base_tuned"
"""The measure of forgetting that groups are compared by."""

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
    name: str
    """What sets it apart, in words: of the largest group of its target all that groups differ in, of another how."""
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

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, at full precision; nan becomes None."""
        return as_dict(self)


def grouped(
    table: pd.DataFrame, *, corpus: str | None = None, skip_fraction: float = SKIP_FRACTION
) -> tuple[Group, ...]:
    """The finished runs of a table by target, retained text and way of training, the largest group of each first.

    Of every retained text, unless `corpus` names one. Ranks, seeds, layers and lengths differ within a group; see
    `laws.ways`.

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
    named, usual = [], dict[str, str]()
    for each in members:
        own = {column: each.settings[column] for column in differing if each.settings[column] not in NONE}
        named.append(replace(each, settings=own, name=_name(own, {} if each.missed is None else usual)))
        if each.missed is None:
            usual = {column: value for column, value in own.items() if column in WAYS}
    return tuple(named)


def _ways(part: pd.DataFrame, corpus: str, skip_fraction: float) -> list[Group]:
    """The groups of one model, target and retained text, of runs that have points there, as `laws.fit` counts them."""
    try:
        measured = points(part, corpus=corpus, skip_fraction=skip_fraction)
    except FitError:
        return []
    runs = part[part["run"].isin(measured["run"])].drop_duplicates("run").set_index("run")
    way = ways(runs)
    found: list[Group] = []
    for each in by_size(way):
        rows = part[part["run"].isin(way.index[way == each])]
        made = _group(rows, corpus, skip_fraction, found[0] if found else None)
        found += [] if made is None else [made]
    return found


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
        name="",
        runs=tuple(sorted(set(measured["run"]))),
        n_points=len(measured),
        price=line.parameters["slope"],
        laws=laws,
        why_no_laws=why,
        missed=None if largest is None else _missed(largest.laws, measured),
    )


def _name(settings: Mapping[str, str], usual: Mapping[str, str]) -> str:
    """The settings that are not the usual ones, in words; of an adapter's config each part by itself."""
    words = []
    for column, value in settings.items():
        if column == "adapter" and value.startswith("{"):
            known = json.loads(usual.get(column, "{}").replace("varies", "{}"))
            parts = {key: held for key, held in json.loads(value).items() if held != known.get(key)}
            words += [f"{key} {' '.join(held) if isinstance(held, list) else held}" for key, held in parts.items()]
        elif value != usual.get(column):
            words.append(f"{WORDS.get(column, column)} {value}")
    return ", ".join(words) or "all runs"


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
