"""Every measurement is in its figure with its own interval, and what has no interval has no whisker."""

import json
from dataclasses import replace

import pytest

import measured
from holdfast import figures, measured_figures
from holdfast.evidence import KINDS

REPORT = measured.trajectory()
RUNS = {"outputs": REPORT.checkpoints}
EVERY = pytest.mark.parametrize(
    "chart",
    [
        measured_figures.along_training(RUNS, max_forgetting=0.1),
        measured_figures.by_text(REPORT.checkpoints, max_forgetting=0.1),
        measured_figures.by_kind(REPORT.checkpoints[-1]),
    ],
    ids=["along_training", "by_text", "by_kind"],
)


def layers(chart):
    """(mark, data) of each layer; Altair lifts data up where all layers share them."""
    spec = figures.specification(chart)
    return [
        (layer["mark"]["type"], spec["datasets"][layer.get("data", spec.get("data"))["name"]])
        for layer in spec["layer"]
    ]


def values(chart, mark):
    """The data of the layer with this mark that is no budget's."""
    (found,) = [data for kind, data in layers(chart) if kind == mark and "budget" not in data[0]]
    return found


def budgets(chart):
    return [(mark, data) for mark, data in layers(chart) if "budget" in data[0]]


def test_along_training_holds_every_checkpoint_and_text():
    chart = measured_figures.along_training(RUNS, max_forgetting=None)
    for mark in ("point", "line", "rule"):
        drawn = {(row["step"], row["text"]): row for row in values(chart, mark)}
        assert set(drawn) == {(point.step, name) for point in REPORT.checkpoints for name in point.texts}
        for point, text in REPORT.rows():
            row, kl = drawn[point.step, text.corpus], text.kl_base_tuned
            assert (row["value"], row["low"], row["high"]) == (kl.value, *kl.interval())
            assert (row["run"], row["model"]) == ("outputs", point.name)


def test_bars_by_text_hold_every_model_in_the_order_given():
    points = REPORT.checkpoints[::-2]
    drawn = values(measured_figures.by_text(points, max_forgetting=None), "bar")
    assert [(row["part"], row["group"]) for row in drawn] == [(p.name, name) for p in points for name in p.texts]
    assert [row["value"] for row in drawn] == [t.kl_base_tuned.value for p in points for t in p.texts.values()]


def test_bars_by_kind_are_the_reports_own_kinds():
    last = REPORT.checkpoints[-1]
    drawn = {(row["part"], row["group"]): row for row in values(measured_figures.by_kind(last), "bar")}
    assert set(drawn) == {(text.corpus, kind) for text in last.texts.values() for kind in text.by_kind()}
    for text in last.texts.values():
        for kind, (kl, tokens) in text.by_kind().items():
            row = drawn[text.corpus, kind]
            assert (row["value"], row["low"], row["high"]) == (kl.value, *kl.interval())
            assert row["tokens"] == f"{tokens:,}"
    assert [row["group"] for row in drawn.values()][:6] == list(KINDS)


def test_a_report_without_single_tokens_has_no_kinds_among_those_of_others():
    bare = replace(measured.corpus(name="bare"), tokens=None)
    drawn = values(measured_figures.by_kind(measured.checkpoint(measured.corpus(), bare)), "bar")
    assert {row["part"] for row in drawn} == {"wikipedia"}


def test_the_budget_is_one_line_with_its_name_and_only_when_there_is_one():
    for chart in (
        measured_figures.along_training(RUNS, max_forgetting=0.1),
        measured_figures.by_text(REPORT.checkpoints, max_forgetting=0.1),
    ):
        assert budgets(chart) == [(mark, [{"budget": 0.1, "name": "budget 0.1"}]) for mark in ("rule", "text")]
    assert budgets(measured_figures.along_training(RUNS, max_forgetting=None)) == []
    assert budgets(measured_figures.by_kind(REPORT.checkpoints[-1])) == []


def test_one_document_is_drawn_without_a_whisker():
    one = measured.checkpoint(measured.corpus(documents=1), step=1)
    for chart, mark in (
        (measured_figures.by_text([one], max_forgetting=None), "bar"),
        (measured_figures.by_kind(one), "bar"),
        (measured_figures.along_training({"run": [one]}, max_forgetting=None), "point"),
    ):
        assert "rule" not in {kind for kind, _ in layers(chart)}
        assert {row["low"] for row in values(chart, mark)} == {None}
        assert {row["ends"] for row in values(chart, mark)} == {"none"}
    both = measured.checkpoint(measured.corpus(documents=1), measured.corpus(name="code"))
    assert [row["group"] for row in values(measured_figures.by_text([both], max_forgetting=None), "rule")] == ["code"]


def test_several_runs_have_a_line_each():
    chart = measured_figures.along_training({"a": REPORT.checkpoints, "b": REPORT.checkpoints}, max_forgetting=None)
    assert {row["run"] for row in values(chart, "line")} == {"a", "b"}
    assert figures.svg(chart).count('class="mark-line role-mark') == 4  # of two texts in two runs


@EVERY
def test_a_figure_is_valid_vega_lite_and_draws_without_a_browser(chart):
    chart.to_dict(validate=True)
    assert figures.png(chart, scale=1.0).startswith(b"\x89PNG\r\n")
    json.dumps(figures.page(chart), allow_nan=False)


def test_names_from_elsewhere_are_made_visible_in_figures():
    def override(text):
        return f"{text}\u202e"

    report = measured.trajectory(quote=override)
    for chart in (
        measured_figures.along_training({"a\u202e": report.checkpoints}, max_forgetting=None),
        measured_figures.by_text(report.checkpoints, max_forgetting=None),
        measured_figures.by_kind(report.checkpoints[-1]),
    ):
        assert "\u202e" not in json.dumps(figures.specification(chart), ensure_ascii=False)
