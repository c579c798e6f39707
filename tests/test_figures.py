"""Every measurement is in its figure, the curves are the fit's own, and a figure draws without a browser."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from holdfast import figures, laws
from holdfast.errors import DataError

STEPS = (0, 20, 40, 60, 80, 100, 120, 150, 180, 210, 240, 260)
QUANTITIES = (
    "nll", "base_nll", "cross_entropy", "hard_cross_entropy", "base_entropy", "kl_base_tuned", "excess_nll", "agreement",
)  # fmt: skip


def study(*, ranks: tuple[int, ...] = (8, 32, 128, 256), noise: float = 0.002, seed: int = 0) -> pd.DataFrame:
    """A table of runs that follow the paper's OpenOrca laws (theory: multiplicative form), and one that failed."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, r in enumerate(ranks):
        params = 2_498_560 * r
        for step in STEPS:
            gap = (params / 1.13e8) ** -0.13 * (step / 114) ** -0.53 if step else 0.0
            loss = 0.61 + 0.0815 * gap + rng.normal(0, noise) if step else 1.1
            kl = 0.6 - 0.1416 * gap + rng.normal(0, noise) if step else 0.0
            shared = about(f"{i:012x}", r) | {"trainable_params": params, "step": step, "tokens": step * 16384.0}
            values = {"base_nll": 2.3, "base_entropy": 2.1, "agreement": 1 - kl / 3, "kl_base_tuned": kl}
            values |= {"nll": 2.3 + kl / 2, "hard_cross_entropy": 0.7 + kl / 2}
            values |= {"cross_entropy": 2.1 + kl, "excess_nll": kl / 2}
            learned = {name: math.nan for name in QUANTITIES} | {"nll": loss, "base_nll": 1.1}
            rows.append(shared | measured("wikipedia", "retain", values, error=0.004 if step else 0.0))
            rows.append(shared | measured("gsm8k", "target", learned, error=0.006))
    failed = about("f" * 12, 512) | {"state": "failed", "reason": "ran out of memory at step 3"}
    return pd.DataFrame([*rows, failed])


def about(run: str, r: int) -> dict[str, object]:
    return {
        "run": run, "state": "done", "reason": None, "model": "smollm2-135m", "target": "gsm8k", "method": "lora",
        "r": r, "lora_alpha": 1.0, "use_rslora": True, "optimizer": "adafactor", "learning_rate": 5e-5,
        "schedule": "constant", "dtype": "float32", "seed": 0, "batch_tokens": 16384, "total_steps": 260,
        "trainable_params": 2_498_560 * r,
    }  # fmt: skip


def measured(corpus: str, role: str, values: dict[str, float], *, error: float) -> dict[str, object]:
    errors = {f"{name}_stderr": error for name in values}
    return {"corpus": corpus, "role": role, "documents": 62.0, "scored_tokens": 31000.0} | values | errors


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return study()


@pytest.fixture(scope="module")
def points(table):
    return laws.points(table)


@pytest.fixture(scope="module")
def fitted(table):
    return laws.fit(table)
