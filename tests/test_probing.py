"""`holdfast.probe` from end to end on a real tiny model: the same model twice, trajectories, the cache, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import holdfast
from holdfast import answering, basecache, models, probes
from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.proportions import PairedShares
from tuned import ALL, LM, adapter, shaken, tuned_model

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore"),  # of the libraries that make the models, as anyone would
]

PROTOCOLS = ("character", "token", "total", "letter")


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    """Thirty questions in ARC's shape, of two to five choices."""
    rows = [
        {
            "id": f"q{i}",
            "question": f"How many stalks are {i} and {i % 7}?",
            "choices": {"text": [f"{i + k} stalks of kelp"[: 9 + 4 * k] for k in range(2 + i % 4)],
                        "label": ["A", "B", "C", "D", "E"][: 2 + i % 4]},
            "answerKey": "AB"[i % 2],
        }
        for i in range(30)
    ]  # fmt: skip
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def checkpoints(tiny: Path, tmp_path: Path) -> Path:
    """A trainer's output folder: checkpoint-2, -10 and -30, ever further away."""
    for step, std in ((10, 0.1), (2, 0.02), (30, 0.5)):
        adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / f"outputs/checkpoint-{step}", std=std)
    return tmp_path / "outputs"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_model_twice_answers_the_same(dtype: str, tiny: Path, tmp_path: Path, quiz: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    fresh = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "fresh", std=0)
    report = holdfast.probe(
        base=str(tiny), tuned=[str(copy), str(fresh)], tasks=[str(quiz)], protocols=PROTOCOLS, dtype=dtype
    )
    results = [result for _, result in report.rows()]
    assert len(results) == 2 * len(PROTOCOLS)
    for result in results:
        assert (result.agreement.count, result.agreement.n) == (30, 30)
        assert result.accuracy.verdict == "identical"
        assert result.chance_adjusted_agreement.value == 1
        assert result.chance_adjusted_forgetting.value == 0
        assert not result.change().any()
        assert [b.tolist() for b in result.base_scores] == [t.tolist() for t in result.tuned_scores]


def test_a_folder_of_checkpoints_is_a_trajectory_and_the_base_answers_once(
    checkpoints: Path, tiny: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = answering.log_likelihoods
    monkeypatch.setattr(probes.answering, "log_likelihoods", lambda *a, **k: asked.append(1) or real(*a, **k))
    report = holdfast.probe(tuned=str(checkpoints), tasks=[str(quiz)], dtype="float32")
    first = len(asked)
    assert [model.step for model in report.models] == [2, 10, 30]
    assert report.base == str(tiny)  # named by the adapters' own configs
    moved = [np.mean(result.change()) for _, result in report.rows()]
    assert moved == sorted(moved)
    again = holdfast.probe(base=str(tiny), tuned=str(checkpoints), tasks=[str(quiz)], dtype="float32")
    assert len(asked) - first < first
    assert again.to_dict() == report.to_dict()
    single = holdfast.probe(tuned=str(checkpoints / "checkpoint-30"), tasks=[str(quiz)], dtype="float32")
    assert single["quiz"].to_dict() == report["quiz"].to_dict()


def test_every_number_can_be_made_again_from_the_items(checkpoints: Path, quiz: Path, tmp_path: Path) -> None:
    report = holdfast.probe(tuned=str(checkpoints), tasks=[str(quiz)], protocols=PROTOCOLS, dtype="float32")
    report.to_frame().to_parquet(tmp_path / "items.parquet")
    frame = pd.read_parquet(tmp_path / "items.parquet")
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    for model in told["models"]:
        for result in model["results"]:
            rows = frame.query("model == @model['tuned'] and protocol == @result['protocol']['scoring']")
            right = [(rows[who] == rows["answer"]).to_numpy() for who in ("base", "tuned")]
            assert result["accuracy"] == PairedShares.of(base=right[0], tuned=right[1]).to_dict()
            assert result["agreement"]["count"] == (rows["base"] == rows["tuned"]).sum()
            assert [int(np.argmax(scores)) for scores in rows["tuned_scores"]] == rows["tuned"].tolist()
    assert frame["step"].tolist() == [step for step in (2, 10, 30) for _ in range(4 * 30)]


def test_another_base_tokenizer_item_form_or_dtype_is_never_answered_from_the_cache(
    checkpoints: Path, tiny: Path, tmp_path: Path, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R11 through the front door: what is mutated is asked anew, what is not is found."""
    loaded = []
    real = models.load_base
    monkeypatch.setattr(models, "load_base", lambda spec, **k: loaded.append(spec) or real(spec, **k))

    def misses(**changed: Any) -> bool:
        before = len(loaded)
        arguments: dict[str, Any] = {
            "base": str(tiny), "tuned": str(checkpoints / "checkpoint-2"), "tasks": [str(quiz)], "dtype": "float32",
        }  # fmt: skip
        holdfast.probe(**(arguments | changed))
        return len(loaded) - before > 1  # the adapter's own, and the base's where it was asked

    assert misses()
    assert not misses()
    assert not misses(tuned=str(checkpoints / "checkpoint-10"))  # the adapter is no part of the base
    assert not misses(protocols=["token", "total"])  # the same numbers, divided in another way
    assert misses(protocols=["letter"])
    assert misses(dtype="bfloat16")
    assert misses(limit=29)
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert not misses(base=str(copy))  # what it is counts, not where it lies
    other = tmp_path / "other.jsonl"
    other.write_text(quiz.read_text().replace("How many", "How few", 1))
    assert misses(tasks=[str(other)])
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": "<|im_end|>"}))
    assert misses(base=str(copy))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert misses(base=str(copy))
    moved = tuned_model(tiny, tmp_path / "moved", lambda m: shaken(m, std=1e-4))
    assert misses(base=str(moved))
    monkeypatch.setattr(basecache, "version", lambda _name: "0")
    assert misses()
    monkeypatch.setattr(answering, "BATCH_TOKENS", 64)
    assert misses()


def test_virtual_tokens_are_compared_with_a_base_asked_in_the_same_rows(tiny: Path, tmp_path: Path, quiz: Path) -> None:
    prompts = adapter(tiny, peft.PromptTuningConfig(num_virtual_tokens=3, **LM), tmp_path / "prompts")
    lora = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "lora", std=0)
    report = holdfast.probe(base=str(tiny), tuned=[str(prompts), str(lora)], tasks=[str(quiz)], dtype="float32")
    assert report.models[0].results[0].change().max() > 0
    assert not report.models[1].results[0].change().any()


def test_a_model_whose_state_passes_from_token_to_token_is_asked_a_choice_at_a_time(
    tiny: Path, tmp_path: Path, quiz: Path
) -> None:
    torch.manual_seed(0)
    folder = Path(shutil.copytree(tiny, tmp_path / "mamba"))
    config = MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, initializer_range=0.5)
    (folder / "model.safetensors").unlink()
    MambaForCausalLM(config).save_pretrained(folder)
    report = holdfast.probe(base=str(folder), tuned=str(folder), tasks=[str(quiz)], dtype="float32")
    assert report["quiz"].agreement.value == 1


def test_a_broken_checkpoint_is_named_and_the_others_are_probed(checkpoints: Path, quiz: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoints / "checkpoint-10" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path)
    report = holdfast.probe(tuned=str(checkpoints), tasks=[str(quiz)], dtype="float32")
    assert [model.failure is None for model in report.models] == [True, False, True]
    assert "not probed: adapter" in str(report)
    path.write_bytes(path.read_bytes()[:-40])
    report = holdfast.probe(tuned=str(checkpoints), tasks=[str(quiz)], dtype="float32")
    assert "adapter_model.safetensors" in str(report.models[1].failure)
    save_file(weights, path)
    with pytest.raises(ModelError, match="NaN"):
        holdfast.probe(tuned=str(checkpoints / "checkpoint-10"), tasks=[str(quiz)], dtype="float32")


def test_what_cannot_be_asked_is_refused(tiny: Path, quiz: Path, tmp_path: Path) -> None:
    both: dict[str, Any] = {"base": str(tiny), "tuned": str(tiny), "dtype": "float32"}
    other = tmp_path / "other" / quiz.name
    other.parent.mkdir()
    other.write_text("".join(reversed(quiz.read_text().splitlines(keepends=True)[1:])))
    for changed, error, message in (
        ({"tasks": []}, ConfigError, "expected at least one task"),
        ({"tasks": [str(quiz)] * 2}, ConfigError, "each once"),
        ({"tasks": [str(quiz)], "protocols": ["best"]}, ConfigError, r"got \['best'\], expected some of character"),
        ({"tasks": [str(quiz)], "limit": 0}, ConfigError, "expected at least 1 item"),
        ({"tasks": [str(quiz)], "dtype": "int8"}, ConfigError, "expected auto, bfloat16 or float32"),
        ({"tasks": [str(quiz), str(other)]}, DataError, "expected a name of its own each"),
        ({"tasks": ["absent.jsonl"]}, DataError, "expected a file of items there"),
    ):
        with pytest.raises(error, match=message):
            holdfast.probe(**(both | changed))


def test_progress_only_rises_and_ends_at_one(checkpoints: Path, quiz: Path) -> None:
    told: list[tuple[str, float]] = []
    holdfast.probe(
        tuned=str(checkpoints), tasks=[str(quiz)], dtype="float32", protocols=PROTOCOLS,
        tell=lambda what, share: told.append((what, share)),
    )  # fmt: skip
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert any("checkpoint-30 on quiz" in what for what, _ in told)
