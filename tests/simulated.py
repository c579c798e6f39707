"""Studies whose truth is known: tables of runs as `holdfast.archive.table` makes them, drawn from the paper's laws."""

import numpy as np
import pandas as pd

PARAMS_PER_RANK = 2_498_560
RANKS = (8, 16, 32, 64, 128, 256)
P0, N0 = 1.13e8, 114

# asymptote, K, x, y. The paper's OpenOrca fits in the four-constant form; KL is its hard loss less a floor of 0.3.
TRUTH = {
    "target_nll": (0.610, 0.0815, 0.129, 0.529),
    "hard_cross_entropy": (0.990, -0.1416, 0.134, 0.541),
    "kl_base_tuned": (0.690, -0.1416, 0.134, 0.541),
}


def truth(quantity, *, trainable_params, steps):
    asymptote, gap, x, y = TRUTH[quantity]
    return asymptote + gap * (np.asarray(trainable_params) / P0) ** -x * (np.asarray(steps) / N0) ** -y


def run_noise(rng, checkpoints, *, run_sd, checkpoint_sd, memory=0.7):
    """What every checkpoint of a run shares, and what fades from one to the next."""
    noise = np.empty(checkpoints)
    fading = rng.normal()
    for i in range(checkpoints):
        noise[i] = fading
        fading = memory * fading + np.sqrt(1 - memory**2) * rng.normal()
    return run_sd * rng.normal() + checkpoint_sd * noise


def study(rng=None, *, ranks=RANKS, seeds=(0, 1, 2), run_sd=0.004, checkpoint_sd=0.003, total_steps=260):
    """A table of finished runs; without `rng`, free of noise. Step 0 is the untouched base."""
    if rng is None:
        rng, run_sd, checkpoint_sd = np.random.default_rng(0), 0.0, 0.0
    steps = np.unique(np.rint(np.geomspace(10, total_steps, 22)))
    rows = []
    for r in ranks:
        for seed in seeds:
            at = {"trainable_params": r * PARAMS_PER_RANK, "steps": steps}
            drawn = {
                quantity: truth(quantity, **at) + run_noise(rng, len(steps), run_sd=run_sd, checkpoint_sd=checkpoint_sd)
                for quantity in TRUTH
            }
            for i, step in enumerate((0.0, *steps)):
                now = {quantity: values[i - 1] if i else 0.0 for quantity, values in drawn.items()}
                run = {"r": r, "seed": seed, "step": step, "total_steps": total_steps}
                rows += [_row(**run, role=role, now=now) for role in ("target", "retain")]
    return pd.DataFrame(rows)


def _row(*, r, seed, step, total_steps, role, now):
    quantities = {
        "nll": now["target_nll"] if role == "target" else 2.5,
        "base_nll": 2.5,
        "cross_entropy": 2.0,
        "hard_cross_entropy": now["hard_cross_entropy"],
        "base_entropy": 1.9,
        "kl_base_tuned": now["kl_base_tuned"],
        "excess_nll": 0.0,
        "agreement": 0.9,
    }
    return {
        "run": f"{r:06x}{seed:06x}",
        "state": "done",
        "reason": None,
        "model": "llama",
        "target": "openorca",
        "method": "lora",
        "optimizer": "adafactor",
        "schedule": "constant",
        "dtype": "float32",
        "r": r,
        "lora_alpha": 1,
        "use_rslora": True,
        "learning_rate": 5e-5,
        "seed": seed,
        "batch_tokens": 16384,
        "trainable_params": r * PARAMS_PER_RANK,
        "base_params": 6.6e9,
        "total_steps": total_steps,
        "step": step,
        "tokens": step * 16384,
        "corpus": "openorca" if role == "target" else "wikipedia",
        "role": role,
        "documents": 60,
        "scored_tokens": 30000,
        **quantities,
        **{f"{quantity}_stderr": 0.001 for quantity in quantities},
    }
