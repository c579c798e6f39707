"""Loading, hidden states and heads on a tiny real model on disk."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast import models
from holdfast.errors import ModelError

IDS = torch.arange(3, 40)[None]


def base_of(folder: Path) -> models.Base:
    return models.load_base(str(folder), dtype="float32", device="cpu")


def states(model: models.Base, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return models.hidden_states(model, ids=ids, positions=torch.arange(ids.shape[1])[None])


def test_packed_documents_do_not_see_each_other(tiny: Path) -> None:
    """A metamorphic check of the attention border: packed, each document's states are those it has alone."""
    base = base_of(tiny)
    one, two = IDS[:, :15], IDS[:, 15:]
    positions = torch.cat([torch.arange(15), torch.arange(two.shape[1])])[None]
    with torch.no_grad():
        packed = models.hidden_states(base, ids=IDS, positions=positions)
    assert torch.allclose(packed, torch.cat([states(base, one), states(base, two)], 1), atol=1e-5)
    assert not torch.allclose(packed[:, 15:], states(base)[:, 15:], atol=1e-2)


def test_right_padding_is_not_seen(tiny: Path) -> None:
    base = base_of(tiny)
    padded = torch.cat([IDS, torch.zeros(1, 9, dtype=torch.int64)], 1)
    assert torch.allclose(states(base, padded)[:, : IDS.shape[1]], states(base), atol=1e-5)


def test_only_built_in_models_are_built_in() -> None:
    with pytest.raises(ModelError, match="expected one of"):
        models.locate("builtin:gpt5")


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_no_tokenizer_ends_a_text_by_itself(copied: Path) -> None:
    """Some of Llama's kind put an end behind whatever they cut; behind a prompt, what follows would follow an end."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, LlamaTokenizer

    plain = models.load_tokenizer(str(copied))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}
    usual = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=True, add_eos_token=True)
    usual.save_pretrained(copied)
    assert AutoTokenizer.from_pretrained(copied)("a")["input_ids"] == [1, 5, 2]
    assert models.load_tokenizer(str(copied))("a")["input_ids"] == [1, 5]
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    plain.save_pretrained(copied)
    assert AutoTokenizer.from_pretrained(copied)("a")["input_ids"][-1] == 0
    assert 0 not in models.load_tokenizer(str(copied))("a")["input_ids"]


def test_weights_that_are_not_numbers_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinity in model.layers.0.self_attn.q_proj.weight"):
        base_of(copied)


def test_truncated_weights_are_refused(copied: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="unreadable weights"):
        base_of(copied)


def test_a_pickle_is_never_read(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        base_of(copied)


def test_a_head_that_is_more_than_we_know_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite divides its logits. Were that not known, hidden states times the head would silently be wrong."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=7.0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(copied)
    assert models.head_of(base_of(copied)).plain
    monkeypatch.setattr(models, "_logit_scale", lambda _model: 1.0)
    with pytest.raises(ModelError, match=r"granite.*cannot be measured yet"):
        base_of(copied)


def test_a_model_without_some_of_its_weights_is_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    save_file({k: w for k, w in weights.items() if "1.mlp" not in k}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"got no weights for model.layers.1.mlp.down_proj.weight"):
        base_of(copied)
