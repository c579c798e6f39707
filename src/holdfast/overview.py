"""The page of a study of several targets or retained texts: price and exponents of each side by side, and pages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast import afterwards, files
from holdfast.archive import FILE, read_runs, write_archive
from holdfast.display import visible
from holdfast.errors import FitError
from holdfast.groups import QUANTITY, Group, grouped
from holdfast.laws import commonest, points
from holdfast.page import figure_entries, render, rows_file
from holdfast.publishing import Published, common_facts, page_title
from holdfast.reporting import LEVEL, groups_grid
from holdfast.run_grids import runs_grid, unfinished_grid
from holdfast.slopes import slope_equality
from holdfast.stats import rounded
from holdfast.store import Run, tabulate
from holdfast.study_figures import captions, panels, with_series


def publish_each(
    runs: Path, output_dir: Path, publish: Callable[[Path, Sequence[str], str | None], Published], *,
    only: Sequence[str] | None, corpus: str | None, skip_fraction: float, commands: Sequence[str],
    reload_s: int | None,
) -> Published:  # fmt: skip
    """The page of the one law of a folder of runs, or one of each target and retained text and an overview.

    `publish` writes a page into a folder, of the runs that meet conditions and of one retained text.

    Raises:
        StoreError, ConfigError, ResourceError: as `publishing.publish`.
    """
    made = read_runs(runs, only=only)
    called = _called(made, corpus)
    if len(called) < 2:
        return publish(output_dir, only or (), corpus)
    table = tabulate(made)
    names = dict(zip(called, folder_names(list(called.values())), strict=True))
    pages = {
        names[of]: publish(output_dir / names[of], [*(only or ()), f"target={of[0]}"], of[1]) for of in called
    }  # fmt: skip
    groups = grouped(table, corpus=corpus, skip_fraction=skip_fraction)
    page = overview(
        table, groups, corpus=corpus, skip_fraction=skip_fraction, title=page_title(made), commands=commands,
        reload_s=reload_s, pages={name: page.why_no_laws for name, page in pages.items()},
        provenance=common_facts([run.provenance for run in made if run.state == "done"]),
    )  # fmt: skip
    with files.refusing(output_dir):
        files.write(output_dir / "report.html", page.encode())
        if output_dir.resolve() != runs.resolve() and reload_s is None:
            write_archive(made, output_dir / FILE)
            afterwards.copy(runs, output_dir)
    written = tuple(path for each in pages.values() for path in (each.page, *each.figures))
    return Published(page=output_dir / "report.html", figures=written, laws=None, plan=None, why_no_laws=None)


def overview(
    table: pd.DataFrame, groups: Sequence[Group], *, corpus: str | None, skip_fraction: float, title: str,
    commands: Sequence[str], provenance: dict[str, Any], pages: dict[str, str | None], reload_s: int | None = None,
) -> str:  # fmt: skip
    """The page itself; `pages` are the folders of the others, and why there is no law on one."""
    first: dict[tuple[str, str], Group] = {}
    for group in groups:
        first.setdefault((group.target, group.corpus), group)
    drawn = panels(table, {of: group.laws for of, group in first.items()}, corpus=corpus)
    targets, texts = (list(dict.fromkeys(names)) for names in zip(*first, strict=True)) if first else ([], [])
    return render(
        "overview.html.j2",
        style="page.css",
        title=title,
        drawings=figure_entries(drawn, captions(drawn)),
        commands=commands,
        provenance=provenance,
        reload_s=reload_s,
        content={
            "headlines": [_headline(list(first.values()), text) for text in texts]
            or ["No run has finished, so no price is known."],
            "same": [
                _same_price(table, text, skip_fraction, alone=len(texts) == 1) for text in texts if len(targets) > 1
            ],
            "groups": groups_grid(groups) if groups else None,
            "pages": [(name, visible(name), why) for name, why in pages.items()],
            "numbers": {name: number for number, name in enumerate(drawn, 1)},
            "series": list(with_series(table)["series"].cat.categories) if drawn else [],
            "runs": runs_grid(table),
            "unfinished": unfinished_grid(table),
            "rows": rows_file(table.sort_values(["run", "step", "role", "corpus"])),
        },
    )


def folder_names(called: Sequence[str]) -> list[str]:
    """A folder for each target: what it is called, in characters any disk takes, told apart by a number."""
    plain = [re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "target" for name in called]
    return [name if plain.count(name) == 1 else f"{name}-{at + 1}" for at, name in enumerate(plain)]


def _called(runs: Sequence[Run], corpus: str | None) -> dict[tuple[str, str | None], str]:
    """What laws are of, a target and a retained text, each pair called by that of the two which differs."""
    found: dict[tuple[str, str | None], str] = {}
    for target in sorted({run.config.target.data for run in runs}):
        measured = [m for run in runs if run.config.target.data == target for m in run.measurements]
        name = next((m.corpus for m in measured if m.role == "target"), Path(target).stem)
        retained = {corpus} if corpus else {m.corpus for m in measured if m.role == "retain"}
        found |= {(target, text): name for text in sorted(retained) or (None,)}
    texts = {text for _, text in found}
    if len(texts) < 2:
        return found
    alone = len(set(found.values())) == 1
    return {of: str(of[1]) if alone else f"{name} on {of[1]}" if of[1] else name for of, name in found.items()}


def _headline(groups: Sequence[Group], corpus: str) -> str:
    """The price of each target in one sentence, in forgetting on one text."""
    prices = [f"{_tenth(group)} nats on {visible(group.target)}" for group in groups if group.corpus == corpus]
    return f"Each 0.1 nat of improvement costs, in forgetting on {visible(corpus)}: {'; '.join(prices)}."


def _tenth(group: Group) -> str:
    price = group.price
    if not math.isfinite(price.stderr):
        return f"{0.1 * price.value:.3g}"
    low, high = (rounded(0.1 * end, 0.1 * price.stderr) for end in price.interval(LEVEL))
    return f"{rounded(0.1 * price.value, 0.1 * price.stderr)} ({low} to {high})"


def _same_price(table: pd.DataFrame, corpus: str, skip_fraction: float, *, alone: bool) -> str:
    """Whether the targets have one price in forgetting on a text, tested over the runs of each that laws are of."""
    done = table[table["state"] == "done"]
    parts = []
    for _, part in done.groupby("target"):
        try:
            parts.append(points(commonest(part), corpus=corpus, skip_fraction=skip_fraction))
        except FitError:
            continue
    where = "" if alone else f"On {visible(corpus)}: "
    if len(parts) < 2:
        return (
            f"{where}Whether the price differs by what is learned is not testable: fewer than two targets have points."
        )
    return f"{where}{slope_equality(pd.concat(parts, ignore_index=True), QUANTITY, by='target')}"
