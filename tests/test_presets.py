"""The published laws against the paper's equations written out, and what a plan by them says and does not."""

import json
import math

import numpy as np
import pytest

from holdfast.errors import ConfigError
from holdfast.planning import plan
from holdfast.presets import (
    BASE_PARAMS,
    PARAMS_PER_RANK,
    PUBLISHED,
    Constants,
    forgetting_constants,
    in_paper_form,
    published,
)

OPENORCA, NEWS = PUBLISHED
RANKS = np.array([8, 16, 32, 64, 128, 256])


def openorca(p, n):
    """Equations 5 and 6 with table 1, written out."""
    learned = 0.0020 * ((0.0007e7 / p) ** 0.0424 + (72.9186 / n) ** 0.1219) ** 7.6885 + 0.6126
    inner = 0.0020 * ((0.0388e7 / p) ** 0.0351 + (23.6418 / n) ** 0.1468) ** 7.6885 + 0.6126
    return learned, -1.7334 * inner + 2.0481


def news(p, n):
    learned = 0.0028 * ((0.0022e7 / p) ** 0.0383 + (54.8678 / n) ** 0.1161) ** 7.5996 + 1.9253
    inner = 0.0028 * ((0.0011e7 / p) ** 0.0458 + (97.8466 / n) ** 0.1044) ** 7.5996 + 1.9253
    return learned, -1.0615 * inner + 3.1285


EACH = pytest.mark.parametrize(("name", "literal"), [(OPENORCA, openorca), (NEWS, news)])


def predicted(laws, p, n):
    return tuple(
        laws.joint[quantity].predict(trainable_params=p, steps=n) for quantity in ("target_nll", "hard_cross_entropy")
    )


@EACH
def test_the_presets_are_the_papers_equations_on_its_whole_grid_and_beyond(name, literal):
    p, n = np.meshgrid(RANKS * 2_498_560.0, np.arange(10, 1041, 5), indexing="ij")
    for found, expected in zip(predicted(published(name), p, n), literal(p, n), strict=True):
        assert np.abs(found.mean - expected).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "r", "steps", "learned", "forgotten"),
    [
        (OPENORCA, 8, 260, 0.677, 0.873),
        (OPENORCA, 64, 260, 0.660, 0.903),
        (OPENORCA, 256, 260, 0.652, 0.918),
        (OPENORCA, 8, 50, 0.768, 0.711),
        (NEWS, 8, 260, 2.027, 0.973),
        (NEWS, 64, 260, 2.002, 1.003),
        (NEWS, 256, 260, 1.989, 1.017),
        (NEWS, 8, 50, 2.151, 0.845),
    ],
)
def test_values_read_off_the_papers_figures(name, r, steps, learned, forgotten):
    found = [prediction.mean for prediction in predicted(published(name), r * 2_498_560, steps)]
    assert found == pytest.approx([learned, forgotten], abs=0.0011)


@EACH
def test_the_line_meets_the_joint_laws(name, literal):
    laws = published(name)
    p, n = np.meshgrid(RANKS * 2_498_560.0, np.arange(50, 261), indexing="ij")
    learned, forgotten = predicted(laws, p, n)
    line = laws.lines["hard_cross_entropy"].predict(target_nll=learned.mean)
    assert np.abs(line.mean - forgotten.mean).max() < 0.0075
    assert np.sqrt(np.mean((line.mean - forgotten.mean) ** 2)) < 0.0035
    ends = laws.lines["hard_cross_entropy"].domain["target_nll"]
    assert ends == pytest.approx((np.min(learned.mean), np.max(learned.mean)), rel=1e-12)


def test_the_conversion_is_exact_for_any_constants_and_keeps_what_the_constants_cannot_tell():
    rng = np.random.default_rng(0)
    for _ in range(50):
        alpha, beta, rho = rng.uniform(0.02, 0.5), rng.uniform(0.05, 0.5), rng.uniform(1, 12)
        drawn = Constants(
            a=10 ** rng.uniform(3, 7), alpha=alpha, b=rng.uniform(10, 200), beta=beta, c=rng.normal(), rho=rho,
            s=rng.normal(),
        )  # fmt: skip
        p, n = 10 ** rng.uniform(6, 9, 20), rng.uniform(20, 2000, 20)
        literal = drawn.c * ((drawn.a / p) ** alpha + (drawn.b / n) ** beta) ** rho + drawn.s
        found = in_paper_form(drawn)
        w, kappa = found["w"], found["curvature"]
        by_p, by_n = (p / 1.13e8) ** (-kappa * found["x"] / w), (n / 114) ** (-kappa * found["y"] / (1 - w))
        assert found["asymptote"] + found["K"] * (w * by_p + (1 - w) * by_n) ** (1 / kappa) == pytest.approx(literal)
        k = rng.uniform(0.5, 2)
        same = Constants(
            a=drawn.a * k ** (1 / alpha), alpha=alpha, b=drawn.b * k ** (1 / beta), beta=beta, c=drawn.c * k**-rho,
            rho=rho, s=drawn.s,
        )  # fmt: skip
        assert in_paper_form(same) == pytest.approx(found)


def test_forgetting_is_the_line_through_a_loss_of_its_own():
    learned = Constants(a=1.0, alpha=0.1, b=2.0, beta=0.2, c=0.3, rho=3.0, s=0.5)
    found = forgetting_constants(learned, a=5.0, alpha=0.4, b=6.0, beta=0.6, slope=1.7, intercept=2.0)
    inner = 0.3 * ((5.0 / 70) ** 0.4 + (6.0 / 80) ** 0.6) ** 3.0 + 0.5
    value = found.c * ((found.a / 70) ** found.alpha + (found.b / 80) ** found.beta) ** found.rho + found.s
    assert value == pytest.approx(2.0 - 1.7 * inner)


def test_sizes_are_those_of_the_llama_it_was_fitted_on():
    d, wide, layers, words = 4096, 11008, 32, 32000
    assert layers * (4 * (d + d) + 3 * (d + wide)) == PARAMS_PER_RANK
    everything = 2 * words * d + layers * (4 * d * d + 3 * d * wide + 2 * d) + d
    assert everything == 6_738_415_616
    assert everything - words * d == BASE_PARAMS


@EACH
def test_what_was_not_published_is_unknown_and_not_a_number(name, literal):
    laws = published(name)
    for fitted in (*laws.joint.values(), *laws.lines.values()):
        assert all(math.isnan(estimate.stderr) for estimate in fitted.parameters.values())
        assert np.isnan(fitted.covariance).all()
        assert (fitted.n_points, fitted.n_runs) == (0, 6)
    prediction = predicted(laws, 20e6, 100)[1]
    assert math.isnan(prediction.stderr)
    assert math.isnan(prediction.scatter)
    assert np.isnan(prediction.interval()).all()
    assert math.isnan(prediction.probability_above(0.9))
    text = json.dumps(laws.to_dict(), allow_nan=False)
    assert json.loads(text)["joint"]["hard_cross_entropy"]["rmse"] is None


def test_r2_is_the_papers_and_in_sample():
    r2 = {
        name: (published(name).lines["hard_cross_entropy"].r2, published(name).joint["hard_cross_entropy"].r2)
        for name in PUBLISHED
    }
    assert r2 == {OPENORCA: (0.9450, 0.9598), NEWS: (0.9736, 0.9769)}


def test_outside_the_papers_grid_is_extrapolation():
    law = published(OPENORCA).joint["hard_cross_entropy"]
    for params, steps, outside in ((8, 50, False), (256, 260, False), (4, 100, True), (64, 49, True), (64, 300, True)):
        assert law.predict(trainable_params=params * PARAMS_PER_RANK, steps=steps).extrapolates == outside


def test_a_plan_without_any_run():
    found = plan(published(OPENORCA), trainable_params=20e6, max_forgetting=0.9)
    assert found.feasible
    assert found.measure == "hard_cross_entropy"
    assert (found.r, found.trainable_params, found.steps) == (8, 20_000_000, 260)
    assert found.forgetting.mean == pytest.approx(openorca(20e6, 260)[1], abs=1e-9)
    assert found.target_nll.mean == pytest.approx(openorca(20e6, 260)[0], abs=1e-9)
    assert math.isnan(found.probability_over_budget)
    assert found.cost.tokens == 260 * 16384
    assert found.cost.flop == found.cost.tokens * (4 * BASE_PARAMS + 6 * 20e6)
    assert found.reasons[0] == (
        "Each 0.1 nat of improvement on OpenOrca costs 0.173 nats of hard forgetting loss on WikiText-103 "
        "(no interval), whatever the rank from 8 to 256."
    )
    assert "hard forgetting loss of 0.873 nats per token on WikiText-103" in found.reasons[1]
    told = "\n".join(found.warnings)
    for words in (
        "Llama-2-7B-chat learning OpenOrca", "rank-stabilised LoRA", "Adafactor", "learning rate and schedule were not",
        "hard cross-entropy on the WikiText-103", "never 0", "no standard errors",
        "the budget is held by the mean", "arXiv 2401.05605",
    ):  # fmt: skip
        assert words in told
    assert "nan" not in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_budget_below_the_papers_first_steps_is_refused_by_how_much():
    """Fewer steps would take the law below what the untuned base has of this loss, which nobody published."""
    found = plan(published(OPENORCA), trainable_params=20e6, max_forgetting=0.5)
    gap = openorca(20e6, 50)[1] - 0.5
    assert not found.feasible
    assert found.steps == 50
    assert f"misses the budget by {gap:.2g} nats." in found.reasons[1]
    assert any("fewer than 50 steps are not considered" in warning for warning in found.warnings)


def test_steps_for_a_budget_are_the_most_that_keep_it():
    p = 20e6
    for budget in (0.75, 0.8, 0.85):
        found = plan(published(OPENORCA), trainable_params=p, max_forgetting=budget)
        most = max(steps for steps in range(50, 261) if openorca(p, steps)[1] <= budget)
        assert found.steps == most


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"got law 'llama', expected one of kalajdzievski2024-openorca, kala"):
        published("llama")
