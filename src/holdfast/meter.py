"""How much of the base a tuned model keeps, on a corpus: the base once, then one forward pass per tuned model.

The base's half of every number is computed once per corpus (`observe_base`) and kept; a tuned model then costs one pass
through its body and one product with the head (`measure`), with no second model in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast import models
from holdfast.corpora import Block, Corpus, measured_blocks, read_corpus, tokenise
from holdfast.errors import DataError, ModelError
from holdfast.metrics import BaseCache, TokenQuantities, base_cache, token_quantities
from holdfast.models import Base, Tokenizer, Tuned, hidden_states, output_head
from holdfast.stats import Estimate, ratio_of_sums
from holdfast.store import QUANTITIES

# Tokens in one measuring pass: enough to keep the matrix products busy, small enough for 200 MB of activations.
BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class ForgettingReport:
    """What one tuned model keeps of the base on one corpus: sums over scored tokens, per document.

    `sums[quantity]` and `count` are arrays over documents, float64 and int64; sums of several reports over other
    documents add up, and a mean is one division at the end. Each quantity of `QUANTITIES` is also a property that gives
    an `Estimate` clustered by document:

        report.kl_base_tuned          # 0.083 ± 0.004 nats per token, n = 62 documents
    """

    corpus: str
    count: Int[np.ndarray, " documents"]
    sums: dict[str, Float[np.ndarray, " documents"]]

    def estimate(self, quantity: str) -> Estimate:
        """Nats per scored token (`agreement`: share), with a standard error clustered by document."""
        if quantity == "excess_nll":  # a difference of paired sums: the documents' own difficulty cancels
            return ratio_of_sums(self.sums["nll"] - self.sums["base_nll"], self.count)
        return ratio_of_sums(self.sums[quantity], self.count)

    @property
    def nll(self) -> Estimate:
        """Loss of the tuned model on the text itself."""
        return self.estimate("nll")

    @property
    def base_nll(self) -> Estimate:
        """Loss of the base on the text itself."""
        return self.estimate("base_nll")

    @property
    def excess_nll(self) -> Estimate:
        """`nll` minus `base_nll`, paired by document; negative where tuning helped on this text."""
        return self.estimate("excess_nll")

    @property
    def cross_entropy(self) -> Estimate:
        """Soft forgetting loss, `base_entropy` plus `kl_base_tuned`."""
        return self.estimate("cross_entropy")

    @property
    def hard_cross_entropy(self) -> Estimate:
        """Hard forgetting loss, the paper's: loss on the base's own most likely next token."""
        return self.estimate("hard_cross_entropy")

    @property
    def base_entropy(self) -> Estimate:
        """Entropy of the base's predictions: the floor of `cross_entropy`."""
        return self.estimate("base_entropy")

    @property
    def kl_base_tuned(self) -> Estimate:
        """Forgetting: KL(base‖tuned), 0 exactly when nothing moved."""
        return self.estimate("kl_base_tuned")

    @property
    def agreement(self) -> Estimate:
        """Share of next-token choices that are still the base's."""
        return self.estimate("agreement")

    def to_dict(self) -> dict[str, Any]:
        """Estimates, not sums: what JSON can hold."""
        return {
            "corpus": self.corpus,
            "documents": int((self.count > 0).sum()),
            "scored_tokens": int(self.count.sum()),
            **{quantity: self.estimate(quantity).to_dict() for quantity in QUANTITIES},
        }

    def __str__(self) -> str:
        tokens, documents = int(self.count.sum()), int((self.count > 0).sum())
        return (
            f"{self.corpus}: forgetting {self.kl_base_tuned} nats/token, agreement {self.agreement} "
            f"({documents} documents, {tokens:,} tokens)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedBase:
    """A corpus cut into a batch plan, and what the base says of each of its scored tokens. Not serialisable."""

    corpus: str
    documents: int
    blocks: tuple[Block, ...]
    caches: tuple[BaseCache, ...]

    @property
    def tokens(self) -> int:
        """Tokens that one measurement passes through the model, padding included."""
        return sum(block.ids.size for block in self.blocks)


def observe_base(base: Base, corpus: Corpus, *, tokenizer: Tokenizer, context: int) -> ObservedBase:
    """Run the untuned base over a corpus once and keep what measuring needs, 4d + 24 bytes a scored token.

    Raises:
        DataError: a document holds nothing to predict.
        ModelError: a measured number is NaN or infinite.
    """
    blocks = measured_blocks([tokenise(d, tokenizer) for d in corpus.documents], context=context, tokens=BATCH_TOKENS)
    if not blocks:
        raise DataError(f"got no token to predict, expected at least one, in {corpus.name}")
    head = output_head(base)
    caches = []
    with measuring(base):
        for block in blocks:
            cache = base_cache(hidden=_scored_states(base, block), head=head, targets=_targets(block, head.device))
            _check_finite(cache.entropy, corpus.name, "the base")
            caches.append(cache)
    return ObservedBase(corpus=corpus.name, documents=len(corpus.documents), blocks=tuple(blocks), caches=tuple(caches))


def measure_on(tuned: Base | Tuned, observed: ObservedBase) -> ForgettingReport:
    """What a tuned model keeps of the base, on a corpus the base was observed on.

    One pass through the model's body and one product with the head per batch; every quantity of `QUANTITIES` from it.
    The model may be in training: its mode and every random state are as before afterwards, so a measured run trains bit
    for bit like an unmeasured one. An unchanged model gives kl_base_tuned exactly 0 and agreement exactly 1.

    Raises:
        ModelError: a measured number is NaN or infinite.
    """
    head = output_head(tuned)
    count = np.zeros(observed.documents, dtype=np.int64)
    sums = {quantity: np.zeros(observed.documents) for quantity in QUANTITIES if quantity != "excess_nll"}
    with measuring(tuned):
        for block, base in zip(observed.blocks, observed.caches, strict=True):
            tokens = token_quantities(
                hidden=_scored_states(tuned, block), head=head, base=base, targets=_targets(block, head.device)
            )
            _check_finite(tokens.cross_entropy, observed.corpus, "the tuned model")
            document = block.document[block.scored]
            count += np.bincount(document, minlength=observed.documents)
            for quantity in sums:
                sums[quantity] += _document_sums(tokens, quantity, document, observed.documents)
    return ForgettingReport(corpus=observed.corpus, count=count, sums=sums)


def _document_sums(tokens: TokenQuantities, quantity: str, document: np.ndarray, documents: int) -> np.ndarray:
    """One quantity summed per document, in float64."""
    values = getattr(tokens, quantity).double().cpu().numpy()
    return np.bincount(document, weights=values, minlength=documents)


def _scored_states(model: Base | Tuned, block: Block) -> Float[Tensor, "t d"]:
    """Hidden states at the positions that predict a scored token."""
    device = output_head(model).device
    states = hidden_states(
        model, ids=torch.from_numpy(block.ids).to(device), positions=torch.from_numpy(block.positions).to(device)
    )
    return states[:, :-1][torch.from_numpy(block.scored[:, 1:]).to(device)]


def _targets(block: Block, device: torch.device) -> Int[Tensor, " t"]:
    return torch.from_numpy(block.ids[block.scored]).to(device)


def _check_finite(values: Tensor, corpus: str, which: str) -> None:
    if not torch.isfinite(values).all():
        raise ModelError(f"got NaN or infinity from {which}, expected finite predictions, on {corpus}")


@contextlib.contextmanager
def measuring(model: Base | Tuned) -> Iterator[None]:
    """Evaluation mode without gradients; training mode of every module and all random states restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def measure(
    *,
    base: str,
    tuned: str,
    texts: Sequence[str],
    context: int = 512,
    documents: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> dict[str, ForgettingReport]:
    """What a tuned adapter folder forgot of its base, on each text: a report per text, by its name.

    `base` is a model spec and `tuned` a PEFT adapter folder; the base is loaded as itself, never as the tuned model
    with its adapter switched off. `documents` of each text are measured (None: all), cut into windows of `context`
    tokens.

    Raises:
        ModelError: either cannot be loaded, or the adapter changes the output head.
        DataError: a text cannot be used, or two have the same name.
    """
    corpora = [read_corpus(text).sample(documents) for text in texts]
    names = [corpus.name for corpus in corpora]
    if not names or len(set(names)) < len(names):
        raise DataError(f"got texts named {names}, expected at least one, each with a name of its own")
    place = models.choose_device(device)
    tokenizer = models.load_tokenizer(base)
    model = models.load_base(base, dtype=models.fastest_dtype(place) if dtype == "auto" else dtype, device=place)
    observed = [observe_base(model, corpus, tokenizer=tokenizer, context=context) for corpus in corpora]
    adapted = models.load_adapter(model, tuned)
    return {part.corpus: measure_on(adapted, part) for part in observed}
