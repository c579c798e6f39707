"""The page of fifty runs: its size, and how soon its first figure is there in a headless Chromium.

    python benchmarks/page.py

Simulated runs (five ranks, ten seeds, eleven measurements each), with all that a page has of them: laws, a plan, what
was held out, each form, the paper's constants beside ours. Once more with what was probed of them: 400 questions and 80
prompts to three steps of each run. Figures are there twice: still ones inside the page, seen with its first paint, and
those that answer, drawn by its script. The median of five openings, each in a new browser context.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from holdfast.afterwards import Afterwards, Forgotten
from holdfast.comparison import beside_the_paper
from holdfast.forms import compare_forms
from holdfast.laws import fit, points
from holdfast.planning import plan
from holdfast.reporting import report
from holdfast.validation import validate

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import measured
import probed
import simulated

OPENINGS = 5
SEEN = {"still": "first-contentful-paint", "drawn": "drawn"}


def asked(runs: list[str]) -> Afterwards:
    """What a probe of three steps of each run, and a measurement of its end, would have found."""
    models = [
        probed.model(
            probed.choices(0.8 * kl), probed.refusals(kl), name=f"{run}/checkpoint-{step}", step=step, kl=kl
        )
        for run in runs
        for step, kl in ((10, 0.05), (20, 0.1), (40, 0.2))
    ]  # fmt: skip
    text = measured.corpus()
    ends = [
        Forgotten(
            model=f"{run}/checkpoint-40", run=run, step=40, corpus=text.corpus, kl_base_tuned=text.kl_base_tuned,
            passages=text.passages,
        )
        for run in runs
    ]  # fmt: skip
    return Afterwards(probed=probed.report(*models), forgotten=tuple(ends), others=())


def opened(browser: Browser, file: Path) -> dict[str, float]:
    """Milliseconds from asking for the page to each kind of figure."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    seen = {
        name: page.evaluate(f"performance.getEntriesByName('{entry}')[0].startTime") for name, entry in SEEN.items()
    }
    context.close()
    return seen


def main() -> None:
    """Write both pages, open them, print."""
    table = simulated.study(np.random.default_rng(0), ranks=(8, 16, 32, 64, 128), seeds=range(10))
    runs = sorted(table["run"].unique())
    laws = fit(table)
    used = points(table, corpus=laws.corpus)
    forms = compare_forms(used)
    parts = {
        "validation": validate(table), "forms": forms, "compared": beside_the_paper(used, laws, forms),
        "title": "Fifty runs", "commands": ["holdfast report runs"], "provenance": {},
    }  # fmt: skip
    planned = plan(laws, max_forgetting=float(table["kl_base_tuned"].median()))
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    result = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, after in {"laws alone": None, "with answers": asked(runs)}.items():
            began = time.perf_counter()
            text = report(table, laws, planned, after=after, **parts)
            seconds = time.perf_counter() - began
            file = Path(folder) / "report.html"
            file.write_text(text, encoding="utf-8")
            times = [opened(browser, file) for _ in range(OPENINGS)]
            result[name] = {
                "runs": len(runs),
                "megabytes": round(file.stat().st_size / 1e6, 2),
                "figures": text.count("<figure>"),
                "still_figures": text.count("<figure>") - text.count("<noscript><p>This figure"),
                "written_s": round(seconds, 1),
                **{
                    f"{kind}_ms": {
                        "median": round(statistics.median(one[kind] for one in times)),
                        "all": [round(one[kind]) for one in times],
                    }
                    for kind in SEEN
                },
            }
        browser.close()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
