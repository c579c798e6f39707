"""Adapters on a tiny real model: put on, taken off, saved, merged; whatever method PEFT knows."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast import adapters, counts, models
from holdfast.errors import ModelError
from holdfast.methods import Lora

IDS = torch.arange(3, 40)[None]


def base_of(folder: Path) -> models.Base:
    return models.load_base(str(folder), dtype="float32", device="cpu")


def states(model: models.Base | models.Tuned, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return models.hidden_states(model, ids=ids, positions=torch.arange(ids.shape[1])[None])


def test_a_fresh_adapter_changes_nothing_and_comes_off_without_a_trace(tiny: Path) -> None:
    base = base_of(tiny)
    before, weights = states(base), models.weights_fingerprint(base)
    tuned = adapters.attach_adapter(base, Lora(r=4), seed=1)
    assert torch.equal(states(tuned), before)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(states(tuned), before)
    adapters.detach_adapter(tuned)
    assert torch.equal(states(base), before)
    assert models.weights_fingerprint(base) == weights
    assert not any("lora" in name for name, _ in base.named_parameters())


def test_trainable_params_are_counted_by_hand(tiny: Path) -> None:
    """Rank times (in + out) over the seven maps of each of two layers; 32 wide, 64 inside, 2 of 4 heads for keys."""
    one = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
    for r in (1, 8):
        tuned = adapters.attach_adapter(base_of(tiny), Lora(r=r), seed=0)
        assert counts.trainable_params(tuned) == r * one
    tuned = adapters.attach_adapter(base_of(tiny), Lora(r=2, target_modules=("q_proj",)), seed=0)
    assert counts.trainable_params(tuned) == 2 * 2 * (32 + 32)


def test_the_seed_alone_decides_the_adapter(tiny: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(int(torch.rand(()) * 1e6))
        tuned = adapters.attach_adapter(base_of(tiny), Lora(r=2), seed=seed)
        return torch.cat([p.detach().flatten() for p in tuned.parameters() if p.requires_grad])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_rank_stabilised_scaling_is_the_papers(tiny: Path) -> None:
    for adapter, scale in ((Lora(r=16), 1 / 4), (Lora(r=16, use_rslora=False, lora_alpha=8), 8 / 16)):
        tuned = adapters.attach_adapter(base_of(tiny), adapter, seed=0)
        (found,) = {m.scaling["default"] for m in tuned.modules() if isinstance(getattr(m, "scaling", None), dict)}
        assert found == pytest.approx(scale)


def test_saved_and_loaded_is_the_same_as_in_memory(tiny: Path, tmp_path: Path) -> None:
    tuned = adapters.attach_adapter(base_of(tiny), Lora(r=4), seed=1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = states(tuned)
    adapters.save_adapter(tuned, tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(states(adapters.load_adapter(base_of(tiny), str(tmp_path / "adapter"))), expected)


def test_adapters_that_do_not_fit_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a PEFT adapter folder"):
        adapters.load_adapter(base_of(tiny), str(tmp_path))
    with pytest.raises(ModelError, match="adapter cannot be put on llama"):
        adapters.attach_adapter(base_of(tiny), Lora(r=2, target_modules=("nowhere",)), seed=0)
    with pytest.raises(ModelError, match="changes the output head at adapter, expected"):
        adapters.attach_adapter(base_of(tiny), Lora(r=2, target_modules=("lm_head",)), seed=0)


def test_an_adapter_for_other_shapes_or_with_nan_is_refused(tiny: Path, tmp_path: Path) -> None:
    adapters.save_adapter(adapters.attach_adapter(base_of(tiny), Lora(r=4), seed=1), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ModelError, match="cannot be put on this base"):
        adapters.load_adapter(base_of(tiny), str(tmp_path / "a"))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    next(iter(weights.values()))[0] = torch.inf
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="NaN or infinity in"):
        adapters.load_adapter(base_of(tiny), str(tmp_path / "a"))


def test_an_adapter_that_finds_no_place_is_refused_and_not_a_no_op(tiny: Path, tmp_path: Path) -> None:
    """Loaded as if nothing were wrong it would do nothing, and be reported to have forgotten exactly nothing."""
    adapters.save_adapter(adapters.attach_adapter(base_of(tiny), Lora(r=4), seed=1), tmp_path / "a")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    renamed = {name.replace("model.layers", "model.language_model.layers"): w for name, w in weights.items()}
    save_file(renamed, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="have no place on this base"):
        adapters.load_adapter(base_of(tiny), str(tmp_path / "a"))


def test_a_pickled_adapter_is_never_read(tiny: Path, tmp_path: Path) -> None:
    adapters.save_adapter(adapters.attach_adapter(base_of(tiny), Lora(r=4), seed=1), tmp_path / "a")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    torch.save(weights, tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickles are not read"):
        adapters.load_adapter(base_of(tiny), str(tmp_path / "a"))
