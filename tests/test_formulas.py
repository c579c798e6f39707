"""Every law we ship: its derivative, and parameters that can be told apart."""

import numpy as np
import pytest

from holdfast.formulas import LAWS, MULTIPLICATIVE, PAPER, SATURATING

INPUTS = np.exp(np.random.default_rng(0).normal(0, 0.8, (60, 2)))
TYPICAL = {"x": 0.13, "y": 0.53, "w": 0.3, "curvature": 0.13, "bend": 2.0}


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


def test_the_papers_law_is_the_product_without_curvature_and_a_sum_at_one():
    p, n = INPUTS.T
    straight = PAPER.columns(INPUTS, np.array([0.13, 0.53, 0.3, 1e-3]))[0][:, 1]
    np.testing.assert_allclose(straight, p**-0.13 * n**-0.53, rtol=5e-3)
    added = PAPER.columns(INPUTS, np.array([0.13, 0.53, 0.3, 1.0]))[0][:, 1]
    np.testing.assert_allclose(added, 0.3 * p ** (-0.13 / 0.3) + 0.7 * n ** (-0.53 / 0.7), rtol=1e-12)
    nowhere = PAPER.columns(np.array([[1e-6, 1e6], [1e6, 1e-6]]), np.array([3.0, 3.0, 0.02, 1.0]))
    assert all(np.isfinite(part).all() for part in nowhere)


def test_the_papers_exponents_are_those_at_the_reference():
    """By how the gap changes there, whatever its weight and curvature."""
    for w, curvature in ((0.2, 0.01), (0.5, 0.3), (0.9, 1.0)):
        at = np.array([[1.0, 1.0], [1.001, 1.0], [1.0, 1.001]])
        gap = np.log(PAPER.columns(at, np.array([0.13, 0.53, w, curvature]))[0][:, 1])
        np.testing.assert_allclose((gap[0] - gap[1:]) / np.log(1.001), [0.13, 0.53], rtol=3e-3)


def test_a_saturating_law_without_a_bend_is_the_line():
    d = np.linspace(-0.3, 0.3, 7)[:, None]
    np.testing.assert_allclose(SATURATING.columns(d, np.zeros(1))[0][:, 0], -d[:, 0])
    bent = SATURATING.columns(d, np.array([4.0]))[0] @ [1.5, 0.6]
    np.testing.assert_allclose(bent, 0.6 - 1.5 * (np.exp(4 * d[:, 0]) - 1) / 4)
    assert np.all(np.diff(bent, 2) < 0)  # forgetting, rising to the left, levels off there
