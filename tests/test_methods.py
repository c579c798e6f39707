"""Every way to fine-tune, on a tiny real model: what is trained, that it is trained rightly, and what it leaves."""

import json
import shutil
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from holdfast import adapters, checkpoints, counts, models, training, updates
from holdfast.config import Measure, Optimizer, RunConfig, Target
from holdfast.corpora import packed_batches
from holdfast.errors import ModelError
from holdfast.methods import Adapter, Full, Ia3, Lora, Peft, TopLayers
from holdfast.models import Tuned
from holdfast.training import Workbench
from test_checkpoints import Trial

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def own(kind: str, **config: Any) -> Peft:
    return Peft(method="peft", peft_type=kind, config=config)


def linear(kind: str, **config: Any) -> Peft:
    return own(kind, target_modules=LINEAR, **config)


# A layer's linear maps, (in, out): 32 wide, 64 inside, 2 of 4 heads for keys; 400 rows of a tied embedding; 2 layers.
MAPS = {
    "q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32),
    "gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32),
}  # fmt: skip
BLOCK = sum(a * b for a, b in MAPS.values()) + 2 * 32
ROWS = 400


def low_rank(r: int, names: Any = LINEAR) -> int:
    return 2 * sum(r * sum(MAPS[name]) for name in names)


METHODS: dict[str, tuple[Adapter, int]] = {
    "lora": (Lora(r=4), low_rank(4)),
    "attention only": (Lora(r=4, target_modules=ATTENTION), low_rank(4, ATTENTION)),
    "rank 2500": (Lora(r=2500), low_rank(2500)),
    "full": (Full(method="full"), ROWS * 32 + 2 * BLOCK + 32),
    "top layer": (TopLayers(method="top-layers", layers=1), BLOCK),
    "both layers": (TopLayers(method="top-layers", layers=2), 2 * BLOCK),
    "ia3": (Ia3(method="ia3"), 2 * (16 + 16 + 64)),
    "dora": (linear("LORA", r=4, use_dora=True), low_rank(4) + 2 * sum(out for _, out in MAPS.values())),
    "pissa": (linear("LORA", r=4, init_lora_weights="pissa"), low_rank(4)),
    "oft": (linear("OFT"), 2 * sum(before // 32 * (32 * 31 // 2) for before, _ in MAPS.values())),
    "vera": (linear("VERA", r=8), 2 * sum(8 + out for _, out in MAPS.values())),
    "loha": (linear("LOHA", r=4), 2 * low_rank(4)),
    "lokr": (linear("LOKR", r=2, decompose_factor=2), 2 * sum(2 * 2 + 2 * (a + b) // 2 for a, b in MAPS.values())),
    "norms": (own("LN_TUNING", target_modules=["input_layernorm", "norm"]), 2 * 32 + 32),
    "norm saved": (linear("LORA", r=4, modules_to_save=["norm"]), low_rank(4) + 5 * 32),
    "prompt": (own("PROMPT_TUNING", num_virtual_tokens=4), 4 * 32),
    "prefix": (own("PREFIX_TUNING", num_virtual_tokens=4), 4 * 2 * 2 * 16),
}
ELSEWHERE = ("pissa", "prompt", "prefix")
"""Those that begin elsewhere than the base: by rounding, or by virtual tokens."""
TRAINED = ("lora", "full", "top layer", "ia3", "dora", "pissa", "oft", "vera", "loha", "norms", "prompt", "prefix")


@pytest.fixture
def config(tiny: Path, texts: tuple[Path, Path]) -> RunConfig:
    return RunConfig(
        model=str(tiny), dtype="float32", target=Target(data=str(texts[0]), held_out=8), retain=(str(texts[1]),),
        adapter=Lora(r=4), steps=4, optimizer=Optimizer(learning_rate=1e-3), batch_size=2, context=48,
        measure=Measure(points=2, first=2, documents=4), seed=5,
    )  # fmt: skip


def made(config: RunConfig, name: str) -> tuple[RunConfig, Workbench, Tuned]:
    config = config.model_copy(update={"adapter": METHODS[name][0]})
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    return config, bench, adapters.attach_adapter(bench.base, config.adapter, seed=config.seed)


def parameters(tuned: Tuned) -> dict[str, torch.nn.Parameter]:
    """What is trained, by its name in an ordinary model."""
    names = ((name.removeprefix("trained.").replace("/", "."), p) for name, p in tuned.named_parameters())
    return {name: parameter for name, parameter in names if parameter.requires_grad}


def shake(tuned: Tuned) -> None:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters(tuned).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=g))


def plain(tuned: Tuned, config: RunConfig) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
    """The same model made by the libraries alone: whole, logits and all; and what is trained of it."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    if not isinstance(config.adapter, Full | TopLayers):
        with models.quiet():
            model = peft.get_peft_model(model, adapters._peft_config(config.adapter))
    ours, theirs = parameters(tuned), dict(model.named_parameters())
    for name, parameter in theirs.items():
        parameter.requires_grad_(name in ours)
        if name in ours:
            parameter.data.copy_(ours[name].detach())
    return model.eval(), {name: theirs[name] for name in ours}


def plain_loss(model: torch.nn.Module, block: Any) -> torch.Tensor:
    """Mean over scored tokens, one document at a time."""
    total, scored = torch.zeros(()), 0
    for row in range(len(block.ids)):
        for start, end in pairwise([*np.flatnonzero(block.positions[row] == 0), block.ids.shape[1]]):
            ids, keep = torch.tensor(block.ids[row, start:end])[None], torch.tensor(block.scored[row, start:end])[1:]
            logits = model(input_ids=ids).logits[0, -ids.shape[1] :][:-1][keep]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:][keep], reduction="sum")
            scored += int(keep.sum())
    return total / scored


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_counted_by_formula(name: str, config: RunConfig) -> None:
    _, bench, tuned = made(config, name)
    counted = counts.count(tuned, base_params=bench.base_params)
    assert counted.trained == METHODS[name][1] == sum(p.numel() for p in parameters(tuned).values())
    trained = counted.trained if isinstance(METHODS[name][0], Full | TopLayers) else 0
    assert counted.frozen == ROWS * 32 + 2 * BLOCK + 32 - trained


@pytest.mark.parametrize("name", METHODS)
def test_the_base_is_bit_for_bit_as_it_was_afterwards(name: str, config: RunConfig) -> None:
    config, bench, tuned = made(config, name)
    shake(tuned)
    training.train(tuned, config, bench, ledger=None)
    adapters.detach_adapter(tuned)
    assert models.weights_fingerprint(bench.base) == bench.weights_fingerprint
    assert not any(p.requires_grad for p in bench.base.parameters())
    assert not any(module.training for module in bench.base.modules())
    assert not (training.measure_on(bench.base, bench.observed[0][1]).sums["kl_base_tuned"]).any()


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_those_of_the_whole_model(name: str, config: RunConfig) -> None:
    config, bench, tuned = made(config, name)
    shake(tuned)
    tuned.eval()
    block = next(packed_batches(bench.training, context=48, rows=2, seed=1))
    model, theirs = plain(tuned, config)
    optimizer = updates.make_optimizer(config.optimizer, tuned)
    asked = updates.Update(tuned=tuned, optimizer=optimizer, blocks=[block], config=config, step=0, rows=2)
    ours = updates._backward([asked], 2)[0] / int(block.scored.sum())
    loss = plain_loss(model, block)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    for key, parameter in parameters(tuned).items():
        assert parameter.grad is not None, key
        scale = theirs[key].grad.abs().max().item()
        assert torch.allclose(parameter.grad, theirs[key].grad, rtol=1e-3, atol=1e-4 * scale), key


@pytest.mark.parametrize("name", TRAINED)
def test_the_loop_is_a_plain_loop(name: str, config: RunConfig) -> None:
    config, bench, tuned = made(config, name)
    model, theirs = plain(tuned, config)
    optimizer = torch.optim.AdamW(theirs.values(), lr=1e-3, weight_decay=0.0)
    expected = []
    for block in islice(packed_batches(bench.training, context=48, rows=2, seed=config.seed), config.steps):
        optimizer.zero_grad()
        loss = plain_loss(model, block)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    told: list[float] = []
    training.train(tuned, config, bench, ledger=None, tell=lambda event: told.append(event.loss))
    assert told == pytest.approx(expected, rel=2e-4)
    assert len(set(told)) == 4


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(name: str, config: RunConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"adapter": METHODS[name][0]})
    whole = Trial(config)
    expected = whole.run(start=None, until=None, folder=tmp_path / "whole")
    trial, start = Trial(config), None
    for stop in (1, 3):
        assert trial.run(start=start, until=stop, folder=tmp_path / "parts") == {}
        start = checkpoints.newest(tmp_path / "parts", at_most=4)
    found = trial.run(start=start, until=None, folder=tmp_path / "parts")
    assert trial.measured == whole.measured
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lora", "full", "top layer", "both layers", "ia3"])
def test_step_0_is_exactly_the_base_in_either_precision(name: str, dtype: str, config: RunConfig) -> None:
    config, bench, tuned = made(config.model_copy(update={"dtype": dtype}), name)
    for _, observed in bench.observed:
        report = training.measure_on(tuned, observed)
        assert not report.sums["kl_base_tuned"].any()
        assert (report.sums["agreement"] == report.count).all()
    assert {p.dtype for p in parameters(tuned).values()} == {torch.float32}
    training.train(tuned, config, bench, ledger=None)
    assert all(p.dtype == torch.float32 for p in parameters(tuned).values())
    assert training.measure_on(tuned, bench.observed[0][1]).sums["kl_base_tuned"].any()


def test_in_bf16_small_updates_add_up_unseen_until_they_are_a_step(config: RunConfig) -> None:
    _, bench, tuned = made(config.model_copy(update={"dtype": "bfloat16"}), "full")
    _, observed = bench.observed[0]
    for share, seen in ((1e-4, False), (1e-2, True)):
        with torch.no_grad():
            for parameter in parameters(tuned).values():
                parameter.mul_(1 + share)
        assert training.measure_on(tuned, observed).sums["kl_base_tuned"].any() == seen


def test_a_base_that_changed_fails_the_control_of_every_method(config: RunConfig) -> None:
    for name in ("full", "dora", *ELSEWHERE):
        named = config.model_copy(update={"adapter": METHODS[name][0]})
        bench = training.prepare(named, training.read_texts(named), device="cpu")
        with torch.no_grad():
            next(bench.base.parameters()).mul_(1.01)
        tuned = adapters.attach_adapter(bench.base, named.adapter, seed=0)
        with pytest.raises(ModelError, match=r"step 0: got forgetting .* expected exactly 0 and 1"):
            training.train(tuned, named, bench, ledger=training.Ledger(record=lambda _: None))


def test_what_a_method_begins_with_is_said(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    config, bench, tuned = made(config, "prompt")
    rows: list[Any] = []
    training.train(tuned, config, bench, ledger=training.Ledger(record=rows.append))
    assert rows[0].step == 0
    assert rows[0].values["kl_base_tuned"][0] > 0.01
    assert "PROMPT_TUNING begins" in caplog.text


def test_operations_are_those_that_torch_counts(config: RunConfig) -> None:
    """All matrix products of a step: 6 and 2 a parameter, but for norms and what the lowest trained maps are given."""
    for name in ("full", "both layers", "top layer"):
        _, bench, tuned = made(config, name)
        counted = counts.count(tuned, base_params=bench.base_params)
        ids = torch.arange(3, 43)[None]
        with FlopCounterMode(display=False) as counter:
            states = models.hidden_states(tuned, ids=ids, positions=torch.arange(40)[None])
            (states @ models.output_head(tuned).T).sum().backward()
        products = counter.get_flop_counts()["Global"]
        found = sum(flop for kind, flop in products.items() if "attention" not in str(kind) and "bmm" not in str(kind))
        assert counted.flop_per_token == pytest.approx(found / 40, rel=0.06), name


def test_a_quantised_base_is_refused_before_it_is_loaded(config: RunConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(config.model, tmp_path / "base"))
    held = json.loads((folder / "config.json").read_text())
    held["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(held))
    with pytest.raises(ModelError, match="got a base quantised by bitsandbytes, expected one that is not"):
        training.prepare(config.model_copy(update={"model": str(folder)}), training.read_texts(config), device="cpu")


def test_what_a_model_does_not_have_is_refused(config: RunConfig) -> None:
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    refused = {
        "got 3 layers, expected at most the 2 there are": TopLayers(method="top-layers", layers=3),
        "cannot be put on llama": Ia3(method="ia3", target_modules=("fc1",), feedforward_modules=("fc1",)),
        "layer_replication": own("LORA", target_modules=["q_proj"], r=4, layer_replication=[[0, 2], [0, 2]]),
        "changes the output head": own("LORA", target_modules=["q_proj"], modules_to_save=["lm_head"]),
    }
    for words, adapter in refused.items():
        with pytest.raises(ModelError, match=words):
            adapters.attach_adapter(bench.base, adapter, seed=0)
        assert models.weights_fingerprint(bench.base) == bench.weights_fingerprint
    narrow = models.load_base(config.model, dtype="bfloat16", device="cpu")
    with pytest.raises(ModelError, match=r"to be trained in bfloat16, expected float32; set dtype: float32"):
        adapters.attach_adapter(narrow, METHODS["norms"][0], seed=0)


def test_ia3_of_attention_alone_needs_no_word_of_feedforward_maps() -> None:
    assert Ia3(method="ia3", target_modules=("k_proj", "v_proj")).feedforward_modules == ()
    assert Ia3(method="ia3", target_modules=("k_proj", "down_proj")).feedforward_modules == ("down_proj",)
    assert Ia3(method="ia3").feedforward_modules == ("down_proj",)
    assert Ia3(method="ia3", target_modules=("k_proj", "down_proj"), feedforward_modules=()).feedforward_modules == ()
