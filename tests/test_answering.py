"""Log-likelihoods of continuations: one shared pass against one each, in float64, and lm-evaluation-harness's."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

import tuned as made
from holdfast import answering, builtin, models
from holdfast.adapters import load_adapter
from holdfast.answering import Asked
from holdfast.errors import DataError, ModelError
from holdfast.items import read_items
from holdfast.questions import context, continuations


def naive(model: torch.nn.Module, item: Asked) -> list[float]:
    """One float64 forward pass a continuation, and the sum of its tokens' log-probabilities."""
    found = []
    for continuation in item.continuations:
        ids = torch.tensor([item.text + continuation])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        chances = torch.log_softmax(logits, -1)
        start = len(item.text)
        found.append(sum(chances[start - 1 + k, token].item() for k, token in enumerate(continuation)))
    return found


def some(rng: np.random.Generator, items: int) -> list[Asked]:
    """Items of random tokens: texts of many lengths, two to five continuations, some of one token."""
    return [
        Asked(
            text=tuple(rng.integers(3, 300, rng.integers(1, 30)).tolist()),
            continuations=tuple(
                tuple(rng.integers(3, 300, rng.integers(1, 9)).tolist()) for _ in range(rng.integers(2, 6))
            ),
        )
        for _ in range(items)
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_shared_pass_equals_a_float64_pass_each(
    tiny: Path, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BATCH_TOKENS", 150)
    items = some(np.random.default_rng(0), 40)
    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    model.set_attn_implementation(attention)
    exact = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    expected = [naive(exact, item) for item in items]
    for shared in (True, False):
        plan = answering.batches(items, shared=shared)
        assert len(plan) > 5
        assert sorted(index for together, _ in plan for index in together) == list(range(40))
        found = answering.log_likelihoods(model, items, plan)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-5)


def test_sharing_passes_fewer_tokens_and_gives_the_same(tiny: Path) -> None:
    tokenizer = models.load_tokenizer(str(tiny))
    questions = read_items("arc_challenge").sample(20).questions
    items = [
        answering.asked(tokenizer, context(q, "cloze"), continuations(q, "cloze"), place=q.place) for q in questions
    ]
    plans = [answering.batches(items, shared=shared) for shared in (True, False)]
    sizes = [sum(rows.ids.size for _, rows in plan) for plan in plans]
    assert sizes[0] < 0.6 * sizes[1]
    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    shared, alone = (answering.log_likelihoods(model, items, plan) for plan in plans)
    for ours, theirs in zip(shared, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_lm_evaluation_harness_on_the_same_items(tiny: Path, tmp_path: Path) -> None:
    """Every log-likelihood, and both accuracies, of forty questions of ARC-Challenge."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'holdfast[lm-eval]'")
    from lm_eval.models.huggingface import HFLM

    lines = gzip.decompress(builtin.data_path("arc_challenge").read_bytes()).decode().splitlines()[:40]
    file = tmp_path / "arc.jsonl"
    file.write_text("\n".join(lines))
    task = {
        "task": "arc_local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    tokenizer = models.load_tokenizer(str(tiny))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    theirs = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), tokenizer=tokenizer,
            batch_size=8, device="cpu",
        ),
        tasks=[task], bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    from holdfast.probes import choice_probes

    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    (probe,) = choice_probes(read_items(str(file)), ["character", "total"], tokenizer=tokenizer, shared=True)
    answers = probe.ask(model, lambda _share: None)
    samples = sorted(theirs["samples"]["arc_local"], key=lambda sample: sample["doc_id"])
    assert [json.loads(line)["id"] for line in lines] == [sample["doc"]["id"] for sample in samples]
    for ours, sample in zip(answers, samples, strict=True):
        assert ours == pytest.approx([found for found, _ in sample["filtered_resps"]], abs=2e-4)
    by_character, total = probe.results(answers, answers)
    right = [(result.base == result.answers).astype(int).tolist() for result in (total, by_character)]
    assert right[0] == [int(sample["acc"]) for sample in samples]
    assert right[1] == [int(sample["acc_norm"]) for sample in samples]


def test_a_choice_is_cut_as_text_and_choice_together_are_cut(tiny: Path) -> None:
    tokenizer = models.load_tokenizer(str(tiny))
    one = answering.asked(tokenizer, "Kelp grows", [" on rock", " in spring."], place="a:1")
    spaced = answering.asked(tokenizer, "Kelp grows ", ["on rock", "in spring."], place="a:1")
    assert one == spaced
    assert tokenizer.decode([*one.text, *one.continuations[0]]) == "Kelp grows on rock"
    with pytest.raises(DataError, match=r"without a token of its own, expected at least one, at a:1"):
        answering.asked(tokenizer, "Kelp", ["", " grows"], place="a:1")
    with pytest.raises(DataError, match=r"at a:2"):
        answering.asked(tokenizer, "  ", [" grows"], place="a:2")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of the library that makes the adapter
def test_virtual_tokens_take_rows_of_their_own(tiny: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, **made.LM)
    folder = made.adapter(tiny, config, tmp_path / "prompts")
    model = load_adapter(models.load_base(str(tiny), dtype="float32", device="cpu"), str(folder))
    items = some(np.random.default_rng(1), 6)
    found = answering.log_likelihoods(model, items, answering.batches(items, shared=False))
    whole = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64), folder)
    for ours, item in zip(found, items, strict=True):
        expected = []
        for continuation in item.continuations:
            ids = torch.tensor([item.text + continuation])
            with torch.no_grad():
                logits = whole(input_ids=ids).logits[0].double()[-ids.shape[1] :]
            chances = torch.log_softmax(logits, -1)
            start = len(item.text)
            expected.append(sum(chances[start - 1 + k, t].item() for k, t in enumerate(continuation)))
        assert ours == pytest.approx(expected, abs=2e-5)


def test_a_model_in_which_choices_would_see_each_other_shares_nothing(tiny: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        base = models.load_base(str(tiny), dtype=dtype, device="cpu")
        assert answering.shares(base)
        for std in (0.1, 1.0, 5.0):  # rounding grows with what is probable and what is not; a leak is none of it
            made.shaken(base.requires_grad_(True), std=std)
            assert answering.shares(base.requires_grad_(False))
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, initializer_range=0.5))
    assert not answering.shares(mamba.eval())


def test_tokens_beyond_the_model_and_infinities_are_refused(tiny: Path) -> None:
    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    item = Asked(text=(5, 6), continuations=((7, 9999, 3), (8,)))
    with pytest.raises(ModelError, match="got an item with token 9999"):
        answering.log_likelihoods(model, [item], answering.batches([item], shared=True))
    model.get_decoder().norm.weight.data[0] = float("nan")
    item = Asked(text=(5, 6), continuations=((7,), (8,)))
    with pytest.raises(ModelError, match="NaN or infinity"):
        answering.log_likelihoods(model, [item], answering.batches([item], shared=True))
