"""Text sampled from the base: its own distribution whatever settings it came with, reproducible, and kept as a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.corpora import read_corpus
from holdfast.errors import ModelError
from holdfast.models import Base, Tokenizer, load_base, load_tokenizer
from holdfast.sampling import sample_corpus, write_corpus


@pytest.fixture
def base(tiny: Path) -> Base:
    return load_base(str(tiny), dtype="float32", device="cpu")


@pytest.fixture
def tokenizer(tiny: Path) -> Tokenizer:
    return load_tokenizer(str(tiny))


def sampled(base: Base, tokenizer: Tokenizer, seed: int = 0, documents: int = 6, tokens: int = 12) -> list[str]:
    corpus = sample_corpus(base, tokenizer=tokenizer, documents=documents, tokens=tokens, seed=seed)
    assert corpus.name == "self"
    assert [d.place for d in corpus.documents] == [f"self, sample {k}" for k in range(1, documents + 1)]
    texts = [document.content["text"] for document in corpus.documents]
    assert all(text.strip() for text in texts)
    return texts


def test_a_seed_is_a_text_and_nothing_else_moves(
    base: Base, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    base.train()
    base.model.norm.eval()
    settings, weights = base.generation_config, {name: p.clone() for name, p in base.named_parameters()}
    first = sampled(base, tokenizer, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert base.training
    assert not base.model.norm.training
    assert base.generation_config is settings
    assert all(torch.equal(weights[name], p) for name, p in base.named_parameters())
    assert sampled(base.eval(), tokenizer, seed=1) == first
    assert sampled(base, tokenizer, seed=2) != first
    assert capfd.readouterr() == ("", "")


def test_samples_follow_the_models_own_distribution(base: Base, tokenizer: Tokenizer) -> None:
    """First tokens against the softmax, under settings that would bend it."""
    with torch.no_grad():
        share = base(torch.tensor([[tokenizer.eos_token_id]])).logits[0, -1].double().softmax(-1).numpy()
    for name, value in {"temperature": 0.2, "top_k": 2, "repetition_penalty": 3.0, "max_length": 2}.items():
        setattr(base.generation_config, name, value)
    decoded = [tokenizer.decode([token]) for token in range(len(share))]
    plain = np.array([text.isascii() and bool(text.strip()) and i > 2 for i, text in enumerate(decoded)])
    texts = sampled(base, tokenizer, documents=3000, tokens=1)
    counts = np.array([texts.count(text) for text in decoded])[plain]
    assert chi_square(counts, share[plain] / share[plain].sum()) < 1.3
    assert chi_square(counts, np.roll(share[plain], 1) / share[plain].sum()) > 1.5  # the test can tell


def test_a_model_that_is_sure_says_what_it_would_without_a_cache(base: Base, tokenizer: Tokenizer) -> None:
    base.model.norm.weight.data.mul_(1000)
    ids = torch.tensor([[tokenizer.eos_token_id]])
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, base(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = tokenizer.decode(ids[0, 1:]).split("<|end|>")[0].rstrip("\ufffd")
    assert sampled(base, tokenizer, documents=3, tokens=20) == [expected] * 3


def test_an_end_token_ends_a_document_and_an_empty_one_is_replaced(base: Base, tokenizer: Tokenizer) -> None:
    """Ends named by the model's settings count too, as Llama 3's do."""
    assert any("e" in text for text in sampled(base, tokenizer, documents=40))
    base.generation_config.eos_token_id = [t for t in range(len(tokenizer)) if "e" in tokenizer.decode([t])]
    assert not any("e" in text for text in sampled(base, tokenizer, documents=40))
    base.generation_config.eos_token_id = list(range(len(tokenizer)))
    with pytest.raises(ModelError, match="got 36 empty documents among 36 sampled from the base, expected 4 with text"):
        sampled(base, tokenizer, documents=4)


def test_a_model_without_a_start_token_is_refused(base: Base, tokenizer: Tokenizer) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a bos nor an eos"):
        sampled(base, tokenizer)


def test_samples_come_back_from_their_file(base: Base, tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = sample_corpus(base, tokenizer=tokenizer, documents=20, tokens=30, seed=3)
    write_corpus(corpus, tmp_path / "self.jsonl")
    again = read_corpus(str(tmp_path / "self.jsonl"))
    assert (again.name, again.fingerprint) == (corpus.name, corpus.fingerprint)
    assert [path.name for path in tmp_path.iterdir()] == ["self.jsonl"]


def chi_square(counts: np.ndarray, share: np.ndarray) -> float:
    """Per degree of freedom, over classes expected five times or more and one of all the rest."""
    expected = share * counts.sum()
    big = expected >= 5
    observed, wanted = (np.append(x[big], x[~big].sum()) for x in (counts, expected))
    return float(((observed - wanted) ** 2 / wanted).sum() / (len(wanted) - 1))
