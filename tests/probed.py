"""Probe reports whose truth is known: simulated answers with known shares kept, lost and moved."""

import numpy as np

from holdfast.behaviour import ChoiceResult, OutcomeResult, ProbedModel, ProbeReport
from holdfast.forgetting import Finding
from holdfast.refusals import RefusalOdds, RefusalResult, Said
from holdfast.stats import Estimate

AGREEMENT = (
    "a judge against people on a set: sensitivity 0.92 (0.90 to 0.94, n = 800), specificity 0.94, kappa 0.86 ± 0.02",
)
FINDING = Finding(what="the tuned model's chat template differs", consequence="both models were given the base's")


def choices(moved, *, task="arc_challenge", n=400, quote=lambda text: text):
    """About this share of answers moved to another choice at random; the base is right on half."""
    rng = np.random.default_rng(0)
    right, base = rng.integers(0, 4, n), rng.integers(0, 4, n)
    base = np.where(rng.random(n) < 0.33, right, base)
    tuned = np.where(rng.random(n) < moved, (base + rng.integers(1, 4, n)) % 4, base)
    scores = [
        tuple(np.where(np.arange(4) == c, -1.0, -2.0 - rng.random(4)) for c in chosen) for chosen in (base, tuned)
    ]
    return ChoiceResult(
        task=quote(task), protocol="character", items=tuple(f"q{i}" for i in range(n)),
        questions=tuple(quote(f"What pulls tide {i}?") for i in range(n)),
        choices=tuple(tuple(quote(f"{word} {i}") for word in ("moon", "kelp", "wind", "sun")) for i in range(n)),
        answers=right, base=base, tuned=tuned, base_scores=scores[0], tuned_scores=scores[1],
    )  # fmt: skip


def said(refuses, rng, quote=lambda text: text):
    kind = "refusal" if refuses else rng.choice(["compliance", "compliance", "gibberish", "empty"])
    text = {"refusal": "I'm sorry, but I can't.", "compliance": "Sure, here is\nhow.", "gibberish": "9 9 9 9"}
    return Said(
        text=quote(text.get(kind, "")), tokens=5, ended=True, verdict=str(kind), score=1.0,
        string_match=bool(refuses and rng.random() < 0.8),
    )  # fmt: skip


def refusals(lost, *, group="unsafe", refused=0.6, n=80, quote=lambda text: text):
    rng = np.random.default_rng(1)
    base = rng.random(n) < refused
    tuned = base & (rng.random(n) >= lost)
    return RefusalResult(
        task=quote("advbench"), group=group, protocol="the base's chat template, greedy, up to 128 tokens",
        items=tuple(f"p{i}" for i in range(n)), prompts=tuple(quote(f"Sink boat {i}") for i in range(n)),
        base=tuple(said(r, rng, quote) for r in base), tuned=tuple(said(r, rng, quote) for r in tuned),
        own_change=rng.exponential(0.3, n), judge="a judge", agreement=tuple(map(quote, AGREEMENT)),
    )  # fmt: skip


def odds(change, *, n=50, of="its own"):
    rng = np.random.default_rng(2)
    base = rng.normal(2, 1, n)
    return RefusalOdds(
        task="advbench", protocol="openings", of=of, asked=80, items=tuple(f"p{i}" for i in range(n)),
        prompts=("Sink it",) * n, tokens=np.full(n, 3), base=base, tuned=base + rng.normal(change, 0.5, n),
    )  # fmt: skip


def outcomes(*, n=60):
    rng = np.random.default_rng(3)
    base = rng.random(n) < 0.5
    return OutcomeResult(
        task="lm_eval:sums", metric="exact_match", items=tuple(f"s/{i}" for i in range(n)), prompts=("1 + 1",) * n,
        base=base, tuned=base & (rng.random(n) < 0.8), base_says=("2",) * n, tuned_says=("2", *("3",) * (n - 1)),
    )  # fmt: skip


def model(*results, name="runs/4f1c/adapter", step=None, kl=None, findings=(FINDING,), failure=None):
    forgetting = {} if kl is None else {"wikipedia": Estimate(value=kl, stderr=0.1 * kl, n=32)}
    return ProbedModel(
        name=name, step=step, run=name.rpartition("/")[0], forgetting=forgetting, merged=True,
        findings=tuple(findings), results=tuple(results), failure=failure,
    )  # fmt: skip


def report(*models, base="builtin:smollm2"):
    return ProbeReport(base=base, dtype="float32", device="cpu", models=models)


def whole(name="runs/4f1c/adapter", quote=lambda text: text):
    """One model on every kind of task."""
    return report(
        model(
            choices(0.3, quote=quote), refusals(0.4, quote=quote),
            refusals(0.2, group="safe", refused=0.2, quote=quote), odds(-1.5), odds(-1, of="a usual"),
            outcomes(), name=quote(name),
        )
    )  # fmt: skip


def trajectory(failed=False):
    """Four checkpoints, ever more moved and lost."""
    made = [
        model(choices(0.01 * step), refusals(0.01 * step), name=f"outputs/checkpoint-{step}", step=step)
        for step in (10, 20, 30, 40)
    ]
    broken = [model(name="outputs/checkpoint-50", step=50, failure="NaN in lora_A")] if failed else []
    return report(*made, *broken)


def sweep(runs=3):
    """Kept checkpoints of several runs: each nat of forgetting moves about as many answers in all of them."""
    return report(
        *[
            model(
                choices(0.8 * kl, n=1000), refusals(1.2 * kl), odds(-10 * kl), name=f"runs/{run}a/checkpoint-{step}",
                step=step, kl=kl,
            )
            for run in range(runs)
            for step, kl in ((10, 0.05 + 0.02 * run), (20, 0.1 + 0.02 * run), (40, 0.2 + 0.02 * run))
        ]
    )  # fmt: skip
