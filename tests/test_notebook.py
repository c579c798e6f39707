"""What a notebook shows: the numbers of the objects, as text; and the example notebook, run as a reader would."""

import html.parser
import math
from pathlib import Path

import numpy as np
import pytest

import measured
from holdfast import laws, planning
from holdfast.display import html_table, visible
from holdfast.stats import rounded
from payloads import PAYLOADS
from simulated import study

NOTEBOOK = Path(__file__).parent.parent / "docs" / "example.ipynb"


class Shown(html.parser.HTMLParser):
    """Elements and words of a fragment."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def fitted():
    return laws.fit(study(np.random.default_rng(0), ranks=(8, 64), seeds=(0, 1)))


def test_a_fit_shows_its_constants_with_intervals(fitted):
    fit = fitted.lines["kl_base_tuned"]
    words = Shown(fit._repr_html_()).words
    slope = fit.parameters["slope"]
    low, high = (rounded(end, slope.stderr) for end in slope.interval(0.9))
    assert words[words.index("slope") + 1 :][:2] == [str(slope), f"{low} to {high}"]
    assert f"R² {fit.r2:.3f}" in " ".join(words)


def test_a_plan_and_laws_show_what_they_say(fitted):
    plan = planning.plan(fitted, max_forgetting=0.55)
    words = Shown(plan._repr_html_()).words
    assert words[words.index("Rank") + 1] == str(plan.r)
    assert {*plan.reasons, *plan.warnings} <= set(words)
    assert {"multiplicative", "line", *fitted.warnings} <= set(Shown(fitted._repr_html_()).words)
    missed = planning.plan(fitted, max_forgetting=0.001, target_loss=0.1)
    assert "Not feasible; the nearest miss" in missed._repr_html_()


def test_one_run_shows_no_interval():
    alone = laws.fit(study(np.random.default_rng(0), ranks=(8,), seeds=(0,)))
    words = Shown(planning.plan(alone, max_forgetting=0.55)._repr_html_()).words
    assert any("no interval" in word for word in words)
    assert not any("nan" in word.split() for word in words)
    assert math.isnan(alone.lines["kl_base_tuned"].parameters["slope"].stderr)


def test_a_measurement_shows_each_text():
    words = Shown(measured.trajectory()._repr_html_()).words
    assert {"wikipedia", "code"} <= set(words)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_table_is_markup(payload):
    shown = Shown(html_table((payload, "b"), [(payload, 1)], [payload]))
    assert [tag for tag, _ in shown.elements] == [tag for tag, _ in Shown(html_table("ab", [(1, 1)], [1])).elements]
    assert not any(attrs for _, attrs in shown.elements)
    assert "".join(shown.words) == visible(payload) + "b" + visible(payload) + "1" + visible(payload)


def test_the_example_notebook_runs_and_is_as_it_was_run(monkeypatch):
    """Its numbers are of stored rows: run again, every cell shows the same; the last digits of a repr are a CPU's."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: no notebook test")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: no notebook test")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(again, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    def told(cell):
        return [
            part.get("text") or {kind: text for kind, text in part["data"].items() if kind == "text/html"}
            for part in cell.get("outputs", [])
        ]

    assert any(told(cell) for cell in stored.cells)
    for before, after in zip(stored.cells, again.cells, strict=True):
        assert told(before) == told(after), f"run python scripts/example_notebook.py: {before.source}"
        kinds = [sorted(part.get("data", {})) for part in before.get("outputs", [])]
        assert kinds == [sorted(part.get("data", {})) for part in after.get("outputs", [])]
