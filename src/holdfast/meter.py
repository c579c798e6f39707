"""How much of the base a tuned model keeps, on a corpus: the base once, then one forward pass per tuned model.

The base's half of every number is computed once per corpus (`observe`) and kept; a tuned model then costs one pass
through its body and one product with the head (`measure_on`), with no second model in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from holdfast.basecache import Batch, Kind
from holdfast.corpora import Block, Corpus, Part, measured_blocks, tokenise
from holdfast.errors import DataError, ModelError
from holdfast.evidence import CorpusReport, Passage, ScoredTokens, most_fallen
from holdfast.kernels import fast_kernels
from holdfast.metrics import BaseCache, BaseStates, TokenQuantities, base_cache, paired_quantities, token_quantities
from holdfast.models import Base, Tokenizer, Tuned, causal, head_of, hidden_states, output_head
from holdfast.store import QUANTITIES, Role

# Tokens in one measuring pass: enough to keep matrix products busy; more is slower on a CPU, whose caches hold less.
BATCH_TOKENS = 1024

FLOORS = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""KL that rounding alone makes of a model moved by next to nothing, nats per token; benchmarks/precision.py."""

_SUMMED = tuple(quantity for quantity in QUANTITIES if quantity != "excess_nll")
_BEFORE, _AFTER, _APART, _ALIKE = 60, 25, 32, 16
"""Tokens shown before and after a passage's, the least number between two of one window, and by which two are alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedBase:
    """A corpus cut into a batch plan, and what the base says of each of its scored tokens. Not serialisable.

    `batches` are in memory or on disk.
    """

    corpus: str
    role: Role
    places: tuple[str, ...]
    blocks: tuple[Block, ...]
    batches: Iterable[Batch]

    @property
    def tokens(self) -> int:
        """Tokens that one measurement passes through the model, padding included."""
        return sum(block.ids.size for block in self.blocks)


def batch_plan(corpus: Corpus, tokenizer: Tokenizer, *, context: int, part: Part) -> tuple[Block, ...]:
    """The blocks a corpus is measured in, base and tuned alike; `part` of each document is scored, see `tokenise`.

    Raises:
        DataError: there is nothing to predict.
    """
    tokens = [tokenise(document, tokenizer, part=part) for document in corpus.documents]
    blocks = measured_blocks(tokens, context=context, tokens=BATCH_TOKENS)
    if not blocks:
        raise DataError(f"got no token to predict, expected at least one, in {corpus.name}")
    return tuple(blocks)


def observe(base: Base, blocks: Sequence[Block], *, kind: Kind, corpus: str) -> Iterator[Batch]:
    """Run the untuned base over blocks once and hand out what measuring needs of each.

    Raises:
        ModelError: a number is NaN or infinite.
    """
    head = head_of(base)
    with measuring(base):
        for block in blocks:
            with fast_kernels():
                hidden = _scored_states(base, block)
                if kind == "vectors":
                    cache = base_cache(hidden=hidden, head=head.weight, targets=_targets(block, head.weight.device))
            _check_finite(cache.entropy if kind == "vectors" else hidden, corpus, "the base")
            yield cache if kind == "vectors" else BaseStates(hidden=hidden, head=head)


def observe_base(
    base: Base, corpus: Corpus, *, role: Role, tokenizer: Tokenizer, context: int, kind: Kind = "vectors"
) -> ObservedBase:
    """Observe the untuned base on a corpus, in memory: 4d + 32 bytes a scored token, `states` d of the base's numbers.

    Raises:
        DataError: a document holds nothing to predict.
        ModelError: a measured number is NaN or infinite, or the head is more than a matrix.
    """
    if not head_of(base).plain:
        raise ModelError(
            f"got an output head with a bias or soft-capping ({base.config.model_type}), expected a matrix"
        )
    blocks = batch_plan(corpus, tokenizer, context=context, part="answer")
    batches = tuple(observe(base, blocks, kind=kind, corpus=corpus.name))
    return ObservedBase(
        corpus=corpus.name, role=role, places=tuple(document.place for document in corpus.documents), blocks=blocks,
        batches=batches,
    )  # fmt: skip


def measure_on(tuned: Base | Tuned, observed: ObservedBase) -> CorpusReport:
    """What a tuned model keeps of the base, on a corpus the base was observed on: sums per document.

    One pass through the model's body and one product with the head per batch; every quantity of `QUANTITIES` from it.
    The model may be in training: its mode and every random state are as before afterwards, so a measured run trains bit
    for bit like an unmeasured one. An unchanged model gives kl_base_tuned exactly 0 and agreement exactly 1.

    Raises:
        ModelError: a measured number is NaN or infinite.
    """
    count, sums = _zeros(observed)
    for block, quantities in _quantities(tuned, observed):
        _add(count, sums, block, quantities)
    return _report(tuned, observed, count, sums, tokens=None, passages=())


def measure_in_detail(
    tuned: Base | Tuned, observed: ObservedBase, *, tokenizer: Tokenizer, passages: int
) -> CorpusReport:
    """The same with a few numbers of every single token, and the passages whose probability fell most.

    At most so many passages, never two close together.

    Raises:
        ModelError: a measured number is NaN or infinite.
    """
    count, sums = _zeros(observed)
    columns: dict[str, list[np.ndarray]] = {"document": [], "target": [], "kind": [], "kl_base_tuned": []}
    fallen: list[Passage] = []
    for block, quantities in _quantities(tuned, observed):
        _add(count, sums, block, quantities)
        columns["document"].append(block.document[block.scored].astype(np.int32))
        columns["target"].append(block.ids[block.scored].astype(np.int32))
        columns["kind"].append(block.kind[block.scored])
        columns["kl_base_tuned"].append(quantities.kl_base_tuned.float().cpu().numpy())
        fallen += _passages(block, quantities, observed.places, tokenizer, passages)
        fallen = list(most_fallen(fallen, most=passages))
    tokens = ScoredTokens(**{name: np.concatenate(parts) for name, parts in columns.items()})
    return _report(tuned, observed, count, sums, tokens=tokens, passages=tuple(fallen))


def _quantities(tuned: Base | Tuned, observed: ObservedBase) -> Iterator[tuple[Block, TokenQuantities]]:
    """Every batch with its per-token quantities, by cached vectors or, where those were not kept, hidden states."""
    head = head_of(tuned)
    with measuring(tuned):
        for block, base in zip(observed.blocks, observed.batches, strict=True):
            with fast_kernels():
                hidden, targets = _scored_states(tuned, block), _targets(block, head.weight.device)
                if isinstance(base, BaseCache):
                    tokens = token_quantities(hidden=hidden, head=head.weight, base=base, targets=targets)
                else:
                    tokens = paired_quantities(hidden=hidden, head=head, base=base, targets=targets)
            _check_finite(tokens.cross_entropy, observed.corpus, "the tuned model")
            yield block, tokens


def _zeros(observed: ObservedBase) -> tuple[Int[np.ndarray, " documents"], dict[str, Float[np.ndarray, " documents"]]]:
    documents = len(observed.places)
    return np.zeros(documents, dtype=np.int64), {quantity: np.zeros(documents) for quantity in _SUMMED}


def _add(count: np.ndarray, sums: dict[str, np.ndarray], block: Block, tokens: TokenQuantities) -> None:
    """One batch's sums per document, in float64."""
    document = block.document[block.scored]
    count += np.bincount(document, minlength=len(count))
    for quantity in sums:
        values = getattr(tokens, quantity).double().cpu().numpy()
        sums[quantity] += np.bincount(document, weights=values, minlength=len(count))


def _report(
    tuned: Base | Tuned, observed: ObservedBase, count: np.ndarray, sums: dict[str, np.ndarray],
    *, tokens: ScoredTokens | None, passages: tuple[Passage, ...],
) -> CorpusReport:  # fmt: skip
    return CorpusReport(
        corpus=observed.corpus, role=observed.role, floor=FLOORS.get(output_head(tuned).dtype, 0.0),
        places=observed.places, count=count, sums=sums, tokens=tokens, passages=passages,
    )  # fmt: skip


def _passages(
    block: Block, tokens: TokenQuantities, places: Sequence[str], tokenizer: Tokenizer, most: int
) -> list[Passage]:
    """The tokens of a batch whose probability fell most, in their context."""
    fall = ((-tokens.base_nll).exp() - (-tokens.nll).exp()).cpu().numpy()
    rows, columns = np.nonzero(block.scored)
    chosen: list[int] = []
    seen: set[bytes] = set()
    for index in np.argsort(-fall):
        if len(chosen) == most or fall[index] <= 0:
            break
        said = block.ids[rows[index], max(0, columns[index] - _ALIKE) : columns[index] + 1].tobytes()
        apart = all(rows[i] != rows[index] or abs(columns[i] - columns[index]) >= _APART for i in chosen)
        if apart and said not in seen:
            chosen.append(int(index))
            seen.add(said)
    return [_passage(block, tokens, i, int(rows[i]), int(columns[i]), places, tokenizer) for i in chosen]


def _passage(
    block: Block, tokens: TokenQuantities, index: int, row: int, column: int, places: Sequence[str],
    tokenizer: Tokenizer,
) -> Passage:  # fmt: skip
    ids = block.ids[row][block.document[row] >= 0].tolist()
    start = max(0, column - _BEFORE)
    before = _text(tokenizer, ids[start:column])
    through = _text(tokenizer, ids[start : column + 1])
    whole = _text(tokenizer, ids[start : column + 1 + _AFTER])
    return Passage(
        place=places[block.document[row, column]],
        before=before,
        token=through.removeprefix(before) or _text(tokenizer, ids[column : column + 1]),
        after=whole.removeprefix(through) if whole.startswith(through) else "",
        base_nll=float(tokens.base_nll[index]),
        nll=float(tokens.nll[index]),
        base_says=_text(tokenizer, [int(tokens.base_top[index])]),
        base_says_probability=float((-tokens.base_top_nll[index]).exp()),
        tuned_says=_text(tokenizer, [int(tokens.top[index])]),
        tuned_says_probability=float((-tokens.top_nll[index]).exp()),
    )


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _scored_states(model: Base | Tuned, block: Block) -> Float[Tensor, "t d"]:
    """Hidden states at the positions that predict a scored token."""
    rows, largest = causal(model).get_input_embeddings().weight.shape[0], int(block.ids.max())
    if largest >= rows:
        raise ModelError(f"got a text with token {largest}, expected one below the model's {rows} (another tokenizer?)")
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
