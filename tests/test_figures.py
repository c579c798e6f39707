"""Every measurement is in its figure, the curves are the fit's own, and a figure draws without a browser."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from holdfast import figures, laws, legends
from holdfast.errors import DataError
from simulated import study

RANKS = (8, 64, 256)


@pytest.fixture(scope="module")
def table():
    return study(np.random.default_rng(0), ranks=RANKS, seeds=(0, 1))


@pytest.fixture(scope="module")
def points(table):
    every, fitted = laws.points(table, skip_fraction=0), laws.points(table)
    return every.assign(in_fit=every["steps"] >= fitted["steps"].min())


@pytest.fixture(scope="module")
def fitted(table):
    return laws.fit(table)


def line(points, fitted):
    return figures.loss_against_forgetting(points, fitted)


def hard_line(points, fitted):
    return figures.loss_against_forgetting(points, fitted, "hard_cross_entropy")


def learned(points, fitted):
    return figures.trajectories(points, fitted, "target_nll")


def forgotten(points, fitted):
    return figures.trajectories(points, fitted, "kl_base_tuned")


EVERY = pytest.mark.parametrize(
    ("figure", "x", "y"),
    [
        (line, "target_nll", "kl_base_tuned"),
        (hard_line, "target_nll", "hard_cross_entropy"),
        (learned, "steps", "target_nll"),
        (forgotten, "steps", "kl_base_tuned"),
    ],
)


def values(spec, mark):
    """The data of the layer with this mark; Altair lifts them up where all layers share them."""
    (layer,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == mark]
    return spec["datasets"][layer.get("data", spec.get("data"))["name"]]


@EVERY
def test_every_measurement_is_drawn(figure, x, y, points, fitted):
    drawn = values(figures.specification(figure(points, fitted)), "point")
    found = sorted((row["run"], row["steps"], row[x], row[y], row["in_fit"]) for row in drawn)
    asked = points[["run", "steps", x, y, "in_fit"]].itertuples(index=False, name=None)
    assert found == sorted(asked)
    assert {row["in_fit"] for row in drawn} == {True, False}


@EVERY
def test_without_laws_the_measurements_stand_alone(figure, x, y, points):
    spec = figures.specification(figure(points, None))
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["point"]
    assert len(values(spec, "point")) == len(points)


def test_the_line_and_its_band_are_the_fits_prediction(points, fitted):
    curve = values(figures.specification(line(points, fitted)), "line")
    fit = fitted.lines["kl_base_tuned"]
    assert [row["target_nll"] for row in (curve[0], curve[-1])] == list(fit.domain["target_nll"])
    for row in curve:
        prediction = fit.predict(target_nll=row["target_nll"])
        assert row["kl_base_tuned"] == pytest.approx(prediction.mean, rel=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(prediction.interval(0.9), rel=1e-12)


def test_there_is_a_curve_for_each_rank_over_the_fitted_steps(points, fitted):
    curve = values(figures.specification(forgotten(points, fitted)), "line")
    fit = fitted.joint["kl_base_tuned"]
    assert {row["series"] for row in curve} == set(map(str, RANKS))
    assert (min(row["steps"] for row in curve), max(row["steps"] for row in curve)) == fit.domain["steps"]
    for row in curve[::17]:
        prediction = fit.predict(trainable_params=row["trainable_params"], steps=row["steps"])
        assert row["kl_base_tuned"] == pytest.approx(prediction.mean, rel=1e-12)


@pytest.mark.parametrize("figure", [line, forgotten])
def test_no_band_of_forgetting_is_drawn_below_nothing(figure, points, fitted):
    """The line of a KL that begins at 0 leads below it, and so does its interval."""
    least = points.loc[points["in_fit"], "kl_base_tuned"].min()
    small = points.assign(kl_base_tuned=(points["kl_base_tuned"] - least).abs())
    used = small[small["in_fit"]]
    law = laws.fit_law(laws.LINE, used, "kl_base_tuned", huber=math.inf)
    joint = laws.fit_law(laws.MULTIPLICATIVE, used, "kl_base_tuned")
    both = replace(fitted, lines={"kl_base_tuned": law}, joint=fitted.joint | {"kl_base_tuned": joint})
    assert law.predict(target_nll=used["target_nll"].max()).interval(0.9)[0] < 0
    spec = figures.specification(figure(small, both))
    for kind in ("line", "area"):
        assert (
            min(row[name] for row in values(spec, kind) for name in ("kl_base_tuned", "low", "high") if name in row)
            >= 0
        )


def test_the_tooltip_says_the_value_with_its_error(points, fitted):
    drawn = values(figures.specification(line(points, fitted)), "point")
    row = points.iloc[0]
    mark = next(mark for mark in drawn if (mark["run"], mark["steps"]) == (row["run"], row["steps"]))
    assert mark["kl_base_tuned_text"] == f"{row['kl_base_tuned']:.4f} ± 0.0010"


@EVERY
def test_a_figure_is_valid_vega_lite(figure, x, y, points, fitted):
    figure(points, fitted).to_dict(validate=True)


def test_one_run_has_curves_but_no_band():
    one = study(np.random.default_rng(0), ranks=(8,), seeds=(0,))
    for figure in (line, learned):
        spec = figures.specification(figure(laws.points(one), laws.fit(one)))
        assert [layer["mark"]["type"] for layer in spec["layer"]] == ["line", "point"]


@EVERY
def test_axes_name_their_quantity_and_unit(figure, x, y, points, fitted):
    encoding = figures.specification(figure(points, fitted))["layer"][-1]["encoding"]
    assert encoding["y"]["title"].endswith("(nats per token)")
    assert encoding["x"]["title"] in {"Update steps", "Target loss (nats per token)"}


@EVERY
def test_the_page_takes_colours_from_its_style_sheet_and_leaves_data_alone(figure, x, y, points, fitted):
    hostile = points.assign(run=legends.LIGHT["ink"])
    chart = figure(hostile, fitted)
    drawn, paged = figures.specification(chart), figures.page(chart)
    assert paged["datasets"] == drawn["datasets"]
    text = json.dumps({key: part for key, part in paged.items() if key != "datasets"}, allow_nan=False)
    assert not any(colour in text for colour in legends.LIGHT.values())
    assert "var(--ink)" in text
    assert "title" not in paged
    assert figures.title(chart) == drawn["title"]


@pytest.mark.parametrize(("colours", "background"), [(legends.LIGHT, "#fbfbf9"), (legends.DARK, "#121615")])
def test_every_mark_and_word_stands_out_from_its_background(colours, background):
    assert legends.LIGHT.keys() == legends.DARK.keys()
    for name, colour in colours.items():
        enough = {"ink": 7, "muted": 4.5, "rule": 1}.get(name, 3)
        assert contrast(colour, background) > enough, name


def contrast(colour, background):
    """The ratio of WCAG 2.1, from the definition."""
    lights = []
    for hexed in (colour, background):
        parts = [int(hexed[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_a_value_that_is_not_a_number_is_absent_rather_than_zero(points):
    holed = points.copy()
    holed.loc[holed.index[0], "kl_base_tuned"] = math.nan
    holed.loc[holed.index[1], "kl_base_tuned_stderr"] = math.inf
    drawn = values(figures.specification(line(holed, None)), "point")
    assert sum(row["kl_base_tuned"] is None for row in drawn) == 1
    json.dumps(drawn, allow_nan=False)


@EVERY
def test_a_figure_draws_without_a_browser(figure, x, y, points, fitted):
    chart = figure(points, fitted)
    drawn = ElementTree.fromstring(figures.svg(chart))  # noqa: S314  our own drawing
    marks = [
        mark
        for group in drawn.iter("{http://www.w3.org/2000/svg}g")
        if group.get("class", "").startswith("mark-symbol role-mark")
        for mark in group
    ]
    assert len(marks) == len(points)
    small = figures.png(chart, scale=1.0)
    assert small.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(small[16:20]) in range(figures.WIDTH - 10, figures.WIDTH + 40)


def test_the_same_points_make_the_same_figure(points, fitted):
    once, again = (figures.page(forgotten(points.sample(frac=1, random_state=i), fitted)) for i in (0, 1))
    assert json.dumps(once) == json.dumps(again)


def test_more_marks_than_altair_takes_by_itself(points):
    many = points.loc[points.index.repeat(60)].reset_index(drop=True)
    assert len(many) > 5000
    assert len(values(figures.specification(line(many, None)), "point")) == len(many)


def test_no_points_or_other_columns_are_refused(points):
    with pytest.raises(DataError, match="got 0 points"):
        line(points.iloc[:0], None)
    with pytest.raises(DataError, match="kl_base_tuned_stderr"):
        line(points.drop(columns="kl_base_tuned_stderr"), None)
