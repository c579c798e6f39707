"""Greedy answers: against the plainest loop, whatever the batch, the model's own settings and its state."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from holdfast import generating, models
from holdfast.adapters import load_adapter
from holdfast.errors import DataError
from tuned import ALL, LM, adapter

PROMPTS = ["What is kelp?", "How high is the tide in spring, and how high in autumn?", "Count to three.", "Who dives?"]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that make the models, as anyone would


def naive(model: torch.nn.Module, prompt: tuple[int, ...], tokens: int, end: set[int]) -> tuple[tuple[int, ...], bool]:
    """One token at a time, the whole text anew each time."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in end:
            return tuple(ids[len(prompt) :]), True
        ids.append(token)
    return tuple(ids[len(prompt) :]), False


@pytest.mark.parametrize("at_once", [40, 8192])
def test_answers_are_those_of_the_plainest_loop(tiny: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "TOKENS_AT_ONCE", at_once)
    model, tokenizer = models.load_base(str(tiny), dtype="float32", device="cpu"), models.load_tokenizer(str(tiny))
    prompts = [generating.put(tokenizer, prompt, place="p") for prompt in PROMPTS]
    plan = generating.batches(prompts, tokens=12)
    assert len(plan) == (1 if at_once == 8192 else 4)
    assert sorted(index for together in plan for index in together) == [0, 1, 2, 3]
    told: list[float] = []
    found = generating.write(model, prompts, plan, tokens=12, tokenizer=tokenizer, tell=told.append)
    exact = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = [naive(exact, prompt, 12, {tokenizer.eos_token_id}) for prompt in prompts]
    assert [(one.ids, one.ended) for one in found] == expected
    assert told == sorted(told)
    assert told[-1] == 1


def test_an_answer_ends_at_its_end_token(tiny: Path) -> None:
    """The token that the model says third is made its end."""
    tokenizer = models.load_tokenizer(str(tiny))
    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    prompts = [generating.put(tokenizer, prompt, place="p") for prompt in PROMPTS]
    plan = generating.batches(prompts, tokens=9)
    free = generating.write(model, prompts, plan, tokens=9, tokenizer=tokenizer)
    end = free[0].ids[2]
    model.generation_config.eos_token_id = [end]
    for before, after in zip(free, generating.write(model, prompts, plan, tokens=9, tokenizer=tokenizer), strict=True):
        cut = before.ids.index(end) if end in before.ids else None
        assert after.ids == (before.ids if cut is None else before.ids[:cut])
        assert after.ended == (cut is not None)
    assert any(one.ended for one in generating.write(model, prompts, plan, tokens=9, tokenizer=tokenizer))


def test_a_models_own_settings_and_state_change_nothing_and_are_left_alone(tiny: Path) -> None:
    tokenizer = models.load_tokenizer(str(tiny))
    model = models.load_base(str(tiny), dtype="float32", device="cpu")
    prompts = [generating.put(tokenizer, prompt, place="p") for prompt in PROMPTS]
    plan = generating.batches(prompts, tokens=8)
    plain = generating.write(model, prompts, plan, tokens=8, tokenizer=tokenizer)
    for name, value in {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0, "num_beams": 2}.items():
        setattr(model.generation_config, name, value)
    model.train()
    state = torch.random.get_rng_state()
    assert generating.write(model, prompts, plan, tokens=8, tokenizer=tokenizer) == plain
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert model.generation_config.repetition_penalty == 3.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_is_not_merged_answers_too(tiny: Path, tmp_path: Path, dtype: str) -> None:
    folder = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "lora", std=0.3)
    tokenizer = models.load_tokenizer(str(tiny))
    tuned = load_adapter(models.load_base(str(tiny), dtype=dtype, device="cpu"), str(folder))
    prompts = [generating.put(tokenizer, prompt, place="p") for prompt in PROMPTS]
    plan = generating.batches(prompts, tokens=6)
    found = generating.write(tuned, prompts, plan, tokens=6, tokenizer=tokenizer)
    if dtype == "float32":
        expected = [naive(tuned, prompt, 6, {tokenizer.eos_token_id})[0] for prompt in prompts]
        assert [one.ids for one in found] == expected
    base = generating.write(tuned.unload(), prompts, plan, tokens=6, tokenizer=tokenizer)
    assert found != base


def test_prompts_go_through_the_chat_template(tiny: Path) -> None:
    tokenizer = models.load_tokenizer(str(tiny))
    put = generating.put(tokenizer, "Who dives?", place="p:1")
    assert tokenizer.decode(put) == "<|im_start|>user\nWho dives?<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(DataError, match=r"refuses a user's message \(no users here\), at p:1"):
        generating.put(tokenizer, "Who dives?", place="p:1")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="got a tokenizer without a chat template, expected one"):
        generating.put(tokenizer, "Who dives?", place="p:1")


def test_a_digest_is_of_prompts_plan_and_length() -> None:
    one = generating.digest([(1, 2), (3,)], [[0, 1]], tokens=5)
    assert one != generating.digest([(1, 2), (4,)], [[0, 1]], tokens=5)
    assert one != generating.digest([(1, 2), (3,)], [[0], [1]], tokens=5)
    assert one != generating.digest([(1, 2), (3,)], [[0, 1]], tokens=6)
