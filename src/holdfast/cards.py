"""What a model forgot, on its model card: a section for people and `model-index` for the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from holdfast import files
from holdfast.display import visible
from holdfast.errors import DataError, ResourceError, as_ours
from holdfast.evidence import CorpusReport
from holdfast.forgetting import Checkpoint, ForgettingReport
from holdfast.stats import Estimate, rounded

METRICS = {
    "kl_base_tuned": "Forgetting, KL(base||tuned), nats per token",
    "agreement": "Next-token choices that are still the base's, share of tokens",
}
"""What a model card says of each text, with its unit."""

ACTS = "\\`*_{}[]<>#!|&~$@"
"""What Markdown, as the hub reads it, takes for more than a letter."""

HEADING = "## What this model forgot"


def write_card(
    report: ForgettingReport, path: Path, *, commands: Sequence[str], max_forgetting: float | None = None
) -> None:
    """Write what the last measured checkpoint forgot on the model card at `path`; all else a card there says is kept.

    That is a section of its own, which measuring again replaces, and each text's forgetting and agreement in the front
    matter's `model-index`, which the hub shows.

    Raises:
        DataError: no checkpoint could be measured, or the card there is not one.
        ResourceError: the file cannot be written.
    """
    measured = [checkpoint for checkpoint in report.checkpoints if checkpoint.texts]
    if not measured:
        raise DataError(f"got no checkpoint that could be measured, expected one, for {path}")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    section = _section(report, measured[-1], commands=commands, max_forgetting=max_forgetting)
    with files.refusing(path):
        files.make_folder(path.parent)
        files.write(path, _with_results(_with_section(before, section), measured[-1], path).encode())


def push_card(path: Path, repo: str) -> str:
    """Put the model card at `path` into a repository of the hub (`HF_ENDPOINT`, the user's own token); its address.

    Nothing but the card is sent.

    Raises:
        ResourceError: the hub does not take it.
    """
    with as_ours(ResourceError, lambda why: f"got {why}, expected the hub to take the card, at {repo}"):
        sent = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")).upload_file(
            path_or_fileobj=path, path_in_repo="README.md", repo_id=repo,
            commit_message="What this model forgot, measured by Holdfast",
        )  # fmt: skip
    return str(sent)


def _section(
    report: ForgettingReport, last: Checkpoint, *, commands: Sequence[str], max_forgetting: float | None
) -> str:
    """Markdown for a reader who knows neither us nor the measure."""
    rows = [
        f"| {_cell(text.corpus)} | {_said(text.kl_base_tuned)} | {_ends(text.kl_base_tuned)} | "
        f"{_said(_hundredfold(text.agreement))} % | {text.documents:,} | {text.scored_tokens:,} |"
        for text in last.texts.values()
    ]
    verdict = "" if max_forgetting is None else (
        f" Against a budget of {max_forgetting:g} nats per token: {report.verdict(max_forgetting)}."
    )  # fmt: skip
    lines = [
        HEADING,
        "",
        f"Measured against {_cell(report.base)}, the model this one was tuned from.{verdict}",
        "",
        "| Text | Forgetting, nats per token | 95 % interval | Choices still the base's | Documents | Tokens |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Forgetting is the mean over tokens of KL(base‖tuned): how far this model's next-token predictions have moved "
        "from its base's. It is 0 when nothing moved. Intervals are over documents.",
        "",
        *([f"- {_cell(str(finding))}" for finding in report.findings] + [""] if report.findings else []),
        "Measured by Holdfast, after [Kalajdzievski 2024](https://arxiv.org/abs/2401.05605)"
        + (":" if commands else "."),
        *(["", *(f"    {visible(command)}".replace("\n", " ") for command in commands)] if commands else []),
    ]
    return "\n".join(lines) + "\n"


def _with_section(card: str, section: str) -> str:
    """A card whose section of ours is this one: in the place of the one before, to the next heading, or at the end."""
    start = card.find(f"\n{HEADING}\n")
    if start < 0:
        return f"{card.rstrip()}\n\n{section}" if card.strip() else section
    after = start + 1 + len(HEADING)
    ends = [at for mark in ("\n# ", "\n## ") if (at := card.find(mark, after)) >= 0]
    rest = card[min(ends) :] if ends else ""
    return f"{card[: start + 1]}{section}{rest}"


def _with_results(card: str, last: Checkpoint, path: Path) -> str:
    """The card with our results in its `model-index`."""
    results = [_eval_result(text, metric) for text in last.texts.values() for metric in METRICS]
    name = visible("/".join(last.name.rstrip("/").split("/")[-2:]))  # a card is published; where a folder lay is not
    if not card.startswith("---"):
        return f"---\n{ModelCardData(model_name=name, eval_results=results).to_yaml()}\n---\n\n{card}"
    try:
        read = ModelCard(card)
    except Exception as error:  # a parser's own error, of a library that is not ours to import
        raise DataError(
            f"got a model card that cannot be read ({error}), expected YAML front matter, at {path}"
        ) from error
    data = cast(ModelCardData, read.data)
    others = [result for result in data.eval_results or () if result.metric_type not in METRICS]
    data.eval_results = others + results
    data.model_name = data.model_name or name
    return str(read)


def _eval_result(text: CorpusReport, metric: str) -> EvalResult:
    estimate, name = text.estimate(metric), visible(text.corpus)
    low, high = estimate.interval()
    known = {} if estimate.n < 2 else {"stderr": estimate.stderr, "interval_95": [low, high]}
    return EvalResult(
        task_type="text-generation",
        dataset_type=name,
        dataset_name=name,
        metric_type=metric,
        metric_name=METRICS[metric],
        metric_value=estimate.value,
        metric_args={"documents": estimate.n, "scored_tokens": text.scored_tokens, **known},
    )


def _cell(text: str) -> str:
    """Text that Markdown prints as it is, inside a table too."""
    shown = str(visible(text)).replace("\n", " ").replace("\t", " ")
    escaped = "".join(f"&#{ord(c)};" if c in ACTS else c for c in shown)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")


def _hundredfold(share: Estimate) -> Estimate:
    return Estimate(value=100 * share.value, stderr=100 * share.stderr, n=share.n)


def _said(estimate: Estimate) -> str:
    return rounded(estimate.value, estimate.stderr)


def _ends(estimate: Estimate) -> str:
    if estimate.n < 2:
        return "one document gives none"
    low, high = estimate.interval()
    return f"{rounded(low, estimate.stderr)} to {rounded(high, estimate.stderr)}"
