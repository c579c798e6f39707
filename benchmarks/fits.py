"""The paper's joint law from 500 starts, and 1,000 resamples of it, against a SciPy L-BFGS loop doing the same.

    python benchmarks/fits.py

One core. The data are a simulated study, the paper's OpenOrca law with noise by run and by checkpoint: 18 runs, 198
points. The loop is what people write for scaling laws: scipy.optimize.minimize with L-BFGS-B on Huber's loss, all six
constants at once, gradients by finite differences; each resample starts from the best of all starts. Both keep the same
bounds, the same starts and the limit of Huber's loss that ours found.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json  # after the threads are set
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import scipy.optimize

from holdfast import laws
from holdfast.fits import HUBER
from holdfast.fitting import Loss, resampled_fits, separable_fit
from holdfast.formulas import PAPER

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import simulated

RESAMPLES = 1000


def main() -> None:
    """Measure and print."""
    points = laws.points(simulated.study(np.random.default_rng(0)))
    inputs, y = points[list(PAPER.inputs)].to_numpy(dtype=float), points["target_nll"].to_numpy()
    columns = partial(PAPER.columns, PAPER.scaled(inputs, PAPER.reference(inputs)))
    runs, member = np.unique(points["run"].to_numpy(dtype=str), return_inverse=True)
    even = np.full(len(runs), 1 / len(runs))
    counts = np.random.default_rng(0).multinomial(len(runs), even, size=RESAMPLES).astype(float)[:, member]

    start = time.perf_counter()
    whole = separable_fit(columns, y, starts=PAPER.grid(), bounds=PAPER.bounds, loss=Loss(limit=HUBER))
    ours = resampled_fits(columns, y, whole, counts=counts, bounds=PAPER.bounds, logarithmic=False)
    our_seconds = time.perf_counter() - start

    def summed(parameters: np.ndarray, times: np.ndarray | float) -> float:
        size = np.abs(y - columns(parameters[2:])[0] @ parameters[:2])
        return float(np.sum(times * np.where(size <= whole.limit, size**2 / 2, whole.limit * (size - whole.limit / 2))))

    bounds = [(None, None), (None, None), *PAPER.bounds]
    search = partial(scipy.optimize.minimize, summed, method="L-BFGS-B", bounds=bounds)
    start = time.perf_counter()
    begun = [np.array([y.min(), np.ptp(y), *exponents]) for exponents in PAPER.grid()]
    ends = [search(at, args=(1.0,)) for at in begun]
    best = min(ends, key=lambda end: end.fun)
    theirs = [search(best.x, args=(times,)).x for times in counts]
    their_seconds = time.perf_counter() - start

    loss = {"ours": summed(whole.parameters, 1.0), "scipy": float(best.fun)}
    pairs = [(summed(a, n), summed(b, n)) for a, b, n in zip(ours, theirs, counts, strict=True)]
    result = {
        "points": len(y),
        "starts": len(begun),
        "resamples": RESAMPLES,
        "seconds": {"ours": round(our_seconds, 2), "scipy": round(their_seconds, 1)},
        "ratio": round(their_seconds / our_seconds, 1),
        "loss": loss,
        "starts_within_1e-6_of_the_best": {
            "ours": round(whole.starts_agreeing, 3),
            "scipy": round(float(np.mean([end.fun <= loss["ours"] * (1 + 1e-6) for end in ends])), 3),
        },
        "resamples_where_ours_is_lower_or_equal": round(float(np.mean([a <= b * (1 + 1e-6) for a, b in pairs])), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
