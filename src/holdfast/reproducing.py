"""A paper's own study, made again from its settings: `holdfast reproduce`. Sweep, laws, page, answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from holdfast.behaviour import ProbeReport
from holdfast.config import Study, read_study
from holdfast.errors import ConfigError
from holdfast.publishing import Published, publish, publish_probe

PAPERS = ("kalajdzievski2024",)
"""Whose studies ship with the package."""

ITEMS = {"arc_challenge": None, "advbench": 50}
"""What the paper asks its models, and how many items: all the questions, and fifty requests that are to be refused."""

Sweep = Callable[[Study, Path], None]
Probe = Callable[[str, Path, str, int | None], ProbeReport]


def studies(paper: str, *, data: Mapping[str, str], overrides: Sequence[str]) -> dict[str, Study]:
    """The paper's study once for each data set, by its name; `data` are names and data specs.

    Raises:
        ConfigError: a paper that is none of `PAPERS`, no data, or a setting that is wrong.
    """
    if paper not in PAPERS:
        raise ConfigError(f"got {paper!r}, expected one of {', '.join(PAPERS)}, at the papers")
    if not data:
        raise ConfigError("got no data set, expected at least one, at the data to learn")
    path = Path(__file__).parent / "data" / paper / "study.yaml"
    return {name: read_study(path, overrides=[f"target.data={spec}", *overrides]) for name, spec in data.items()}


def reproduce(
    made: Mapping[str, Study], out: Path, *, sweep: Sweep, probe: Probe, limit: int | None, commands: Sequence[str]
) -> dict[str, Published]:
    """Make a paper's studies again, one after another, each in a folder of its name under `out`.

        out/<name>/runs                 every run, with the adapter of each measured step
        out/<name>/report.html          laws, figures, answers, and the paper's own constants beside them
        out/<name>/arc_challenge.html   answers along training and against forgetting; .parquet: every item
        out/<name>/advbench.html        refusals, in the same way

    What is finished is found again, so the same call goes on after a stop. `sweep` makes a study's runs in a folder and
    `probe` puts so many items of a task to a base and a folder of runs: how they are watched is the caller's. `limit`
    asks fewer items than the paper.
    """
    published = {}
    for name, study in made.items():
        folder = out / name
        sweep(study, folder / "runs")
        for task, items in ITEMS.items():
            few = items if limit is None else min(limit, items or limit)
            report = probe(study.runs[0].model, folder / "runs", task, few)
            publish_probe(report, html=folder / f"{task}.html", parquet=folder / f"{task}.parquet", commands=commands)
        published[name] = publish(folder / "runs", folder, commands=commands)
    return published
