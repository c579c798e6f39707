"""What a study's runs are called in its legends, and that its figures call them alike."""

import json

import numpy as np
import pandas as pd
import pytest

from holdfast.laws import fit
from holdfast.study_figures import charts, with_series
from simulated import study

PLAIN = study(np.random.default_rng(0), ranks=(8, 16), seeds=(0, 1))


def of_method(method, *, name, r=np.nan, layers=np.nan, **settings):
    one = PLAIN[PLAIN["run"] == PLAIN["run"].iloc[0]]
    adapter = json.dumps({"target_modules": "all-linear", **settings})
    return one.assign(run=name, method=method, r=r, layers=layers, adapter=adapter)


MIXED = pd.concat(
    [
        PLAIN.assign(adapter='{"target_modules":"all-linear"}'),
        of_method("lora", name="a" * 12, r=16, target_modules=["q_proj", "v_proj"]),
        of_method("ia3", name="b" * 12),
        of_method("top-layers", name="c" * 12, layers=3),
        of_method("full", name="d" * 12),
        of_method("peft DORA", name="e" * 12, r=8),
        of_method("lora", name="f" * 12, r=4).assign(state="failed"),
    ],
    ignore_index=True,
)
NAMES = ["8", "16", "full", "ia3", "lora 16, q v", "peft DORA 8", "top-layers 3"]


def test_ranks_of_the_usual_method_stand_alone_and_others_say_what_sets_them_apart():
    assert list(with_series(PLAIN)["series"].cat.categories) == ["8", "16"]
    named = with_series(MIXED)
    assert list(named["series"].cat.categories) == NAMES
    assert named.loc[named["run"] == "c" * 12, "series"].unique() == ["top-layers 3"]
    assert named.loc[named["state"] == "failed", "series"].isna().all()


def test_a_method_without_ranks_that_most_runs_have_is_called_by_its_name():
    most = pd.concat([of_method("full", name=letter * 12) for letter in "abc"], ignore_index=True)
    assert list(with_series(most)["series"].cat.categories) == ["full"]


def test_the_fit_drawn_is_that_of_the_laws_own_runs_and_marks_of_other_ways_are_hollow():
    laws = fit(MIXED)
    assert set(laws.runs) == set(PLAIN["run"])
    drawn = {name: json.loads(chart.to_json()) for name, chart in charts(MIXED, laws, None, None).items()}
    for figure in ("loss-against-forgetting", "trajectories-forgetting"):
        rows = [row for held in drawn[figure]["datasets"].values() for row in held]
        solid = {row["run"] for row in rows if row.get("in_fit")}
        assert solid == set(PLAIN["run"])
        assert {row["run"] for row in rows if "in_fit" in row} > solid
        curves = {row["series"] for row in rows if "low" in row and "series" in row}
        assert curves == ({"8", "16"} if figure.startswith("traj") else set())
    panels = [name for name in drawn if name.startswith("loss-against-forgetting-")]
    own = [
        {row["run"] for held in drawn[name]["datasets"].values() for row in held if row.get("in_fit")}
        for name in panels
    ]
    assert {"b" * 12} in own
    assert set(PLAIN["run"]) in own


@pytest.mark.parametrize("figure", ["loss-against-forgetting", "trajectories-target"])
def test_every_run_is_drawn_in_the_colour_its_series_has_in_every_figure(figure):
    drawn = {name: json.loads(chart.to_json()) for name, chart in charts(MIXED, None, None, None).items()}
    [marks] = [layer for layer in drawn[figure]["layer"] if "shape" in layer["encoding"]]
    assert marks["encoding"]["fill"]["scale"]["domain"] == NAMES
    assert marks["encoding"]["fill"]["legend"]["values"] == NAMES
    assert len(set(marks["encoding"]["fill"]["scale"]["range"])) == len(NAMES)
    rows = drawn[figure]["datasets"][drawn[figure].get("data", marks.get("data"))["name"]]
    assert {row["series"] for row in rows} == set(NAMES)
