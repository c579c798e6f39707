"""Every choice and every forecast is in its figure with its own interval, and what is asked is drawn where it is."""

import dataclasses
import json
import math
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast import figures, legends
from holdfast.errors import DataError
from holdfast.laws import fit
from holdfast.plan_figures import HELD_OUT, frontier_figure, held_out_figure
from holdfast.planning import plan
from holdfast.presets import published

NOISY = fit(simulated.study(np.random.default_rng(0)))
PLAN = plan(NOISY, max_forgetting=0.5, target_loss=0.73)
SILENT = plan(published("kalajdzievski2024-openorca"), max_forgetting=0.9)


def forecasts(seed=0):
    """Held-out rows of two quantities and two splits; the intervals of some points are not known."""
    rng = np.random.default_rng(seed)
    rows = []
    for quantity in ("target_nll", "kl_base_tuned"):
        for split in ("largest rank (r = 64)", "last 30 % of steps"):
            for i in range(9):
                observed = 0.5 + 0.02 * i
                predicted = observed + 0.004 * rng.normal()
                half = math.nan if i == 0 else 0.006
                rows.append(
                    (quantity, split, observed, predicted, predicted - half, predicted + half, f"run{i}", 64, 10 * i)
                )
    return pd.DataFrame(rows, columns=list(HELD_OUT))


ROWS = forecasts()
EVERY = pytest.mark.parametrize(
    "chart",
    [
        frontier_figure(PLAN),
        frontier_figure(SILENT),
        frontier_figure(plan(NOISY, max_forgetting=0.01, r=16)),
        held_out_figure(ROWS, "target_nll"),
        held_out_figure(ROWS, "kl_base_tuned"),
    ],
    ids=["frontier", "published", "infeasible", "loss", "forgetting"],
)


def layers(chart):
    """(mark, encoding, data) of each layer; Altair lifts data up where all layers share them."""
    spec = figures.specification(chart)
    return [
        (layer["mark"]["type"], layer["encoding"], spec["datasets"][layer.get("data", spec.get("data"))["name"]])
        for layer in spec["layer"]
    ]


def marks(chart):
    """The data of the layer whose marks have a tooltip."""
    (found,) = [data for mark, encoding, data in layers(chart) if mark == "point" and "tooltip" in encoding]
    return found


def ringed(chart):
    (found,) = [data for mark, encoding, data in layers(chart) if mark == "point" and "tooltip" not in encoding]
    (row,) = found
    return row


def rules(chart):
    """The limits that are drawn, by axis."""
    return {
        axis: data[0]["limit"]
        for mark, encoding, data in layers(chart)
        if mark == "rule" and "limit" in data[0]
        for axis in encoding
    }


def named(chart):
    return [row["name"] for mark, _, data in layers(chart) if mark == "text" for row in data]


def test_every_choice_is_drawn_with_the_laws_own_intervals():
    drawn = {(row["r"], row["steps"]): row for row in marks(frontier_figure(PLAN))}
    assert set(drawn) == {(choice.r, choice.steps) for choice in PLAN.frontier} | {(PLAN.r, PLAN.steps)}
    bars = [data for mark, encoding, data in layers(frontier_figure(PLAN)) if mark == "rule" and "limit" not in data[0]]
    assert len(bars) == 2
    whiskers = {(row["r"], row["steps"]): row for row in bars[0]}
    assert bars[0] == bars[1]
    for choice in PLAN.frontier:
        row, bar = drawn[choice.r, choice.steps], whiskers[choice.r, choice.steps]
        assert (row["forgetting"], row["target_nll"]) == (choice.forgetting.mean, choice.target_nll.mean)
        assert (bar["forgetting_low"], bar["forgetting_high"]) == choice.forgetting.interval(0.9)
        assert (bar["target_nll_low"], bar["target_nll_high"]) == choice.target_nll.interval(0.9)


def test_the_recommended_choice_is_ringed_once_and_in_the_title():
    chart = frontier_figure(PLAN)
    row = ringed(chart)
    assert (row["r"], row["steps"], row["forgetting"]) == (PLAN.r, PLAN.steps, PLAN.forgetting.mean)
    assert figures.title(chart).endswith(f"ringed, recommended: r = {PLAN.r}, {PLAN.steps} steps")
    drawn = [(row["r"], row["steps"]) for row in marks(chart)]
    assert drawn.count((PLAN.r, PLAN.steps)) == 1


def test_a_budget_that_cannot_be_kept_rings_the_nearest_miss():
    missed = plan(NOISY, max_forgetting=0.45, target_loss=0.66)
    chart = frontier_figure(missed)
    assert not missed.feasible
    assert "ringed, the nearest miss: r = " in figures.title(chart)
    assert (ringed(chart)["r"], ringed(chart)["steps"]) == (missed.r, missed.steps)


def test_what_was_asked_is_a_line_on_the_axis_it_is_of():
    assert rules(frontier_figure(PLAN)) == {"y": 0.5, "x": 0.73}
    assert named(frontier_figure(PLAN)) == ["budget 0.5", "loss 0.73"]
    assert rules(frontier_figure(plan(NOISY, target_loss=0.7))) == {"x": 0.7}
    far = frontier_figure(plan(NOISY, max_forgetting=5.0, target_loss=0.1))
    assert rules(far) == {}
    assert named(far) == ["loss 0.1 lies far to the left", "budget 5 lies far above"]
    for mark, encoding, data in layers(far):
        if mark != "text":
            ends = [row[axis["field"]] for axis in (encoding["x"], encoding["y"]) for row in data]
            assert max(ends) < 1, "a far limit may not stretch an axis"


def test_laws_without_intervals_have_no_whiskers():
    chart = frontier_figure(SILENT)
    assert not [data for mark, _, data in layers(chart) if mark == "rule" and "limit" not in data[0]]
    assert all("no interval" in row["forgetting_said"] for row in marks(chart))
    assert "Hard forgetting loss" in json.dumps(figures.specification(chart))


def test_hovering_tells_all_of_a_choice():
    row = next(row for row in marks(frontier_figure(PLAN)) if (row["r"], row["steps"]) == (PLAN.r, PLAN.steps))
    assert row["params"] == f"{PLAN.trainable_params:,}"
    assert row["cost"] == str(PLAN.cost)
    low, high = PLAN.target_nll.interval(0.9)
    assert row["target_nll_said"] == f"{PLAN.target_nll.mean:.3f} ({low:.3f} to {high:.3f})"
    (tooltip,) = [e["tooltip"] for m, e, _ in layers(frontier_figure(PLAN)) if m == "point" and "tooltip" in e]
    assert {part["field"] for part in tooltip} <= set(row)


def test_an_interval_far_wider_than_the_frontier_is_cut():
    loss = NOISY.joint["target_nll"]
    wide = dataclasses.replace(loss, covariance=tuple(tuple(1e4 * v for v in row) for row in loss.covariance))
    few = plan(dataclasses.replace(NOISY, joint=NOISY.joint | {"target_nll": wide}), max_forgetting=0.5)
    values = [row["target_nll"] for row in marks(frontier_figure(few))]
    room = 0.5 * (max(values) - min(values))
    bars = [data for mark, _, data in layers(frontier_figure(few)) if mark == "rule" and "limit" not in data[0]]
    assert any(choice.target_nll.interval(0.9)[1] > max(values) + room for choice in few.frontier)
    assert all(row["target_nll_high"] <= max(values) + room for row in bars[1])


def test_every_forecast_is_drawn_against_what_was_measured():
    for quantity in ("target_nll", "kl_base_tuned"):
        chart, asked = held_out_figure(ROWS, quantity), ROWS[ROWS["quantity"] == quantity]
        columns = ["split", "run", "steps", "observed", "predicted"]
        found = sorted(tuple(row[name] for name in columns) for row in marks(chart))
        assert found == sorted(asked[columns].itertuples(index=False, name=None))
        (bars,) = [data for mark, _, data in layers(chart) if mark == "rule"]
        known = asked[np.isfinite(asked["low"])]
        assert sorted((bar["from"], bar["to"]) for bar in bars) == sorted(zip(known["low"], known["high"], strict=True))


def test_the_title_counts_the_intervals_that_hold_what_was_measured():
    of_it = ROWS[(ROWS["quantity"] == "target_nll") & np.isfinite(ROWS["low"])]
    inside = int(((of_it["low"] <= of_it["observed"]) & (of_it["observed"] <= of_it["high"])).sum())
    assert 0 < inside < len(of_it) == 16
    assert figures.title(held_out_figure(ROWS, "target_nll")).endswith(f"; {inside} of 16 inside their interval")
    bare = held_out_figure(ROWS.assign(low=math.nan, high=math.nan), "target_nll")
    assert figures.title(bare) == "Target loss: held out, then predicted"
    assert [mark for mark, _, _ in layers(bare)] == ["line", "point"]


def test_both_axes_run_alike_so_that_what_is_right_lies_on_one_line():
    chart = held_out_figure(ROWS, "kl_base_tuned")
    scales = [e[axis]["scale"] for _, e, _ in layers(chart) for axis in "xy" if "scale" in e.get(axis, {})]
    assert len(scales) >= 2
    assert all(scale == scales[0] for scale in scales)
    (line,) = [data for mark, _, data in layers(chart) if mark == "line"]
    assert all(end["observed"] == end["predicted"] for end in line)
    low, high = line[0]["observed"], line[1]["observed"]
    assert all(low < row[name] < high for row in marks(chart) for name in ("observed", "predicted"))


def test_one_wild_interval_is_cut_and_still_counted_whole():
    wild = ROWS[ROWS["quantity"] == "target_nll"].assign(low=-50.0, high=50.0)
    chart = held_out_figure(wild, "target_nll")
    (bars,) = [data for mark, _, data in layers(chart) if mark == "rule"]
    assert all(bar["from"] > 0 and bar["to"] < 1 for bar in bars)
    assert figures.title(chart).endswith("18 of 18 inside their interval")


def test_a_name_that_would_reorder_text_is_shown_by_its_number():
    hostile = ROWS.assign(split="a\u202eb", run="\x1b[2J")
    drawn = marks(held_out_figure(hostile, "target_nll"))
    assert {(row["split"], row["run"]) for row in drawn} == {("a\\u202eb", "\\u001b[2J")}


@EVERY
def test_a_figure_is_valid_and_draws_without_a_browser(chart):
    chart.to_dict(validate=True)
    drawn = ElementTree.fromstring(figures.svg(chart))  # noqa: S314  our own drawing
    groups = [
        len(group)
        for group in drawn.iter("{http://www.w3.org/2000/svg}g")
        if group.get("class", "").startswith("mark-symbol role-mark")
    ]
    assert max(groups) == len(marks(chart))
    assert figures.png(chart, scale=1.0).startswith(b"\x89PNG\r\n")


@EVERY
def test_the_page_takes_colours_from_its_style_sheet(chart):
    paged = figures.page(chart)
    text = json.dumps({key: part for key, part in paged.items() if key != "datasets"}, allow_nan=False)
    assert not any(colour in text for colour in (*legends.LIGHT.values(), legends.CAUTION))
    json.dumps(paged["datasets"], allow_nan=False)


@EVERY
def test_axes_name_their_quantity_and_unit(chart):
    titles = {
        encoding[axis]["title"]
        for _, encoding, _ in layers(chart)
        for axis in "xy"
        if "title" in encoding.get(axis, {})
    }
    assert titles
    assert all(title.endswith("(nats per token)") for title in titles)


def test_the_same_rows_in_another_order_make_the_same_figure():
    once, again = (figures.page(held_out_figure(ROWS.sample(frac=1, random_state=i), "target_nll")) for i in (0, 1))
    assert json.dumps(once) == json.dumps(again)


def test_nothing_to_draw_is_refused():
    with pytest.raises(DataError, match="got 0 rows of agreement"):
        held_out_figure(ROWS, "agreement")
    with pytest.raises(DataError, match="lacking columns \\['low'\\]"):
        held_out_figure(ROWS.drop(columns="low"), "target_nll")
