"""A study's page and figures as files: what `reporting` and `figures` make, written where a person will look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast import figures
from holdfast.errors import FitError, ResourceError
from holdfast.laws import Laws, fit, points
from holdfast.planning import Plan, plan
from holdfast.reporting import report
from holdfast.store import Run, read_runs, tabulate, write_text


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written, and what it says; without laws, `why_no_laws` tells the reason."""

    page: Path
    figures: tuple[Path, ...]
    laws: Laws | None
    why_no_laws: str | None
    plan: Plan | None


def publish(
    runs: Path,
    output_dir: Path,
    *,
    commands: Sequence[str],
    max_forgetting: float | None = None,
    target_loss: float | None = None,
    risk: float = 0.1,
    corpus: str | None = None,
) -> Published:
    """Write `report.html` and its figures (PNG and SVG, from the same definitions) for a folder of runs.

    Too few finished runs for a law are no error: the page then shows what was measured, and says why there is no more.

    Raises:
        StoreError: no runs there, or a damaged one.
        ConfigError: the plan asked for has no answer.
        ResourceError: the files cannot be written.
    """
    made = read_runs(runs)
    table = tabulate(made)
    try:
        laws, why_not = fit(table, corpus=corpus), None
    except FitError as error:
        laws, why_not = None, str(error)
    asked = max_forgetting is not None or target_loss is not None
    planned = plan(laws, max_forgetting=max_forgetting, target_loss=target_loss, risk=risk) if laws and asked else None
    page = report(
        table,
        laws,
        planned,
        title=_title(made),
        commands=commands,
        provenance=_common([run.provenance for run in made if run.state == "done"]),
        why_no_laws=why_not,
    )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(output_dir / "report.html", page)
        drawn = _draw(table, laws, output_dir / "figures") if laws else ()
    except OSError as error:
        raise ResourceError(f"the report cannot be written: {error.strerror or error}, at {output_dir}") from error
    return Published(page=output_dir / "report.html", figures=drawn, laws=laws, why_no_laws=why_not, plan=planned)


def _draw(table: pd.DataFrame, laws: Laws, folder: Path) -> tuple[Path, ...]:
    folder.mkdir(exist_ok=True)
    shown = points(table, corpus=laws.corpus, skip_fraction=laws.skip_fraction)
    charts = {
        "loss-against-forgetting": figures.loss_against_forgetting(shown, laws),
        "trajectories-target": figures.trajectories(shown, laws, "target_nll"),
        "trajectories-forgetting": figures.trajectories(shown, laws, "kl_base_tuned"),
    }
    for name, chart in charts.items():
        (folder / f"{name}.png").write_bytes(figures.png(chart))
        (folder / f"{name}.svg").write_text(figures.svg(chart), encoding="utf-8")
    return tuple(sorted(folder.iterdir()))


def _title(runs: Sequence[Run]) -> str:
    models = sorted({run.config.model for run in runs})
    targets = sorted({run.config.target.data for run in runs})
    return f"{', '.join(models)} learning {', '.join(targets)}"


def _common(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of several runs as one: each value once, a list where they differ."""
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for facts in provenances for name in facts):
        values = [facts[name] for facts in provenances if name in facts]
        if isinstance(values[0], Mapping):
            together[name] = _common(values)
        else:
            together[name] = list(dict.fromkeys(map(str, values)))
    return together
