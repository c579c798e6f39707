"""Train the refusal judge on people's labels, and measure how it agrees with them; writes src/holdfast/data/judge.

Run: python scripts/train_judge.py FOLDER, one with `xstest` (three models' completions of 450 prompts, two
annotators each) and `refusal_labels` (105 answers, one label each). Deterministic: the same data give the same files.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from holdfast.judging import DATA, METHOD, SECOND_ANNOTATOR, STRING_MATCH, Agreement, Rate, agreement, string_match
from holdfast.phrases import NAMES, SIGNS, features, readable
from holdfast.stats import Estimate

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MODELS = ("gpt4", "llama2orig", "mistralguard")
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 10
SHORT = 200
NOTHING = "never trained"
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Labelled answers, one an element."""

    prompts: list[str]
    responses: list[str]
    refusal: BoolArray
    """By people's final label; a partial refusal is one."""
    partial: BoolArray
    annotators: BoolArray
    """(n, 2): what each of the two annotators said, alike; (n, 0) where there was one."""
    model: npt.NDArray[np.str_]

    def design(self, characters: int | None = None) -> FloatArray:
        """Features of each answer, or of its first so many characters."""
        pairs = zip(self.prompts, self.responses, strict=True)
        return np.array([features(readable(prompt), readable(response[:characters])) for prompt, response in pairs])

    def clusters(self) -> npt.NDArray[np.intp]:
        """A number for each distinct prompt."""
        return np.unique(self.prompts, return_inverse=True)[1]


def main(data: Path) -> None:
    """Train, measure, write both files and the table."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, content in make(data).items():
        path = DATA / name
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(table(agreement()))


def make(data: Path) -> dict[str, Any]:
    """The content of both files. What ships is trained on XSTest alone, so that the other set stays outside."""
    xstest, external = read_xstest(data / "xstest"), read_refusal_labels(data / "refusal_labels")
    weights, penalty = train(xstest.design(), xstest.refusal, xstest.model)
    held = {name: round(float(value), DIGITS) + 0.0 for name, value in zip(NAMES, weights, strict=True)}
    return {
        "weights.json": {"method": METHOD, "penalty": penalty, "weights": held},
        "agreement.json": [row.to_dict() for row in measure(xstest, external, weights)],
    }


def table(rows: Sequence[Agreement]) -> str:
    """The rows as docs/judge.md has them."""
    lines = [
        "| set | judged by | unseen in training | n | sensitivity | specificity | κ |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})" for r in (row.sensitivity, row.specificity)]
        cells = [row.labelled, row.method, row.unseen, f"{row.answers:,}", *shares, str(row.kappa)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_xstest(folder: Path) -> Answers:
    """XSTest's completions and labels (1 compliance, 2 refusal, 3 partial refusal)."""
    rows = []
    for model in MODELS:
        with (folder / f"xstest_v2_completions_{model}.csv").open(encoding="utf-8", newline="") as file:
            rows += [row | {"model": model} for row in csv.DictReader(file)]
    return Answers(
        prompts=[row["prompt"] for row in rows],
        responses=[row["completion"] for row in rows],
        refusal=np.array([row["final_label"][0] != "1" for row in rows]),
        partial=np.array([row["final_label"][0] == "3" for row in rows]),
        annotators=np.array([[row[f"annotation_{who}"][0] != "1" for who in (1, 2)] for row in rows]),
        model=np.array([row["model"] for row in rows]),
    )


def read_refusal_labels(folder: Path) -> Answers:
    """PyRIT's labelled answers; lines that start with # are comments."""
    with (folder / "refusal.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return Answers(
        prompts=[row["objective"] for row in rows],
        responses=[row["assistant_response"] for row in rows],
        refusal=np.array([row["human_score"] == "1" for row in rows]),
        partial=np.zeros(len(rows), dtype=bool),
        annotators=np.zeros((len(rows), 0), dtype=bool),
        model=np.full(len(rows), ""),
    )


def fit(design: FloatArray, refusal: BoolArray, penalty: float) -> FloatArray:
    """Weights w of a logistic regression with penalty/2 · |w|², none of them against the sign of its feature.

    Projected Newton: strictly convex, so the answer is one, and converged to rounding it is the same everywhere. The
    constant is hardly penalised.
    Source: Bertsekas 1982, "Projected Newton methods for optimization problems with simple constraints".
    """
    costs = np.where(SIGNS == 0, 1e-3, penalty)

    def allowed(weights: FloatArray) -> FloatArray:
        return np.where(weights * SIGNS < 0, 0.0, weights)

    def loss(weights: FloatArray) -> float:
        z = design @ weights
        return float(np.logaddexp(0, z).sum() - z[refusal].sum() + 0.5 * costs @ weights**2)

    weights = np.zeros(design.shape[1])
    for _ in range(200):
        p = expit(design @ weights)
        slope = design.T @ (p - refusal) + costs * weights
        free = ~((weights == 0) & (slope * SIGNS > 0))
        inner = design[:, free]
        curvature = (inner * (p * (1 - p))[:, None]).T @ inner + np.diag(costs[free])
        step = np.zeros_like(weights)
        step[free] = np.linalg.solve(curvature, slope[free])
        size, start = 1.0, loss(weights)
        while size > 1e-6 and loss(allowed(weights - size * step)) > start + 1e-10 * abs(start):
            size /= 2
        moved = allowed(weights - size * step)
        change, weights = float(np.abs(moved - weights).max()), moved
        if change < 1e-12:
            return weights
    raise RuntimeError(f"got a last change of {change:.1e}, expected less than 1e-12 after 200 steps")


def train(design: FloatArray, refusal: BoolArray, model: npt.NDArray[np.str_]) -> tuple[FloatArray, float]:
    """Weights and their penalty: the one whose log loss is least on each model's answers in turn, held out."""

    def held_out_loss(penalty: float) -> float:
        total = 0.0
        for name in np.unique(model):
            inside = model != name
            score = design[~inside] @ fit(design[inside], refusal[inside], penalty)
            total += float(np.logaddexp(0, np.where(refusal[~inside], -score, score)).sum())
        return total

    penalty = min(PENALTIES, key=held_out_loss)
    return fit(design, refusal, penalty), penalty


def held_out(answers: Answers, *, by_model: bool, by_prompt: bool, characters: int | None = None) -> FloatArray:
    """Each answer's score by a judge, its penalty included, that saw nothing of its model, of its prompt, or of either.

    Trained on whole answers; `characters` cuts those that are judged.
    """
    design, judged = answers.design(), answers.design(characters)
    cluster = answers.clusters()
    fold = np.random.default_rng(0).permutation(FOLDS * math.ceil((cluster.max() + 1) / FOLDS))[cluster] % FOLDS
    score = np.full(len(design), np.nan)
    for name in MODELS if by_model else ("",):
        for number in range(FOLDS) if by_prompt else (-1,):
            others = (answers.model != name) & (fold != number)
            these = (answers.model == name if by_model else True) & (fold == number if by_prompt else True)
            weights, _ = train(design[others], answers.refusal[others], answers.model[others])
            score[these] = judged[these] @ weights
    return score


def measure(xstest: Answers, external: Answers, weights: FloatArray) -> list[Agreement]:
    """Every row of the table; the judge's on answers of new models to new prompts first, string matching's next."""
    fresh = held_out(xstest, by_model=True, by_prompt=True) > 0
    strings = np.array([string_match(response) for response in xstest.responses])
    both = "model and prompt"
    everything = np.ones(len(fresh), dtype=bool)
    sets = {"xstest": everything, "xstest without partial refusals": ~xstest.partial}
    sets |= {f"xstest/{name}": xstest.model == name for name in MODELS}
    rows = []
    for name, chosen in sets.items():
        rows.append(compared(xstest, fresh, chosen, labelled=name, method=METHOD, unseen=both))
        rows.append(compared(xstest, strings, chosen, labelled=name, method=STRING_MATCH, unseen=NOTHING))
    for unseen, score in {
        "prompt": held_out(xstest, by_model=False, by_prompt=True),
        "model": held_out(xstest, by_model=True, by_prompt=False),
        f"{both}, first {SHORT} characters": held_out(xstest, by_model=True, by_prompt=True, characters=SHORT),
    }.items():
        rows.append(compared(xstest, score > 0, everything, labelled="xstest", method=METHOD, unseen=unseen))
    outside = {
        "refusal_labels": np.ones(len(external.prompts), dtype=bool),
        "refusal_labels on topic": on_topic(external),
    }
    judged = external.design() @ weights > 0
    matched = np.array([string_match(response) for response in external.responses])
    for name, chosen in outside.items():
        rows.append(compared(external, judged, chosen, labelled=name, method=METHOD, unseen="the set"))
        rows.append(compared(external, matched, chosen, labelled=name, method=STRING_MATCH, unseen=NOTHING))
    first, second = xstest.annotators.T
    for name, chosen in sets.items():
        if (xstest.partial & chosen).sum() == 0:
            continue  # chosen by the final label, which both annotators made
        rows.append(
            agree(
                first[chosen], second[chosen], xstest.clusters()[chosen],
                labelled=name, method=SECOND_ANNOTATOR, unseen=NOTHING,
            )
        )  # fmt: skip
    return rows


def on_topic(answers: Answers) -> BoolArray:
    """Leaves out the refusals that answer another prompt: the prompt, or the text, also stands where there is none."""
    pairs = list(zip(answers.prompts, answers.responses, answers.refusal, strict=True))
    prompts = {prompt for prompt, _, refusal in pairs if not refusal}
    texts = {text for _, text, refusal in pairs if not refusal}
    return np.array([not (refusal and (prompt in prompts or text in texts)) for prompt, text, refusal in pairs])


def compared(
    answers: Answers, found: BoolArray, chosen: BoolArray, *, labelled: str, method: str, unseen: str
) -> Agreement:
    """A method against people's final labels on the chosen answers."""
    cluster = answers.clusters()[chosen]
    return agree(answers.refusal[chosen], found[chosen], cluster, labelled=labelled, method=method, unseen=unseen)


def agree(
    truth: BoolArray, found: BoolArray, cluster: npt.NDArray[np.intp], *, labelled: str, method: str, unseen: str
) -> Agreement:
    """Sensitivity, specificity and κ of what was found against the truth, clustered by prompt."""
    counts = tables(truth, found, cluster)
    return Agreement(
        labelled=labelled, method=method, unseen=unseen, answers=len(truth), prompts=len(counts),
        sensitivity=rate(counts[:, 1, 1], counts[:, 1].sum(axis=1)),
        specificity=rate(counts[:, 0, 0], counts[:, 0].sum(axis=1)),
        kappa=jackknifed_kappa(counts),
    )  # fmt: skip


def tables(truth: BoolArray, found: BoolArray, cluster: npt.NDArray[np.intp]) -> FloatArray:
    """For each cluster the counts [truth, found], (clusters, 2, 2)."""
    names, member = np.unique(cluster, return_inverse=True)
    counts = np.zeros((len(names), 2, 2))
    np.add.at(counts, (member, truth.astype(int), found.astype(int)), 1)
    return counts


def kappa(counts: FloatArray) -> FloatArray:
    """Cohen's κ of tables (…, 2, 2): (p_o − p_e) / (1 − p_e)."""
    share = counts / counts.sum(axis=(-2, -1), keepdims=True)
    agreed = np.trace(share, axis1=-2, axis2=-1)
    chance = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    return np.asarray((agreed - chance) / (1 - chance))


def jackknifed_kappa(counts: FloatArray) -> Estimate:
    """κ of all clusters together, its error by leaving out one at a time."""
    n, together = len(counts), counts.sum(axis=0)
    without = kappa(together - counts)
    spread = float(((without - kappa(together)) ** 2).sum())
    return Estimate(value=float(kappa(together)), stderr=math.sqrt((n - 1) / n * spread), n=n)


def rate(hits: FloatArray, counts: FloatArray) -> Rate:
    """A share over clusters, and Wilson's interval for as many independent answers as these are worth.

    That number is value (1 − value) / stderr², the stderr clustered, and never more than there are.
    """
    hits, counts = hits[counts > 0], counts[counts > 0]
    n, total = len(counts), float(counts.sum())
    value = float(hits.sum()) / total
    moves = (hits - value * counts) / (total - counts)
    variance = (n - 1) / n * float(moves @ moves)
    worth = min(total, value * (1 - value) / variance) if variance > 0 else float(n)
    low, high = wilson(value, worth)
    return Rate(value=value, low=low, high=high, n=int(total))


def wilson(value: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n, which need not be whole."""
    z = float(ndtri((1 + level) / 2))
    middle, margin = value + z * z / (2 * n), z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * margin) / (1 + z * z / n) for sign in (-1, 1))
    return (0.0 if value == 0 else low), (1.0 if value == 1 else high)


def cli(arguments: Sequence[str]) -> None:
    """The one argument is the folder of the data."""
    if len(arguments) != 1:
        raise SystemExit(f"got {len(arguments)} arguments, expected one: the folder with xstest and refusal_labels")
    main(Path(arguments[0]))


if __name__ == "__main__":
    cli(sys.argv[1:])
