"""Every law we ship: its derivative, and parameters that can be told apart."""

import numpy as np
import pytest

from holdfast.formulas import LAWS, MULTIPLICATIVE

INPUTS = np.exp(np.random.default_rng(0).normal(0, 0.8, (60, 2)))
TYPICAL = {"x": 0.13, "y": 0.53}


def constants(law):
    return np.array([TYPICAL[name] for name in law.nonlinear]), np.array([0.6, 0.08, 0.1][: len(law.linear)])


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_the_derivative_is_that_of_the_formula(law):
    inputs, (nonlinear, _) = INPUTS[:, : len(law.inputs)], constants(law)
    columns, slopes = law.columns(inputs, nonlinear)
    assert columns.shape == (60, len(law.linear))
    assert slopes.shape == (len(nonlinear), 60, len(law.linear))
    for i in range(len(nonlinear)):
        nudge = 1e-6 * np.eye(len(nonlinear))[i]
        numeric = (law.columns(inputs, nonlinear + nudge)[0] - law.columns(inputs, nonlinear - nudge)[0]) / 2e-6
        np.testing.assert_allclose(slopes[i], numeric, atol=1e-8)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_a_stack_of_candidates_is_each_alone(law):
    inputs, several = INPUTS[:, : len(law.inputs)], np.random.default_rng(1).uniform(0.1, 1, (5, len(law.nonlinear)))
    columns, slopes = law.columns(inputs, several)
    for i, one in enumerate(several):
        np.testing.assert_allclose(columns[i], law.columns(inputs, one)[0], rtol=1e-14)
        np.testing.assert_allclose(slopes[i], law.columns(inputs, one)[1], rtol=1e-14)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_the_jacobian_has_full_rank(law):
    nonlinear, linear = constants(law)
    columns, slopes = law.columns(INPUTS[:, : len(law.inputs)], nonlinear)
    jacobian = np.concatenate([columns, (slopes @ linear).T], axis=1)
    singular = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), compute_uv=False)
    assert singular[-1] > 1e-3 * singular[0]
    assert law.parameters == law.linear + law.nonlinear


def test_the_multiplicative_law_is_its_formula():
    inputs = np.array([[2.0, 3.0]])
    columns, _ = MULTIPLICATIVE.columns(inputs, np.array([0.5, 0.25]))
    assert columns @ [0.6, 0.08] == pytest.approx(0.6 + 0.08 * 2**-0.5 * 3**-0.25)
