"""`holdfast.measure` from end to end on a real tiny model: trajectories, the cache, precision, passages."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoTokenizer

import holdfast
import naive
from holdfast import audit, basecache, meter
from holdfast.corpora import read_corpus
from holdfast.errors import ConfigError, DataError, ModelError
from holdfast.stats import ratio_of_sums
from tuned import ALL, LM, adapter, compared, shaken, tuned_model

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore"),  # of the libraries that the naive side uses as anyone would
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_model_twice_has_forgotten_exactly_nothing(dtype: str, tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """A copy, an untrained adapter, and an untrained adapter whose head was saved: by both ways of measuring."""
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = peft.LoraConfig(r=4, target_modules=ALL, modules_to_save=["lm_head"], **LM)
    fresh = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "fresh", std=0)
    saved = adapter(tiny, config, tmp_path / "saved", std=0)
    report = holdfast.measure(base=str(tiny), tuned=[str(copy), str(fresh), str(saved)], texts=[str(kelp)], dtype=dtype)
    for checkpoint, text in report.rows():
        assert not text.sums["kl_base_tuned"].any(), checkpoint.name
        assert text.agreement.value == 1
        assert text.excess_nll.value == 0
        assert text.verdict() == "identical"
        assert text.passages == ()


@pytest.fixture
def checkpoints(tiny: Path, tmp_path: Path) -> Path:
    """A trainer's output folder: checkpoint-2, -10 and -30, ever further away."""
    for step, std in ((10, 0.1), (2, 0.05), (30, 0.2)):
        adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / f"outputs/checkpoint-{step}", std=std)
    return tmp_path / "outputs"


def test_a_folder_of_checkpoints_is_a_trajectory_and_the_base_is_loaded_once(
    checkpoints: Path, tiny: Path, kelp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = []
    real = audit.observe
    monkeypatch.setattr(audit, "observe", lambda *a, **k: observed.append(1) or real(*a, **k))
    report = holdfast.measure(tuned=str(checkpoints), texts=[str(kelp)], dtype="float32")
    assert [checkpoint.step for checkpoint in report.checkpoints] == [2, 10, 30]
    forgetting = [text.kl_base_tuned.value for _, text in report.rows()]
    assert forgetting == sorted(forgetting)
    assert report.base == str(tiny)  # named by the adapters' own configs
    assert len(observed) == 1
    again = holdfast.measure(base=str(tiny), tuned=str(checkpoints), texts=[str(kelp)], dtype="float32")
    assert len(observed) == 1  # kept on disk
    assert again.to_dict() == report.to_dict()
    single = holdfast.measure(tuned=str(checkpoints / "checkpoint-30"), texts=[str(kelp)], dtype="float32")
    assert single["kelp"].to_dict() == report["kelp"].to_dict()


def test_a_broken_checkpoint_is_named_and_the_others_are_measured(checkpoints: Path, kelp: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = checkpoints / "checkpoint-10" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path)
    report = holdfast.measure(tuned=str(checkpoints), texts=[str(kelp)], dtype="float32")
    assert [checkpoint.failure is None for checkpoint in report.checkpoints] == [True, False, True]
    assert "NaN" in str(report.checkpoints[1].failure)
    assert report.checkpoints[1].texts == {}
    with pytest.raises(ModelError, match="NaN"):
        holdfast.measure(tuned=str(checkpoints / "checkpoint-10"), texts=[str(kelp)], dtype="float32")


def test_a_checkpoint_cut_short_is_named_and_the_others_are_measured(checkpoints: Path, kelp: Path) -> None:
    """As a full disk or a copy that was stopped leaves the last one: seen in its file, before anything is loaded."""
    path = checkpoints / "checkpoint-30" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    report = holdfast.measure(tuned=str(checkpoints), texts=[str(kelp)], dtype="float32")
    assert [bool(checkpoint.texts) for checkpoint in report.checkpoints] == [True, True, False]
    assert "adapter_model.safetensors" in str(report.checkpoints[2].failure)
    for name in ("checkpoint-2", "checkpoint-10"):
        shutil.rmtree(checkpoints / name)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        holdfast.measure(tuned=str(checkpoints), texts=[str(kelp)], dtype="float32")


def test_a_text_longer_than_learned_positions_is_refused(tiny: Path, kelp: Path, tmp_path: Path) -> None:
    """GPT-2's positions are rows of a table; Llama's are angles, and know no end."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = Path(shutil.copytree(tiny, tmp_path / "gpt2"))
    config = GPT2Config(vocab_size=400, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    both = {"base": str(folder), "tuned": str(folder), "texts": [str(kelp)], "dtype": "float32"}
    with pytest.raises(ModelError, match=r"expected at most the 32 .* at --context"):
        holdfast.measure(**both, context=64)
    assert holdfast.measure(**both, context=32)["kelp"].kl_base_tuned.value == 0


def test_the_base_of_adapters_of_two_bases_must_be_named(checkpoints: Path, kelp: Path) -> None:
    path = checkpoints / "checkpoint-2" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "another/base"}))
    with pytest.raises(ModelError, match="expected one base"):
        holdfast.measure(tuned=str(checkpoints), texts=[str(kelp)])


def many(folder: Path, documents: int) -> Path:
    """So many short documents of random words."""
    g = np.random.default_rng(1)
    words = ["kelp", "tide", "Rock", "holds", "fast", "12", "the", "a", "of", "grows", "slowly", "Brown", "fronds"]
    lines = (json.dumps({"text": f"{i} " + " ".join(g.choice(words, g.integers(10, 60)))}) for i in range(documents))
    path = folder / "many.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_precision_grows_a_nested_subset_until_the_interval_is_that_narrow(
    checkpoints: Path, tiny: Path, tmp_path: Path
) -> None:
    text = many(tmp_path, 200)
    tuned = str(checkpoints / "checkpoint-30")
    everything = holdfast.measure(tuned=tuned, texts=[str(text)], dtype="float32")["many"]
    low, high = everything.kl_base_tuned.interval()
    wide = 1.8 * (high - low) / 2
    report = holdfast.measure(tuned=tuned, texts=[str(text)], dtype="float32", precision=wide)["many"]
    low, high = report.kl_base_tuned.interval()
    assert (high - low) / 2 <= wide
    assert report.documents < everything.documents
    assert report.places == everything.places[: len(report.places)]
    impossible = holdfast.measure(tuned=tuned, texts=[str(text)], dtype="float32", precision=wide / 100)
    assert impossible["many"].documents == everything.documents
    assert any("not reached on many" in finding.what for finding in impossible.findings)


def test_stopping_when_narrow_keeps_the_interval_honest() -> None:
    """T2 with optional stopping, on simulated documents: a nominal 95 % interval holds the truth 92 to 97 in 100."""
    g = np.random.default_rng(0)
    for precision in (0.02, 0.012):
        held = []
        for _ in range(1000):
            count = g.integers(20, 200, 512)
            sums, n = g.gamma(4, 0.1 / 4, 512) * count, audit.FIRST_DOCUMENTS
            low, high = ratio_of_sums(sums[:n], count[:n]).interval()
            while (high - low) / 2 > precision and n < 512:
                n *= 2
                low, high = ratio_of_sums(sums[:n], count[:n]).interval()
            held.append(low <= 0.1 <= high)
        assert 0.92 <= np.mean(held) <= 0.97


def test_documents_and_tokens_add_up_however_the_text_is_cut(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, tuned = many(tmp_path, 50), str(checkpoints / "checkpoint-30")
    whole = holdfast.measure(tuned=tuned, texts=[str(text)], dtype="float32")["many"]
    monkeypatch.setattr(audit, "FIRST_DOCUMENTS", 3)
    monkeypatch.setattr(meter, "BATCH_TOKENS", 100)
    cut = holdfast.measure(tuned=tuned, texts=[str(text)], dtype="float32")["many"]
    assert cut.places == whole.places
    assert cut.count.tolist() == whole.count.tolist()
    assert cut.sums["kl_base_tuned"] == pytest.approx(whole.sums["kl_base_tuned"], abs=1e-4)
    assert cut.tokens is not None
    per_token = np.bincount(cut.tokens.document, cut.tokens.kl_base_tuned)
    assert per_token == pytest.approx(cut.sums["kl_base_tuned"], abs=1e-4)
    assert [p.token for p in cut.passages] == [p.token for p in whole.passages]


def test_passages_are_the_greatest_falls_and_say_what_both_models_would(
    checkpoints: Path, tiny: Path, kelp: Path
) -> None:
    folder = checkpoints / "checkpoint-30"
    report = holdfast.measure(tuned=str(folder), texts=[str(kelp)], dtype="float32")["kelp"]
    falls = [passage.fall for passage in report.passages]
    assert falls == sorted(falls, reverse=True)
    assert falls[0] > 0
    texts = {document.place: document.content["text"] for document in read_corpus(str(kelp)).documents}
    best = -1.0
    base, tuned = naive.whole(tiny), naive.adapted(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for text in texts.values():
        ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])[None]
        with torch.no_grad():
            p, q = (logits(ids)[:-1].softmax(-1).gather(1, ids[0, 1:, None])[:, 0] for logits in (base, tuned))
        best = max(best, float((p - q).max()))
    assert falls[0] == pytest.approx(best, abs=1e-4)
    for passage in report.passages:
        assert (
            passage.before + passage.token + passage.after.removesuffix("<|end|>") in texts[passage.place] + "<|end|>"
        )
        assert 0 <= passage.tuned_says_probability <= 1


def test_quantisation_damage_and_forgetting_are_two_numbers(tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """Trap 3: a coarse copy of the base, an adapter trained on it; each number against two naive models."""

    def coarse(model: Any) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layers" in name:
                    parameter.copy_((parameter / 0.05).round() * 0.05)

    quantised = tuned_model(tiny, tmp_path / "quantised", coarse)
    folder = adapter(quantised, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "adapter")
    report = holdfast.measure(
        base=str(tiny), tuned=str(folder), quantised=str(quantised), texts=[str(kelp)], dtype="float32"
    )
    corpus = read_corpus(str(kelp)).sample(None)
    kinds = {"tokenizer": str(tiny), "context": 512}
    compared(
        report.quantisation["kelp"],
        naive.sums(naive.whole(tiny), naive.whole(quantised), corpus, **kinds),  # type: ignore[arg-type]
    )
    compared(
        report["kelp"],
        naive.sums(naive.whole(quantised), naive.adapted(quantised, folder), corpus, **kinds),  # type: ignore[arg-type]
    )


def test_another_base_tokenizer_text_context_or_dtype_is_never_answered_from_the_cache(
    checkpoints: Path, tiny: Path, tmp_path: Path, kelp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R11 through the front door: what is mutated is observed anew, what is not is found."""
    observed = []
    real = audit.observe
    monkeypatch.setattr(audit, "observe", lambda *a, **k: observed.append(1) or real(*a, **k))

    def misses(**changed: Any) -> bool:
        before = len(observed)
        arguments: dict[str, Any] = {
            "base": str(tiny), "tuned": str(checkpoints / "checkpoint-2"), "texts": [str(kelp)], "dtype": "float32",
        }  # fmt: skip
        holdfast.measure(**(arguments | changed))
        return len(observed) > before

    assert misses()
    assert not misses()
    assert not misses(tuned=str(checkpoints / "checkpoint-10"))  # the adapter is no part of the base
    assert misses(context=16)
    assert misses(dtype="bfloat16")
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    assert not misses(base=str(copy))  # what it is counts, not where it lies
    longer = tmp_path / "kelp.jsonl"
    longer.write_text(kelp.read_text() + json.dumps({"text": "One more."}) + "\n")
    assert misses(texts=[str(longer)])
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": "<|im_end|>"}))
    assert misses(base=str(copy))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert misses(base=str(copy))
    moved = tuned_model(tiny, tmp_path / "moved", lambda m: shaken(m, std=1e-4))
    assert misses(base=str(moved))
    monkeypatch.setattr(basecache, "version", lambda _name: "0")
    assert misses()
    monkeypatch.setattr(meter, "BATCH_TOKENS", 64)
    monkeypatch.setattr(audit, "BATCH_TOKENS", 64)
    assert misses()


def test_a_damaged_cache_is_made_again(checkpoints: Path, tiny: Path, kelp: Path, cache: Path) -> None:
    measured = lambda: holdfast.measure(tuned=str(checkpoints / "checkpoint-2"), texts=[str(kelp)], dtype="float32")  # noqa: E731
    before = measured().to_dict()
    (blocks,) = cache.glob("bases/*/blocks.bin")
    content = bytearray(blocks.read_bytes())
    content[100] ^= 1
    blocks.write_bytes(content)
    assert measured().to_dict() == before


def test_what_cannot_be_asked_is_refused(tiny: Path, checkpoints: Path, kelp: Path, tmp_path: Path) -> None:
    tuned = str(checkpoints / "checkpoint-2")
    with pytest.raises(DataError, match="each with a name of its own"):
        holdfast.measure(tuned=tuned, texts=[str(kelp)] * 2)
    with pytest.raises(ConfigError, match="expected auto, bfloat16 or float32"):
        holdfast.measure(tuned=tuned, texts=[str(kelp)], dtype="int8")
    with pytest.raises(ConfigError, match="at precision"):
        holdfast.measure(tuned=tuned, texts=[str(kelp)], precision=0)
    with pytest.raises(ModelError, match="expected the base before the tuned model"):
        holdfast.measure(tuned=str(tiny), texts=[str(kelp)])
    with pytest.raises(ModelError, match="expected a folder with"):
        holdfast.measure(tuned=str(tmp_path), base=str(tiny), texts=[str(kelp)])


def test_text_sampled_from_the_base_is_made_once(checkpoints: Path, cache: Path) -> None:
    tuned = str(checkpoints / "checkpoint-30")
    report = holdfast.measure(tuned=tuned, texts=["self"], documents=4, dtype="float32")
    (made,) = cache.glob("self/*.jsonl")
    before = made.read_bytes()
    again = holdfast.measure(tuned=tuned, texts=["self"], documents=4, dtype="float32")
    assert made.read_bytes() == before
    assert again["self"].to_dict() == report["self"].to_dict()
    assert report["self"].documents == 4


def test_the_tasks_own_prompts_are_a_row_and_no_part_of_the_verdict(
    checkpoints: Path, texts: tuple[Path, Path]
) -> None:
    report = holdfast.measure(
        tuned=str(checkpoints / "checkpoint-30"), texts=[str(texts[1])], task=str(texts[0]), dtype="float32"
    )
    (_, retained), (_, prompts) = report.rows()
    assert (prompts.corpus, prompts.role, retained.role) == ("sums prompts", "target", "retain")
    assert prompts.scored_tokens > 0
    limit = retained.kl_base_tuned.interval(0.9)[1] + 1e-3
    assert report.verdict(limit) == "within budget"


def test_a_patched_forward_is_not_what_is_measured(tiny: Path, texts: tuple[Path, Path]) -> None:
    """Trap 7: some trainers' models return no logits; hidden states and the head are read instead."""
    from holdfast import models

    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    corpus = read_corpus(str(texts[1]))
    tokenizer = models.load_tokenizer(str(tiny))
    observed = meter.observe_base(base, corpus, role="retain", tokenizer=tokenizer, context=32)
    expected = meter.measure_on(base, observed).nll.value
    base.forward = lambda *_a, **_k: None
    assert meter.measure_on(base, observed).nll.value == expected
