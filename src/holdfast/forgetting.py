"""What one or many tuned models forgot of one base, on one or many texts: the result of `holdfast.measure`.

No torch: a report can be read, drawn and compared on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from holdfast.display import html_table, visible
from holdfast.evidence import UNMEASURABLE, CorpusReport, Verdict, joined
from holdfast.stats import Estimate, rounded


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a pair of models that could be taken for forgetting, or hide it; found before measuring."""

    what: str
    consequence: str

    def __str__(self) -> str:
        return f"{self.what}: {self.consequence}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """One tuned model: how it was measured, what was found about it, and its report on each text.

    `method` says which exact computation ran, `cached vectors` or `cached hidden states`. `step` is the training step
    a checkpoint folder names, None where it names none. `failure` says why it has no reports.
    """

    name: str
    step: int | None
    method: str | None
    merged: bool
    findings: tuple[Finding, ...]
    texts: Mapping[str, CorpusReport]
    failure: str | None

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "tuned": self.name,
            "step": self.step,
            "method": self.method,
            "merged": self.merged,
            "findings": [vars(finding) for finding in self.findings],
            "failure": self.failure,
            "texts": [text.to_dict() for text in self.texts.values()],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ForgettingReport:
    """What one or many tuned models forgot of one base, on one or many texts.

        report.kl_base_tuned                   # of the last checkpoint; several retained texts pooled by their tokens
        report["wikipedia"].kl_base_tuned      # of the last checkpoint on one text
        report.checkpoints[0].texts["wikipedia"].agreement

    Checkpoints of a folder are in step order. With a quantised base, every number is against the quantised base, and
    `quantisation` holds what quantising itself changed, base against quantised base, by text.
    """

    base: str
    quantised: str | None
    dtype: str
    device: str
    context: int
    quantisation: Mapping[str, CorpusReport]
    checkpoints: tuple[Checkpoint, ...]

    def __getitem__(self, corpus: str) -> CorpusReport:
        texts = self._last().texts
        if corpus not in texts:
            raise KeyError(f"got {corpus!r}, expected one of {sorted(texts)}")
        return texts[corpus]

    def estimate(self, quantity: str) -> Estimate:
        """A quantity of the last checkpoint, all retained texts' documents pooled."""
        every = list(self._last().texts.values())
        texts = [text for text in every if text.role == "retain"] or every
        without_tokens = [replace(text, tokens=None) for text in texts]
        return joined(without_tokens, passages=0).estimate(quantity)

    @property
    def kl_base_tuned(self) -> Estimate:
        """Forgetting of the last checkpoint, nats per token, retained texts pooled."""
        return self.estimate("kl_base_tuned")

    @property
    def agreement(self) -> Estimate:
        """Share of next-token choices of the last checkpoint that are still the base's, retained texts pooled."""
        return self.estimate("agreement")

    def _last(self) -> Checkpoint:
        measured = [checkpoint for checkpoint in self.checkpoints if checkpoint.failure is None]
        if not measured:
            raise ValueError("got no checkpoint that could be measured, expected one")
        return measured[-1]

    def rows(self) -> Iterable[tuple[Checkpoint, CorpusReport]]:
        """Every measured (checkpoint, text), in order."""
        return ((checkpoint, text) for checkpoint in self.checkpoints for text in checkpoint.texts.values())

    def verdict(self, max_forgetting: float | None = None) -> Verdict:
        """The gravest verdict of any checkpoint's on any text that is to be retained: over, then unmeasurable."""
        order: tuple[Verdict, ...] = (
            "over budget", UNMEASURABLE, "forgetting measured", "within budget", "identical",
        )  # fmt: skip
        verdicts = {text.verdict(max_forgetting) for _, text in self.rows() if text.role == "retain"}
        return next((verdict for verdict in order if verdict in verdicts), UNMEASURABLE)

    def to_frame(self) -> pd.DataFrame:
        """Per-document sums, a row per (checkpoint, text, document): every mean here is a ratio of column sums.

        Raises:
            ValueError: nothing could be measured.
        """
        frames = [
            pd.DataFrame(
                {
                    "tuned": checkpoint.name,
                    "step": checkpoint.step,
                    "corpus": text.corpus,
                    "role": text.role,
                    "document": text.places,
                    "scored_tokens": text.count,
                    **text.sums,
                }
            )
            for checkpoint, text in self.rows()
        ]
        if not frames:
            raise ValueError("got no checkpoint that could be measured, expected one")
        return pd.concat(frames, ignore_index=True).astype({"step": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: estimates, findings and passages; the sums are in `to_frame`."""
        return {
            "base": self.base,
            "quantised": self.quantised,
            "dtype": self.dtype,
            "device": self.device,
            "context": self.context,
            "findings": [vars(finding) for finding in self.findings],
            "quantisation": [text.to_dict() for text in self.quantisation.values()],
            "checkpoints": [checkpoint.to_dict() for checkpoint in self.checkpoints],
        }

    def __str__(self) -> str:
        lines = [f"{checkpoint.name}  {text}" for checkpoint, text in self.rows()]
        lines += [f"{c.name}  not measured: {c.failure}" for c in self.checkpoints if c.failure]
        lines += [str(finding) for finding in self.findings]
        return "\n".join(str(visible(line)) for line in lines)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """About every checkpoint, each once."""
        return tuple(dict.fromkeys(finding for checkpoint in self.checkpoints for finding in checkpoint.findings))

    def _repr_html_(self) -> str:
        columns = ("Tuned model", "Text", "Forgetting, nats per token", "95 % interval", "Agreement", "Documents")
        rows = []
        for checkpoint, text in self.rows():
            kl, (low, high) = text.kl_base_tuned, text.kl_base_tuned.interval()
            interval = f"{rounded(low, kl.stderr)} to {rounded(high, kl.stderr)}"
            rows.append((checkpoint.name, text.corpus, kl, interval, text.agreement, text.documents))
        return html_table(columns, rows, self.findings)
