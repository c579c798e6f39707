"""What all pages share: a policy that names what is in them and nothing else, and the parts they are made of."""

import base64
import hashlib
import io
import json
import math
import re

import numpy as np
import pytest
import vl_convert

import measured
from holdfast import figures, laws, legends, measured_figures, page, reporting, study_figures
from holdfast.forgetting_page import forgetting_page
from pages import Page
from simulated import study

COMMANDS, PROVENANCE = ["holdfast again"], {"versions": {"torch": "2.13.0", "more": {"deep": 1}}, "texts": ["a", "b"]}


@pytest.fixture(scope="module", params=["study", "measurement"])
def read(request):
    about = {"title": "A page", "commands": COMMANDS, "provenance": PROVENANCE}
    if request.param == "measurement":
        return Page(forgetting_page(measured.trajectory(), max_forgetting=0.1, **about))
    table = study(np.random.default_rng(0), ranks=(8, 64), seeds=(0, 1))
    return Page(reporting.report(table, laws.fit(table), None, **about))


def test_the_policy_names_what_is_in_the_page_and_nothing_else(read):
    (policy,) = [
        attrs["content"] for tag, attrs in read.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    (style,), script = read.codes["style"], read.codes["script"][-1]
    for rule, code in (("style-src", style), ("script-src", script)):
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    assert "unsafe" not in policy
    assert not any("style" in attrs for tag, attrs in read.elements)
    assert not [attrs for _, attrs in read.elements if {"src", "srcset", "action", "formaction"} & set(attrs)]


def test_the_page_says_how_it_is_made_again_and_from_what(read):
    words = " ".join(read.words.split())
    for part in (*COMMANDS, "versions / torch2.13.0", "versions / more / deep1", "textsa, b"):
        assert part in words


def test_the_colours_of_charts_are_those_of_the_page(read):
    """A chart names a colour by its light value; the page must have the same name for the same value."""
    (style,) = read.codes["style"]
    light = style[: style.index("prefers-color-scheme")]
    for name, colour in (legends.LIGHT | {"caution": legends.CAUTION}).items():
        assert f"--{name}: {colour};" in light
    for code in read.codes["script"][:-1]:
        drawn = {key: part for key, part in json.loads(code).items() if key != "datasets"}
        assert not re.findall(r'"#[0-9a-f]{6}"', json.dumps(drawn))
        assert set(re.findall(r"var\(--([\w-]+)\)", json.dumps(drawn))) <= {*legends.LIGHT, "caution"}


def test_still_drawings_but_the_first_are_left_out_once_they_would_be_most_of_the_page(monkeypatch):
    chart = measured_figures.by_kind(measured.checkpoint(measured.corpus()))
    (entry,) = page.figure_entries({"a": chart}, {"a": "caption"})
    assert entry["svg"] == figures.still(chart)
    assert "var(--ink)" in entry["svg"]
    assert (entry["title"], entry["caption"]) == ("Forgetting by kind of token", "caption")
    both, captions = {"a": chart, "b": chart}, {"a": "caption", "b": "caption"}
    all_of_it = 2 * (len(entry["svg"]) + len(entry["specification"]))
    for room, drawn in ((all_of_it, 2), (all_of_it - 1, 1), (0, 1)):
        monkeypatch.setattr(page, "FIGURES_BYTES", room)
        assert [bool(one["svg"]) for one in page.figure_entries(both, captions)] == [True, drawn == 2]


def test_a_still_drawing_is_the_same_drawing_in_fewer_bytes():
    """Each mark where it was to a tenth of a point, every shade kept: pixel for pixel hardly another picture."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: no pictures to compare")
    table = study(np.random.default_rng(0), ranks=(8, 64), seeds=(0, 1))
    charts = study_figures.charts(table, laws.fit(table), None, None)
    for chart in (charts["loss-against-forgetting"], charts["trajectories-forgetting"]):
        whole = figures.svg(chart)
        small = figures.compact(whole)
        assert len(small) < 0.7 * len(whole)
        assert [small.count(f"<{mark} ") for mark in ("path", "line")] == [
            whole.count(f"<{mark} ") for mark in ("path", "line")
        ]
        before, after = (
            np.asarray(image.open(io.BytesIO(vl_convert.svg_to_png(svg))).convert("L"), dtype=float)
            for svg in (whole, small)
        )
        assert np.abs(before - after).mean() < 0.5  # of 255


def test_an_interval_has_the_digits_of_its_error():
    assert page.interval(0.1234, 0.4321, 0.02) == "0.12 to 0.43"
    assert page.interval(math.nan, math.nan, math.nan) == "no interval"
