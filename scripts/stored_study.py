"""What a stored study says: its laws held to what they had not seen, every form, and what buying its runs would cost.

    python scripts/stored_study.py studies/gsm8k-seeds       # writes the tables of its README.md

Reads `runs.csv` there, the table of `holdfast.table` as it was stored, and nothing else: no model, no torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from holdfast.planning import price_in_words
from holdfast.points import points
from holdfast.stats import Estimate, rounded
from holdfast.tables import Examined, examine

sys.path.insert(0, str(Path(__file__).parent))
from next_run import SHARES, advised, at_random, replaced, replay, small_pilot

ENOUGH = 9
"""Runs, of which three begin a replay and 40 % of the tokens buy a few more."""

CHANCES = 3
"""Replays that buy at random, for each place."""


def read(folder: Path) -> pd.DataFrame:
    """The stored table, as `holdfast.table` gave it."""
    return pd.read_csv(folder / "runs.csv", dtype={"run": str})


def said(found: Examined) -> str:
    """The price in words, and how the laws of forgetting forecast."""
    told = [str(held) for held in found.validation.held_out if held.quantity == "kl_base_tuned"]
    lines = [price_in_words(found.laws), *told, *(str(test) for test in found.tests if test.testable)]
    return "\n".join(f"* {line}" for line in lines)


def forms(found: Examined) -> str:
    """Markdown: every form, its error on each part, R² in sample."""
    parts = found.forms.parts()
    rows = [("quantity", "form", *parts, "R² in sample")]
    for quantity in found.forms.fits:
        nearest = found.forms.nearest(quantity)
        for score in (each for each in found.forms.scores() if each.quantity == quantity):
            cells = (_error(score.errors, part, bold=nearest.get(part) == score.form) for part in parts)
            rows.append((f"`{quantity}`", score.form, *cells, f"{score.r2:.4f}"))
        for name, errors in found.forms.baselines(quantity).items():
            rows.append((f"`{quantity}`", name, *(_error(errors, part, bold=False) for part in parts), ""))
    return markdown(rows)


def _error(errors: dict[str, float], part: str, *, bold: bool) -> str:
    value = errors.get(part, math.nan)
    text = "–" if math.isnan(value) else f"{value:.2g}"
    return f"**{text}**" if bold else text


def constants(found: Examined) -> str:
    """Markdown: every form's constants with 90 % intervals."""
    rows = [("quantity", "form", "constants, 90 % intervals by run")]
    for quantity, fits in found.forms.fits.items():
        for name, fit in fits.items():
            told = (f"{parameter} {interval(estimate)}" for parameter, estimate in fit.parameters.items())
            rows.append((f"`{quantity}`", name, ", ".join(told)))
    return markdown(rows)


def interval(estimate: Estimate) -> str:
    """A value with its 90 % interval."""
    if math.isnan(estimate.stderr):
        return "not identified"
    low, high = (rounded(end, estimate.stderr) for end in estimate.interval(0.9))
    return f"{rounded(estimate.value, estimate.stderr)} ({low} to {high})"


def bought(table: pd.DataFrame) -> str:
    """Markdown: the study made again by the advice of `next`, and at random, for a plan at each rank and step."""
    runs = table.loc[table["state"] == "done", "run"].nunique()
    if runs < ENOUGH:
        return f"Not before {ENOUGH} runs are in, for among {runs} there is nothing to choose."
    pilot, measured = small_pilot(table), points(table, skip_fraction=0.0)
    found: list[dict[str, object]] = []
    for (r, steps), rows in measured[measured["steps"] >= min(pilot.values())].groupby(["r", "steps"]):
        at, values = (int(r), int(steps)), rows["kl_base_tuned"].to_numpy()
        buyers = [advised(at), *(at_random(np.random.default_rng(seed)) for seed in range(CHANCES))]
        for number, buy in enumerate(buyers):
            made = replay(table, at=at, pilot=pilot, buy=buy, share=SHARES[-1])
            whole, made = made.iloc[-1], made.iloc[:-1]
            ways = {f"{'at random' if number else 'advised'}, {_percent(share)}": made[made["share"] <= share].iloc[-1]
                    for share in SHARES}  # fmt: skip
            for way, row in (ways if number else ways | {"whole study": whole}).items():
                inside = (row["low"] <= values) & (values <= row["high"])
                found.append(
                    {"way": way, "width": row["width"] / whole["width"], "law": row["law_width"] / whole["law_width"],
                     "inside": inside.mean()}
                )  # fmt: skip
        print(at, file=sys.stderr, flush=True)
    rows = [("", "width, median", "middle half", "no wider at", "the law's own, median", "runs inside")]
    for way, each in pd.DataFrame(found).groupby("way", sort=False):
        low, middle, high = each["width"].quantile([0.25, 0.5, 0.75])
        cells = (f"{middle:.2f}", f"{low:.2f} to {high:.2f}", _percent((each["width"] <= 1).mean()))
        rows.append((str(way), *cells, f"{each['law'].median():.2f}", _percent(each["inside"].mean())))
    return markdown(rows)


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """The first row is the head."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    """Write the README's tables."""
    folder = Path(sys.argv[1])
    table, page = read(folder), folder / "README.md"
    found = examine(table)
    text = page.read_text(encoding="utf-8")
    for name, content in {
        "said": said(found), "forms": forms(found), "constants": constants(found), "next": bought(table),
    }.items():  # fmt: skip
        print(content)
        text = replaced(text, name, content)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
