"""Intervals of predictions hold the truth as often as they say, in studies whose truth is known: prints the table."""

import os

import numpy as np
import pytest

import simulated
from holdfast.laws import MULTIPLICATIVE, fit_law, points

RANKS = simulated.RANKS
PLACES = {
    "inside": [(r, steps) for r in RANKS for steps in (51, 80, 110, 150, 200, 260)],
    "steps": [(r, 520) for r in RANKS],
    "parameters": [(r, steps) for r in (4, 512) for steps in (80, 260)],
}


@pytest.mark.parametrize(("ranks", "seeds"), [(RANKS, 1), ((8, 32, 128), 2), (RANKS, 2), (RANKS, 3)])
def test_the_interval_of_a_prediction_covers(ranks, seeds):
    """Nominal 90 % intervals in simulated studies, inside what was run and two-fold outside; two standard errors."""
    rng, studies = np.random.default_rng(1), int(os.environ.get("STUDIES", "150"))
    held, runs_held = {where: [] for where in PLACES}, []
    for _ in range(studies):
        fitted = fit_law(MULTIPLICATIVE, points(simulated.study(rng, ranks=ranks, seeds=range(seeds))), "kl_base_tuned")
        for where, at in PLACES.items():
            r, steps = np.transpose(at)
            inputs = {"trainable_params": r * simulated.PARAMS_PER_RANK, "steps": steps}
            exact, prediction = simulated.truth("kl_base_tuned", **inputs), fitted.predict(**inputs)
            low, high = prediction.interval(0.9)
            held[where].append(np.mean((low <= exact) & (exact <= high)))
            if where == "inside":
                run = exact + 0.005 * rng.normal(size=len(exact))
                low, high = prediction.run_quantile(0.05), prediction.run_quantile(0.95)
                runs_held.append(np.mean((low <= run) & (run <= high)))
    share = {where: np.mean(found) for where, found in held.items()}
    told = "; ".join(f"{where} {covered:.1%}" for where, covered in share.items())
    print(f"{len(ranks) * seeds} runs, {len(ranks)} ranks: intervals hold {told}; new runs {np.mean(runs_held):.1%}")
    error = np.std(held["inside"]) / np.sqrt(studies)
    assert 0.87 - 2 * error <= share["inside"] <= 0.93 + 2 * error
    assert 0.87 <= np.mean(runs_held) <= 0.96
    assert share["steps"] >= 0.85
    assert share["parameters"] >= 0.85
