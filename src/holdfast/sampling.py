"""Text sampled from a base model itself: a text to be retained that needs no data, and has no subject but the base's.

Kept as an ordinary JSONL file, which `read_corpus` reads back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from holdfast import files
from holdfast.corpora import Corpus, Document
from holdfast.errors import ModelError
from holdfast.meter import measuring
from holdfast.models import Base, Tokenizer, quiet

NAME = "self"

_TOKENS_AT_ONCE = 8192
"""Sampled side by side: enough for the matrix products, few enough that keys and values of a 7B model fit in 4 GB."""

_EMPTY_PATIENCE = 8
"""Empty documents put up with for each one wanted, before a model counts as one that says nothing."""


def sample_corpus(base: Base, *, tokenizer: Tokenizer, documents: int, tokens: int, seed: int) -> Corpus:
    """So many documents of up to `tokens` tokens that the base writes when given nothing but its start token.

    Drawn from its own distribution: temperature 1, all tokens possible, whatever generation settings it came with. The
    start token is the tokenizer's `bos`, else its `eos`; a document ends before the first end token. One without text
    is dropped and another drawn. The same seed gives the same text on the same machine. The model's mode, settings
    and every random state are as before afterwards.

    Raises:
        ModelError: no start token, or hardly any document with text in it.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ModelError("got a tokenizer with neither a bos nor an eos token, expected one to begin a sample with")
    ends = end_tokens(base, tokenizer)
    texts: list[str] = []
    drawn = 0
    with measuring(base), quiet():
        torch.manual_seed(seed)
        while len(texts) < documents:
            if drawn >= (1 + _EMPTY_PATIENCE) * documents:
                raise ModelError(
                    f"got {drawn - len(texts)} empty documents among {drawn} sampled from the base, "
                    f"expected {documents} with text"
                )
            rows = min(documents - len(texts), max(1, _TOKENS_AT_ONCE // tokens))
            samples = _continued(base, start=start, ends=ends, rows=rows, tokens=tokens)
            drawn += rows
            texts += [text for sample in samples if (text := _text(sample, ends, tokenizer)).strip()]
    return Corpus(
        name=NAME,
        documents=tuple(
            Document(content={"text": text}, place=f"{NAME}, sample {number}") for number, text in enumerate(texts, 1)
        ),
    )


def write_corpus(corpus: Corpus, path: Path) -> None:
    """Write a corpus as JSONL, a document a line; it appears whole or not at all."""
    files.write(path, "".join(json.dumps(document.content) + "\n" for document in corpus.documents).encode())


def end_tokens(base: Base, tokenizer: Tokenizer) -> list[int]:
    """All that end a document: the tokenizer's eos, and those the model's own generation settings name."""
    named = base.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return sorted(token for token in ids if token is not None)


def _continued(base: Base, *, start: int, ends: list[int], rows: int, tokens: int) -> Int[Tensor, "rows t"]:
    """Samples, the start token left out, padded with an end token (with 0 where the model has none and needs none)."""
    model: Any = base  # torch types a module's method as a tensor
    own = model.generation_config  # a repetition penalty or top-k of its own would fill in for what we leave out
    plain = type(own)(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens, use_cache=True,
        bos_token_id=start, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0,
    )  # fmt: skip
    ids = torch.full((rows, 1), start, device=base.device)
    model.generation_config = plain
    try:
        made: Tensor = model.generate(inputs=ids, attention_mask=torch.ones_like(ids), generation_config=plain)
    finally:
        model.generation_config = own
    return made[:, 1:]


def _text(sample: Int[Tensor, " t"], ends: list[int], tokenizer: Tokenizer) -> str:
    """A sample up to its first end token; other special tokens stay, as what the base said."""
    ids = sample.tolist()
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    text = str(tokenizer.decode(ids[:length], clean_up_tokenization_spaces=False))
    return text.rstrip("\ufffd")  # of a character cut off in the middle of its bytes
