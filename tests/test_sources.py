"""Finding models: folders, a hub client's cache, trainers' output folders, GGUF files; which model one is."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import holdfast
from holdfast import models, sources
from holdfast.errors import ModelError
from tuned import ALL, LM, adapter, shaken, tuned_model, write_gguf

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that make the models, as anyone would


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub client's cache with org/kelp in two revisions, as downloads leave it."""
    import huggingface_hub.constants

    root = tmp_path / "hub" / "models--org--kelp"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(tiny, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return root


def test_a_hub_id_is_found_in_the_clients_cache_at_its_revision(hub: Path) -> None:
    assert models.locate("org/kelp") == hub / "snapshots" / ("a" * 40)
    assert models.locate(f"org/kelp@{'b' * 40}") == hub / "snapshots" / ("b" * 40)
    base = models.load_base(f"org/kelp@{'b' * 40}", dtype="float32", device="cpu")
    assert base.name_or_path == "org/kelp"  # what an adapter trained on it will name
    with pytest.raises(ModelError, match=r"'org/absent' is no folder here and cannot be fetched from the hub"):
        models.locate("org/absent")
    for path in ("./absent", "/absent/model", "a/b/c"):
        with pytest.raises(ModelError, match="expected a folder or file there"):
            models.locate(path)


def names(path: Path) -> list[tuple[str, int | None]]:
    return [(c.path.relative_to(path).as_posix(), c.step) for c in sources.candidates(path, spec=str(path))]


def test_a_trainers_folder_is_its_checkpoints_in_step_order(tiny: Path, tmp_path: Path) -> None:
    lora = adapter(tiny, peft.LoraConfig(r=2, target_modules=ALL, **LM), tmp_path / "lora")
    outputs = tmp_path / "outputs"
    for step in (100, 20, 3):
        shutil.copytree(lora, outputs / f"checkpoint-{step}")
    (outputs / "checkpoint-best").mkdir()
    (outputs / "runs").mkdir()
    assert names(outputs) == [("checkpoint-3", 3), ("checkpoint-20", 20), ("checkpoint-100", 100)]
    for file in lora.iterdir():
        shutil.copy(file, outputs / file.name)
    (outputs / "trainer_state.json").write_text(json.dumps({"global_step": 120}))
    assert names(outputs)[-1] == (".", 120)
    assert all(candidate.adapter for candidate in sources.candidates(outputs, spec="outputs"))


def test_one_of_our_runs_is_its_adapter(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "abc"
    adapter(tiny, peft.LoraConfig(r=2, target_modules=ALL, **LM), run / "adapter")
    (run / "config.json").write_text("{}")
    assert names(run) == [("adapter", None)]


def test_the_base_is_named_by_the_adapter_with_its_revision(tiny: Path, tmp_path: Path) -> None:
    lora = adapter(tiny, peft.LoraConfig(r=2, target_modules=ALL, **LM), tmp_path / "lora")
    (found,) = sources.candidates(lora, spec="lora")
    assert sources.named_base([found]) == str(tiny)
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base"):
        sources.named_base([found])


def test_the_fingerprint_is_of_what_a_model_is(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert sources.files_fingerprint(copy) == sources.files_fingerprint(tiny)
    (copy / "README.md").write_text("A copy.")
    assert sources.files_fingerprint(copy) == sources.files_fingerprint(tiny)
    settings = copy / "generation_config.json"
    named = settings.read_text()
    settings.write_text(json.dumps(json.loads(named) | {"eos_token_id": [0, 7]}))  # other texts, from the same weights
    assert sources.files_fingerprint(copy) != sources.files_fingerprint(tiny)
    settings.write_text(named)
    assert sources.files_fingerprint(copy) == sources.files_fingerprint(tiny)
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-6
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert sources.files_fingerprint(copy) != sources.files_fingerprint(tiny)


def test_a_head_is_compared_without_loading_the_model(tiny: Path, tmp_path: Path) -> None:
    layers = tuned_model(tiny, tmp_path / "layers", lambda m: shaken(m, std=0.1, only=lambda name: "layers" in name))
    everything = tuned_model(tiny, tmp_path / "everything", lambda m: shaken(m, std=0.1))
    assert sources.head_in_files(layers) == sources.head_in_files(tiny) is not None
    assert sources.head_in_files(everything) != sources.head_in_files(tiny)
    lora, head = (
        adapter(tiny, peft.LoraConfig(r=2, target_modules=modules, **LM), tmp_path / name)
        for name, modules in (("lora", ALL), ("head", [*ALL, "lm_head"]))
    )
    assert not sources.changes_head(*sources.candidates(lora, spec="lora"))
    assert sources.changes_head(*sources.candidates(head, spec="head"))


def test_a_gguf_file_is_a_model(tiny: Path, tmp_path: Path, kelp: Path, cache: Path) -> None:
    """Written by llama.cpp's own library: as a base, as a tuned model, with the same numbers as the folder's."""
    moved = tuned_model(tiny, tmp_path / "moved", lambda m: shaken(m, std=0.05, only=lambda name: "layers" in name))
    files = {folder: write_gguf(folder, tmp_path / f"{folder.name}.gguf") for folder in (tiny, moved)}
    ids = torch.arange(3, 40)[None]
    loaded = (models.load_base(str(path), dtype="float32", device="cpu") for path in (tiny, files[tiny]))
    states = [models.hidden_states(model, ids=ids, positions=torch.arange(37)[None]) for model in loaded]
    assert torch.allclose(*states, atol=1e-5)
    text = "Kelp grows on rock in 1843."
    assert (
        models.load_tokenizer(str(files[tiny]))(text)["input_ids"]
        == AutoTokenizer.from_pretrained(tiny)(text)["input_ids"]
    )
    expected = holdfast.measure(base=str(tiny), tuned=str(moved), texts=[str(kelp)], dtype="float32")["kelp"]
    for base, tuned in ((tiny, files[moved]), (files[tiny], files[moved])):
        got = holdfast.measure(base=str(base), tuned=str(tuned), texts=[str(kelp)], dtype="float32")["kelp"]
        assert got.kl_base_tuned.value == pytest.approx(expected.kl_base_tuned.value, abs=1e-5)


def test_the_hub_is_asked_as_often_for_three_checkpoints_as_for_one(
    hub: Path, tiny: Path, tmp_path: Path, kelp: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    for step in (1, 2, 3):
        adapter(tiny, peft.LoraConfig(r=2, target_modules=ALL, **LM), tmp_path / f"outputs/checkpoint-{step}")
    asked = []
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append(a) or real(*a, **k))
    counts = []
    for tuned in ("outputs/checkpoint-1", "outputs"):
        asked.clear()
        holdfast.measure(base="org/kelp", tuned=str(tmp_path / tuned), texts=[str(kelp)], dtype="float32")
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0
