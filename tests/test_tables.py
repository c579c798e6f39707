"""Laws of a whole table: a study examined, and anyone's points fitted."""

import json

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast.errors import ConfigError, FitError
from holdfast.laws import Laws, fit
from holdfast.tables import examine, fit_table


@pytest.fixture(scope="module")
def power(tmp_path_factory):
    x = np.geomspace(1, 100, 30)
    y = 2 + 3 * x**-0.5 + 0.001 * np.random.default_rng(0).normal(size=30)
    path = tmp_path_factory.mktemp("points") / "power.csv"
    pd.DataFrame({"x1": x, "x2": x[::-1] ** 0.3, "x3": x, "loss": y, "run": np.arange(30) // 3}).to_csv(path)
    return path


def test_one_input_is_a_power_law(power):
    (found,) = fit_table(power, x=["x1"], y="loss", group="run")
    assert found.law == "power"
    assert found.n_runs == 10
    for name, truth in (("asymptote", 2), ("y", 0.5)):
        low, high = found.parameters[name].interval(0.99)
        assert low <= truth <= high
    assert found.predict(x1=4.0).mean == pytest.approx(3.5, abs=0.003)
    with pytest.raises(ConfigError, match=r"got inputs \['x'\], expected \['x1'\]"):
        found.predict(x=4.0)


def test_two_inputs_have_every_joint_law(power):
    assert [found.law for found in fit_table(power, x=["x1", "x2"], y="loss")] == [
        "multiplicative",
        "additive",
        "paper",
    ]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"x": ["x1", "x2", "x3"]}, "got 3 input columns, expected one or two"),
        ({"x": ["x1"], "laws": ["additive"]}, "got law 'additive' for 1 input columns, expected one of"),
        ({"x": ["x1"], "laws": ["nope"]}, "got law 'nope'"),
        ({"x": ["x1"], "log_huber": 0.0}, "got 0.0 as the limit"),
    ],
)
def test_what_cannot_be_fitted_is_refused(power, asked, words):
    with pytest.raises(ConfigError, match=words):
        fit_table(power, y="loss", **asked)


def test_logarithms_need_positive_values(tmp_path):
    path = tmp_path / "p.csv"
    pd.DataFrame({"x": np.arange(1.0, 12), "y": np.linspace(-1, 1, 11)}).to_csv(path)
    with pytest.raises(FitError, match=r"got y -1\.0, the power law cannot use it"):
        fit_table(path, x=["x"], y="y", log_huber=0.001)


@pytest.mark.parametrize("value", [2.0, 0.1])
def test_a_line_through_a_constant_is_flat(tmp_path, value):
    """0.1 three times over has a mean that is not 0.1: what is left is rounding, and of nothing to explain."""
    pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "y": [value] * 4}).to_csv(tmp_path / "k.csv")
    (found,) = fit_table(tmp_path / "k.csv", x=["x"], y="y", laws=["line"])
    assert found.parameters["slope"].value == pytest.approx(0, abs=1e-12)
    assert not any("price" in warning for warning in found.warnings)


def test_methods_without_a_rank_are_no_repeats_of_one():
    lora = simulated.study(np.random.default_rng(0), seeds=(0,))
    other = simulated.study(np.random.default_rng(1), seeds=(1, 2), ranks=(8,)).assign(method="ia3", r=np.nan)
    alone, mixed = (
        next(test for test in examine(table).tests if test.by == "r") for table in (lora, pd.concat([lora, other]))
    )
    assert mixed == alone


def test_an_examined_study_is_its_laws_with_their_trials():
    table = simulated.study(np.random.default_rng(0), seeds=(0, 1))
    found = examine(table)
    assert repr(found.laws) == repr(fit(table))
    assert {test.by for test in found.tests} == {"r", "learning_rate", "method"}
    by_rank = next(test for test in found.tests if test.by == "r")
    assert by_rank.testable
    assert by_rank.n_runs == 12
    held = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert repr(Laws.from_dict(held["laws"])) == repr(found.laws)
    assert {row["split"] for row in held["validation"]["held_out"]} == {"largest rank (r = 256)", "last 30 % of steps"}
    assert {quantity: len(fits) for quantity, fits in held["forms"]["fits"].items()} == {
        "target_nll": 5,
        "kl_base_tuned": 7,
    }
