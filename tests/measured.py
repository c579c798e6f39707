"""Forgetting reports whose truth is known: every sum is that of simulated tokens, alike within a document."""

import numpy as np

from holdfast.evidence import KINDS, CorpusReport, Passage, ScoredTokens
from holdfast.forgetting import Checkpoint, Finding, ForgettingReport

TOKENS = 200
KIND_SHARES = (0.04, 0.12, 0.13, 0.0, 0.69, 0.02)
KIND_FACTORS = (2.4, 2.0, 0.3, 1.0, 1.0, 0.1)

PASSAGES = (
    ("The Battle of Hastings was fought on 14 October ", "1066", " between the Norman-French army of William",
     ("1066", 0.94), ("2016", 0.31), 0.04),
    ("It lies on the river Vltava and is the capital of the\n\nCzech", " Republic", ". Its historic centre",
     (" Republic", 0.81), ("\n", 0.22), 0.09),
    ("She studied chemistry at the University of ", "Göttingen", ", where she",
     ("Göttingen", 0.33), ("California", 0.41), 0.05),
)  # fmt: skip


def passages(places, quote=lambda text: text):
    return tuple(
        Passage(
            place=quote(places[i % len(places)]), before=quote(before), token=quote(token), after=quote(after),
            base_nll=-np.log(base_says[1]), nll=-np.log(now), base_says=quote(base_says[0]),
            base_says_probability=base_says[1], tuned_says=quote(tuned_says[0]), tuned_says_probability=tuned_says[1],
        )
        for i, (before, token, after, base_says, tuned_says, now) in enumerate(PASSAGES)
    )  # fmt: skip


def corpus(*, name="wikipedia", forgetting=0.08, documents=40, role="retain", floor=1e-5, quote=lambda text: text):
    """One model on one text, about this much forgotten; tokens have a long tail, documents are always the same."""
    rng = np.random.default_rng(list(name.encode()))
    lengths = rng.integers(TOKENS // 2, 2 * TOKENS, documents)
    document = np.repeat(np.arange(documents), lengths)
    kind = rng.choice(len(KINDS), size=len(document), p=KIND_SHARES)
    base_nll, entropy = rng.exponential(2.6, len(document)), rng.exponential(2.4, len(document))
    level = forgetting * np.exp(rng.normal(0, 0.4, documents) - 0.08)[document] * np.array(KIND_FACTORS)[kind]
    rng = np.random.default_rng(round(1e6 * forgetting))
    kl = (level * np.exp(rng.normal(0, 1.5, len(document)) - 1.125)).astype(np.float32)
    each = {
        "nll": base_nll + kl * rng.normal(0.5, 3, len(document)),
        "base_nll": base_nll,
        "cross_entropy": entropy + kl,
        "hard_cross_entropy": entropy / 2 + kl,
        "base_entropy": entropy,
        "kl_base_tuned": kl.astype(np.float64),
        "agreement": rng.random(len(document)) > 0.4 * np.tanh(np.sqrt(kl)),
    }
    places = tuple(f"{name}.jsonl:{i + 1}" for i in range(documents))
    return CorpusReport(
        corpus=quote(name), role=role, floor=floor, places=tuple(map(quote, places)), count=lengths,
        sums={name: np.bincount(document, values, minlength=documents) for name, values in each.items()},
        tokens=ScoredTokens(document=document, target=rng.zipf(1.3, len(document)) % 997, kind=kind, kl_base_tuned=kl),
        passages=passages(places, quote) if forgetting else (),
    )  # fmt: skip


def checkpoint(*reports, name="runs/4f1c/adapter", step=None, findings=(), failure=None):
    texts = {report.corpus: report for report in reports}
    method = None if failure else "cached vectors"
    return Checkpoint(
        name=name, step=step, method=method, merged=method is not None, findings=tuple(findings), texts=texts,
        failure=failure,
    )  # fmt: skip


def report(*checkpoints, quantised=None, quantisation=()):
    return ForgettingReport(
        base="builtin:smollm2", quantised=quantised, dtype="float32", device="cpu", context=512,
        quantisation={text.corpus: text for text in quantisation}, checkpoints=checkpoints,
    )  # fmt: skip


PADDING = Finding(what="the tuned tokenizer has another padding token", consequence="no number depends on it")
TEMPLATE = Finding(
    what="the tuned model's chat template differs",
    consequence="both models were given the base's; what it says of its own template is not measured",
)


def trajectory(*, names=("wikipedia", "code"), quote=lambda text: text):
    """Five checkpoints on two texts, forgetting as the square root of the steps."""
    steps = (100, 200, 300, 400, 500)
    made = [
        checkpoint(
            *(corpus(name=name, forgetting=0.005 * factor * step**0.5, quote=quote)
              for factor, name in zip((1.0, 0.5), names, strict=True)),
            name=quote(f"outputs/checkpoint-{step}"), step=step,
            findings=[TEMPLATE, PADDING] if step == 500 else [TEMPLATE],
        )
        for step in steps
    ]  # fmt: skip
    return report(*made)
