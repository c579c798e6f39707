"""Every share is in its figure with its own interval, and the base is a dashed line."""

import pytest

import probed
from holdfast import figures
from holdfast.probe_figures import along_training, by_model, quantities

REPORT = probed.trajectory()


def of(task):
    return [(model, result) for model, result in REPORT.rows() if result.task == task]


def data(chart, mark):
    spec = figures.specification(chart)
    return [
        spec["datasets"][layer.get("data", spec.get("data"))["name"]] for layer in spec["layer"]
        if layer["mark"]["type"] == mark
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["arc_challenge", "advbench"])
def test_along_training_holds_every_checkpoint_and_share(task):
    rows = of(task)
    (marks,) = data(along_training(rows), "point")
    drawn = {(row["step"], row["quantity"]): row for row in marks}
    expected = {(model.step, name): share for model, result in rows for name, share in quantities(result).items()}
    assert drawn.keys() == expected.keys()
    for key, share in expected.items():
        low, high = share.interval()
        assert (drawn[key]["value"], drawn[key]["low"], drawn[key]["high"]) == pytest.approx(
            (100 * share.value, 100 * low, 100 * high)
        )
    base = next(rows for rows in data(along_training(rows), "rule") if "base" in rows[0])
    assert base[0]["base"] == pytest.approx(100 * (0.5 if task == "arc_challenge" else 0.55), abs=1)


def test_models_stand_in_the_order_given_under_the_names_given():
    rows = of("arc_challenge")
    names = {model.name: f"model {model.step}" for model, _ in rows}
    (marks,) = data(by_model(rows[::-1], names), "point")
    assert list(dict.fromkeys(row["model"] for row in marks)) == [f"model {step}" for step in (40, 30, 20, 10)]


def test_every_kind_of_result_can_be_drawn():
    for model, result in probed.whole().rows():
        assert figures.svg(by_model([(model, result)], {model.name: "m"})).startswith("<svg")
