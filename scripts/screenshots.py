"""The page of a real study as a picture, from its stored rows; how large it is, and how soon its first figure is there.

    python scripts/screenshots.py     # writes docs/page.png, docs/page-dark.png and docs/page-phone.png

Needs a Chromium and playwright, as the browser tests do.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pandas as pd
from playwright.sync_api import sync_playwright

from holdfast.comparison import beside_the_paper
from holdfast.forms import compare_forms
from holdfast.laws import fit, points
from holdfast.planning import plan
from holdfast.reporting import report
from holdfast.validation import validate

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "studies" / "gsm8k-seeds" / "runs.csv"
SHOTS = {
    "page": {"viewport": {"width": 1100, "height": 1560}},
    "page-dark": {"viewport": {"width": 1100, "height": 1560}, "color_scheme": "dark"},
    "page-phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
BUDGET = 0.05


def written() -> str:
    """The study's page, as `holdfast report` writes it."""
    table = pd.read_csv(STUDY, dtype={"run": str})
    laws = fit(table)
    used = points(table, corpus=laws.corpus)
    forms = compare_forms(used)
    return report(
        table, laws, plan(laws, max_forgetting=BUDGET), validation=validate(table), forms=forms,
        compared=beside_the_paper(used, laws, forms), title="builtin:smollm2 learning builtin:gsm8k",
        commands=[f"holdfast report runs --max-forgetting {BUDGET:g}"], provenance={"rows": STUDY.name},
    )  # fmt: skip


def main() -> None:
    """Write the page, open it as each reader would, and keep what is seen first."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(written(), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for name, settings in SHOTS.items():
            page = browser.new_context(**settings).new_page()
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-drawn]", state="attached")
            page.screenshot(path=ROOT / "docs" / f"{name}.png")
            still, drawn = (
                page.evaluate(f"performance.getEntriesByName('{what}')[0].startTime")
                for what in ("first-contentful-paint", "drawn")
            )
            size = f"{file.stat().st_size / 1e6:.2f} MB"
            print(f"{name}: {size}, still figures after {still:.0f} ms, the first that answers after {drawn:.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()
