"""Pages, figures and tables as files, written where a person will look: of a study of runs, and of a measurement."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast import afterwards, figures, files
from holdfast.archive import FILE, read_runs, write_archive
from holdfast.behaviour import ProbeReport
from holdfast.cards import write_card
from holdfast.comparison import beside_the_paper
from holdfast.errors import DataError, FitError, ResourceError
from holdfast.forgetting import ForgettingReport
from holdfast.forgetting_page import forgetting_page
from holdfast.forms import compare_forms
from holdfast.groups import grouped
from holdfast.laws import SKIP_FRACTION, Laws, fit, points
from holdfast.planning import Plan, plan
from holdfast.probe_page import probe_page
from holdfast.progress import status
from holdfast.reporting import report
from holdfast.store import Run, tabulate
from holdfast.study_figures import charts
from holdfast.validation import validate

log = logging.getLogger(__name__)

RELOAD_S = 15
"""Between two looks of a browser at the page of a sweep under way."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was written, and what it says; without laws, `why_no_laws` tells the reason. An overview has neither."""

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
    only: Sequence[str] | None = None,
    skip_fraction: float = SKIP_FRACTION,
    reload_s: int | None = None,
) -> Published:
    """Write `report.html` and its figures (PNG and SVG, from the same definitions) for a folder of runs.

    With `only`, of the runs that meet the conditions; see `archive.read_runs`.
    Into another folder than the runs' own their archive is written too, from which the page can be made again.

    Too few finished runs for a law are no error: the page then shows what was measured, and says why there is no more.
    With `reload_s` it is the page of a sweep under way, which a browser reads again after so many seconds; every other
    form held out, which takes a core for half a minute, and figures as files are left to the last page.

    Raises:
        StoreError: no runs there, or a damaged one.
        ConfigError: the plan asked for has no answer.
        ResourceError: the files cannot be written.
    """
    made = read_runs(runs, only=only)
    table, after = tabulate(made), afterwards.read_afterwards(runs, {run.name for run in made})
    try:
        laws, why_not = fit(table, corpus=corpus, skip_fraction=skip_fraction), None
    except FitError as error:
        laws, why_not = None, str(error)
    asked = max_forgetting is not None or target_loss is not None
    planned, why_no_plan = None, None
    if laws and asked:
        try:
            planned = plan(laws, max_forgetting=max_forgetting, target_loss=target_loss, risk=risk)
        except FitError as error:
            why_no_plan = str(error)
    corpus = corpus if laws is None else laws.corpus
    after = after if corpus is None else after.on(corpus)
    validation = None if laws is None else validate(table, corpus=corpus, skip_fraction=skip_fraction)
    done = laws is not None and reload_s is None
    used = points(table, corpus=corpus, skip_fraction=skip_fraction) if done else None
    forms = None if used is None or laws is None else compare_forms(used, runs=laws.runs)
    compared = beside_the_paper(used, laws, forms) if laws and forms and used is not None else None
    page = report(
        table,
        laws,
        planned,
        validation=validation,
        forms=forms,
        compared=compared,
        groups=grouped(table, corpus=corpus, skip_fraction=skip_fraction) if laws else (),
        after=after,
        reload_s=reload_s,
        title=page_title(made),
        commands=commands,
        provenance=common_facts([run.provenance for run in made if run.state == "done"]),
        why_no_laws=why_not,
        why_no_plan=why_no_plan,
        corpus=corpus,
    )
    with files.refusing(output_dir):
        files.make_folder(output_dir)
        files.write(output_dir / "report.html", page.encode())
        if output_dir.resolve() != runs.resolve() and reload_s is None:
            write_archive(made, output_dir / FILE)
            afterwards.copy(runs, output_dir)
        shown = charts(table, laws, planned, validation, after.probed) if laws and reload_s is None else {}
        drawn = _draw(shown, output_dir / "figures") if shown else ()
    return Published(page=output_dir / "report.html", figures=drawn, laws=laws, why_no_laws=why_not, plan=planned)


def keep_current(runs: Path, write: Callable[[int | None], Published], *, every_s: float = 5.0) -> Published:
    """Write the page whenever something of the runs has changed, until every run has ended; the last page.

    `write` is given after how many seconds a browser is to read the page again, None for the last one.

    Raises:
        StoreError: no runs there.
    """
    seen = None
    while True:
        standing = {run.run: run for run in status(runs)}
        under_way = any(run.standing in ("running", "stopped", "waiting") for run in standing.values())
        now = {name: (run.standing, run.losses, run.forgetting) for name, run in standing.items()}
        if not under_way:
            return write(None)
        if now != seen:
            write(RELOAD_S)
            seen = now
        time.sleep(every_s)


def _draw(drawn: Mapping[str, figures.Chart], folder: Path) -> tuple[Path, ...]:
    files.make_folder(folder)
    for name, chart in drawn.items():
        files.write(folder / f"{name}.png", figures.png(chart))
        files.write(folder / f"{name}.svg", figures.svg(chart).encode())
    return tuple(sorted(folder.glob("[!.]*")))


LIBRARIES = ("holdfast", "torch", "transformers", "peft", "safetensors", "numpy")
"""Whose versions may move a measurement's numbers."""


def publish_measurement(
    report: ForgettingReport,
    *,
    html: Path | None,
    parquet: Path | None,
    model_card: Path | None,
    max_forgetting: float | None,
    commands: Sequence[str],
) -> tuple[Path, ...]:
    """Write what was measured, each file whole or not at all; None leaves one out.

    Of runs of ours it is kept beside them as well, for their page; see `afterwards`. Those files are returned.

    `html` is a page for people; `parquet` is `report.to_frame()`, the sums per document that every mean is a ratio of;
    `model_card` is a model card, see `cards.write_card`.

    Raises:
        DataError: a table or card was asked for and no checkpoint could be measured, or the card there is not one.
        ResourceError: a file cannot be written.
    """
    if html is not None:
        page = forgetting_page(
            report,
            max_forgetting=max_forgetting,
            title=_measured_title(report),
            commands=commands,
            provenance=_measured_provenance(report),
        )
        _publish(html, page.encode())
    if parquet is not None:
        if not any(checkpoint.texts for checkpoint in report.checkpoints):
            raise DataError(f"got no checkpoint that could be measured, expected one, for {parquet}")
        _publish(parquet, _parquet(report.to_frame()))
    if model_card is not None:
        write_card(report, model_card, commands=commands, max_forgetting=max_forgetting)
    return _kept(report)


def publish_probe(
    report: ProbeReport, *, html: Path | None, parquet: Path | None, commands: Sequence[str]
) -> tuple[Path, ...]:
    """Write what was probed, each file whole or not at all; None leaves one out.

    Of runs of ours it is kept beside them as well, for their page; see `afterwards`. Those files are returned.

    `html` is a page for people; `parquet` is `report.to_frame()`, a row per model, task and item.

    Raises:
        DataError: a table was asked for and no model could be probed.
        ResourceError: a file cannot be written.
    """
    if html is not None:
        page = probe_page(
            report,
            title=f"What became of the answers of {report.base}",
            commands=commands,
            provenance={
                "base": report.base,
                "dtype": report.dtype,
                "device": report.device,
                "adapters merged into the base": {model.name: str(model.merged) for model in report.models},
                "versions": {library: version(library) for library in LIBRARIES},
            },
        )
        _publish(html, page.encode())
    if parquet is not None:
        if not any(model.results for model in report.models):
            raise DataError(f"got no model that could be probed, expected one, for {parquet}")
        _publish(parquet, _parquet(report.to_frame()))
    return _kept(report)


def _kept(report: ForgettingReport | ProbeReport) -> tuple[Path, ...]:
    """Someone else's runs may not be ours to write beside: then what was found is not lost, only not kept there."""
    try:
        return afterwards.keep(report)
    except ResourceError as error:
        log.warning("not kept for the page of these runs: %s", error)
        return ()


def _publish(path: Path, content: bytes) -> None:
    """A file in a folder that is made for it."""
    with files.refusing(path):
        files.make_folder(path.parent)
        files.write(path, content)


def _parquet(frame: pd.DataFrame) -> bytes:
    table = io.BytesIO()
    frame.to_parquet(table, index=False)
    return table.getvalue()


def _measured_title(report: ForgettingReport) -> str:
    names = [checkpoint.name for checkpoint in report.checkpoints]
    tuned = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return f"What {tuned} forgot of {report.base}"


def _measured_provenance(report: ForgettingReport) -> dict[str, Any]:
    """What a measurement rests on: models, settings, how each was computed, versions."""
    return {
        "base": report.base,
        "quantised": report.quantised or "no",
        "dtype": report.dtype,
        "device": report.device,
        "context": f"{report.context} tokens",
        "measured by": {
            checkpoint.name: f"{checkpoint.method}{', merged into the base' if checkpoint.merged else ''}"
            for checkpoint in report.checkpoints
            if checkpoint.method is not None
        },
        "versions": {library: version(library) for library in LIBRARIES},
    }


def page_title(runs: Sequence[Run]) -> str:
    """What was taught what."""
    models = sorted({run.config.model for run in runs})
    targets = sorted({run.config.target.data for run in runs})
    return f"{', '.join(models)} learning {', '.join(targets)}"


def common_facts(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of several runs as one: each value once, a list where they differ."""
    together: dict[str, Any] = {}
    for name in dict.fromkeys(name for facts in provenances for name in facts):
        values = [facts[name] for facts in provenances if name in facts]
        if isinstance(values[0], Mapping):
            together[name] = common_facts(values)
        else:
            together[name] = list(dict.fromkeys(map(str, values)))
    return together
