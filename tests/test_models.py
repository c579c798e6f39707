"""Loading, adapters and hidden states on a tiny real model on disk."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast import models
from holdfast.config import Adapter
from holdfast.errors import ModelError

IDS = torch.arange(3, 40)[None]


def base_of(folder: Path) -> models.Base:
    return models.load_base(str(folder), dtype="float32", device="cpu")


def states(model: models.Base | models.Tuned, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return models.hidden_states(model, ids=ids, positions=torch.arange(ids.shape[1])[None])


def test_a_fresh_adapter_changes_nothing_and_comes_off_without_a_trace(tiny: Path) -> None:
    base = base_of(tiny)
    before, weights = states(base), models.weights_fingerprint(base)
    tuned = models.attach_adapter(base, Adapter(r=4), seed=1)
    assert torch.equal(states(tuned), before)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(states(tuned), before)
    again = models.detach_adapter(tuned)
    assert torch.equal(states(again), before)
    assert models.weights_fingerprint(again) == weights
    assert not any("lora" in name for name, _ in again.named_parameters())


def test_trainable_params_are_counted_by_hand(tiny: Path) -> None:
    """Rank times (in + out) over the seven maps of each of two layers; 32 wide, 64 inside, 2 of 4 heads for keys."""
    one = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    for r in (1, 8):
        tuned = models.attach_adapter(base_of(tiny), Adapter(r=r), seed=0)
        assert models.trainable_params(tuned) == r * one
    tuned = models.attach_adapter(base_of(tiny), Adapter(r=2, target_modules=("q_proj",)), seed=0)
    assert models.trainable_params(tuned) == 2 * 2 * (32 + 32)


def test_the_seed_alone_decides_the_adapter(tiny: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(int(torch.rand(()) * 1e6))
        tuned = models.attach_adapter(base_of(tiny), Adapter(r=2), seed=seed)
        return torch.cat([p.detach().flatten() for p in tuned.parameters() if p.requires_grad])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_rank_stabilised_scaling_is_the_papers(tiny: Path) -> None:
    for adapter, scale in ((Adapter(r=16), 1 / 4), (Adapter(r=16, use_rslora=False, lora_alpha=8), 8 / 16)):
        tuned = models.attach_adapter(base_of(tiny), adapter, seed=0)
        (found,) = {m.scaling["default"] for m in tuned.modules() if isinstance(getattr(m, "scaling", None), dict)}
        assert found == pytest.approx(scale)


def test_saved_and_loaded_is_the_same_as_in_memory(tiny: Path, tmp_path: Path) -> None:
    tuned = models.attach_adapter(base_of(tiny), Adapter(r=4), seed=1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = states(tuned)
    models.save_adapter(tuned, tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(states(models.load_adapter(base_of(tiny), str(tmp_path / "adapter"))), expected)


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


def test_a_probe_picks_one_of_two_precisions() -> None:
    assert models.fastest_dtype("cpu") in ("bfloat16", "float32")


def test_a_hub_id_may_name_a_revision() -> None:
    assert models.locate("org/name@abc") == ("org/name", "abc")
    assert models.locate("org/name") == ("org/name", None)
    with pytest.raises(ModelError, match="expected one of"):
        models.locate("builtin:gpt5")


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


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
    with pytest.raises(ModelError, match="cannot be loaded"):
        base_of(copied)


def test_a_pickle_is_never_read(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        base_of(copied)


def test_a_head_that_scales_is_refused(copied: Path) -> None:
    """Granite divides its logits: hidden states times the head are not the logits, and the metrics would be wrong."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=7.0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(copied)
    with pytest.raises(ModelError, match=r"granite.*expected a plain linear output head"):
        base_of(copied)


def test_adapters_that_do_not_fit_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a PEFT adapter folder"):
        models.load_adapter(base_of(tiny), str(tmp_path))
    with pytest.raises(ModelError, match="adapter cannot be put on llama"):
        models.attach_adapter(base_of(tiny), Adapter(r=2, target_modules=("nowhere",)), seed=0)
    with pytest.raises(ModelError, match=r"changes the output head at adapter.target_modules"):
        models.attach_adapter(base_of(tiny), Adapter(r=2, target_modules=("lm_head",)), seed=0)


def test_an_adapter_for_other_shapes_or_with_nan_is_refused(tiny: Path, tmp_path: Path) -> None:
    models.save_adapter(models.attach_adapter(base_of(tiny), Adapter(r=4), seed=1), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ModelError, match="cannot be put on this base"):
        models.load_adapter(base_of(tiny), str(tmp_path / "a"))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = torch.inf
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="NaN or infinity in"):
        models.load_adapter(base_of(tiny), str(tmp_path / "a"))
