"""The loop: its loss, its order, its steps, and that measuring it changes nothing."""

import math
import re
import shutil
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import adapters, losses, models, training, updates
from holdfast.config import Measure, Optimizer, RunConfig, Target
from holdfast.corpora import packed_batches
from holdfast.errors import ModelError
from holdfast.methods import Lora
from holdfast.store import Measurement
from holdfast.training import Event, Ledger, Workbench
from holdfast.updates import Diverged, Update


@pytest.fixture
def config(tiny: Path, texts: tuple[Path, Path]) -> RunConfig:
    return RunConfig(
        model=str(tiny), dtype="float32", target=Target(data=str(texts[0]), held_out=8), retain=(str(texts[1]),),
        adapter=Lora(r=4, lora_alpha=8.0, lora_dropout=0.1), steps=6, optimizer=Optimizer(learning_rate=3e-3),
        batch_size=2, context=48, measure=Measure(points=3, first=2, documents=4), seed=5,
    )  # fmt: skip


def changed(config: RunConfig, **values: object) -> RunConfig:
    return config.model_copy(update=values)


def bench_of(config: RunConfig) -> Workbench:
    return training.prepare(config, training.read_texts(config), device="cpu")


def trained(config: RunConfig, rows: list[Measurement] | None = None) -> tuple[dict[str, torch.Tensor], list[Event]]:
    bench = bench_of(config)
    tuned = adapters.attach_adapter(bench.base, config.adapter, seed=config.seed)
    events: list[Event] = []
    training.train(
        tuned, config, bench, ledger=None if rows is None else Ledger(record=rows.append), tell=events.append
    )
    return {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}, events


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 600), vocabulary=st.integers(2, 300))
def test_the_loss_and_its_gradient_are_cross_entropys(seed: int, tokens: int, vocabulary: int) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 16, generator=g, requires_grad=True)
    head, targets = torch.randn(vocabulary, 16, generator=g), torch.randint(0, vocabulary, (tokens,), generator=g)
    loss = losses._TrainingLoss.apply(hidden, head, targets)
    (loss / tokens).backward()
    exact = hidden.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact @ head.double().T, targets, reduction="sum")
    (expected / tokens).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert torch.allclose(hidden.grad.double(), exact.grad, atol=1e-5)


OTHERS: dict[str, transformers.PreTrainedConfig] = {
    "opt": transformers.OPTConfig(
        vocab_size=400, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.0,
        word_embed_proj_dim=32, max_position_embeddings=64, init_std=0.2,
    ),
    "mamba": transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, initializer_range=0.5),
}  # fmt: skip
"""Models that let documents packed in a row see each other, whatever their positions."""


@pytest.mark.parametrize("kind", ["llama", *OTHERS])
def test_a_batchs_loss_is_the_models_own_on_the_scored_tokens(
    kind: str, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Against transformers' whole forward pass, one document at a time."""
    if kind in OTHERS:
        folder = Path(shutil.copytree(config.model, tmp_path / kind))
        (folder / "model.safetensors").unlink()
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(OTHERS[kind]).save_pretrained(folder)
        modules = ("k_proj", "v_proj") if kind == "opt" else ("in_proj", "x_proj")
        adapter = config.adapter.model_copy(update={"target_modules": modules})
        config = config.model_copy(update={"model": str(folder), "adapter": adapter})
    bench = bench_of(config)
    tuned = adapters.attach_adapter(bench.base, config.adapter, seed=0)
    tuned.eval()
    block = next(packed_batches(bench.training, context=48, rows=2, seed=1))
    expected, scored = 0.0, 0
    for row in range(2):
        edges = [*np.flatnonzero(block.positions[row] == 0), 48]
        for start, end in pairwise(edges):
            ids = torch.tensor(block.ids[row, start:end])[None]
            keep = block.scored[row, start:end]
            with torch.no_grad():
                logits = tuned(input_ids=ids).logits[0].double()
            for position in np.flatnonzero(keep):
                expected -= logits[position - 1].log_softmax(-1)[ids[0, position]].item()
                scored += 1
    assert scored == block.scored.sum() > 10
    assert losses.batch_losses([tuned], [block])[0].item() == pytest.approx(expected, rel=1e-5)
    assert losses.keeps_apart(tuned) == (kind == "llama")
    assert caplog.text.count("lets documents packed in a row see each other") == (kind in OTHERS)


def test_a_measured_run_trains_bit_for_bit_like_an_unmeasured_one(config: RunConfig) -> None:
    """Trap 6: with dropout on, so that a single random number drawn by measuring would show."""
    rows: list[Measurement] = []
    measured, events = trained(config, rows)
    unmeasured, quiet = trained(config)
    assert same(measured, unmeasured)
    assert [e.loss for e in quiet] == [e.loss for e in events if e.report is None]
    assert [row.step for row in rows if row.role == "retain"] == [0, 2, 3, 6]


def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(config: RunConfig) -> None:
    first, events = trained(config)
    again, same_events = trained(config)
    other, _ = trained(changed(config, seed=6))
    assert same(first, again)
    assert [e.loss for e in events] == [e.loss for e in same_events]
    assert not same(first, other)


def test_step_0_is_the_control_and_later_steps_are_not(config: RunConfig) -> None:
    rows: list[Measurement] = []
    trained(config, rows)
    at = {(row.step, row.role, name): value for row in rows for name, (value, _) in row.values.items()}
    for role in ("target", "retain"):
        assert at[0, role, "kl_base_tuned"] == 0
        assert at[0, role, "agreement"] == 1
        assert at[6, role, "kl_base_tuned"] > 0
    assert at[6, "target", "nll"] < at[0, "target", "nll"]


def test_a_run_whose_control_fails_ends_before_it_trains(config: RunConfig) -> None:
    """The base was observed, and then changed: whatever is measured would be against another model."""
    bench = bench_of(config)
    with torch.no_grad():
        next(bench.base.parameters()).mul_(1.01)
    tuned = adapters.attach_adapter(bench.base, config.adapter, seed=0)
    rows: list[Measurement] = []
    with pytest.raises(ModelError, match=r"step 0: got forgetting .* before any training, expected exactly 0 and 1"):
        training.train(tuned, config, bench, ledger=Ledger(record=rows.append))
    assert rows == []


def test_every_rank_sees_the_same_batches_in_the_same_order(config: RunConfig) -> None:
    """The first loss, before any step, is that of the same batch under the same model, whatever the rank."""
    firsts = {trained(changed(config, adapter=Lora(r=r)))[1][0].loss for r in (1, 2, 8)}
    assert len(firsts) == 1


def test_accumulated_micro_batches_are_one_batch(config: RunConfig) -> None:
    still = changed(config, adapter=Lora(r=4), optimizer=Optimizer(learning_rate=1e-3, max_grad_norm=None))
    whole, events = trained(changed(still, batch_size=4))
    parts, cut = trained(changed(still, batch_size=1, gradient_accumulation_steps=4))
    assert [e.loss for e in cut] == pytest.approx([e.loss for e in events], rel=1e-4)
    for name in whole:
        assert torch.allclose(whole[name], parts[name], atol=2e-3), name


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_both_optimisers_learn_and_leave_the_base_alone(name: str, config: RunConfig) -> None:
    bench = bench_of(config)
    before = models.weights_fingerprint(bench.base)
    tuned = adapters.attach_adapter(bench.base, Lora(r=4), seed=0)
    rule = Optimizer.model_validate({"name": name, "learning_rate": 1e-2})
    events: list[Event] = []
    training.train(tuned, changed(config, steps=30, optimizer=rule), bench, ledger=None, tell=events.append)
    told = [event.loss for event in events]
    assert np.mean(told[-5:]) < 0.8 * told[0]
    adapters.detach_adapter(tuned)
    assert models.weights_fingerprint(bench.base) == before


def test_learning_rate_schedules() -> None:
    cosine = Optimizer(learning_rate=2.0, schedule="cosine", warmup_steps=4)
    rates = [updates.learning_rate(cosine, step=step, steps=24) for step in range(24)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[14] == pytest.approx(1.0)
    assert 0 < rates[23] < 0.05
    constant = Optimizer(learning_rate=2.0, warmup_steps=2)
    assert [updates.learning_rate(constant, step=s, steps=9) for s in range(4)] == [1.0, 2.0, 2.0, 2.0]


def test_a_loss_that_is_not_a_number_ends_the_run_and_moves_nothing(config: RunConfig) -> None:
    """Trap 11: no filter hides a bad step."""
    bench = bench_of(config)
    tuned = adapters.attach_adapter(bench.base, Lora(r=4), seed=0)
    optimizer = updates.make_optimizer(config.optimizer, tuned)
    blocks = list(islice(packed_batches(bench.training, context=48, rows=2, seed=1), 2))

    def asked(step: int) -> Update:
        return Update(
            tuned=tuned, optimizer=optimizer, blocks=blocks[step : step + 1], config=config, step=step, rows=2
        )

    assert math.isfinite(updates.update([asked(0)])[0].loss)  # type: ignore[union-attr]
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    with torch.no_grad():
        parameters[0].fill_(math.inf)
    before = [p.detach().clone() for p in parameters]
    (ended,) = updates.update([asked(1)])
    assert isinstance(ended, Diverged)
    assert re.match(r"step 2: got loss (nan|inf)", str(ended))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_golden_losses(config: RunConfig) -> None:
    """A change that should not move numbers leaves these; one that should says so in CHANGELOG.md."""
    golden = changed(config, adapter=Lora(r=4, lora_alpha=8.0), steps=20)
    _, events = trained(golden)
    told = [event.loss for event in events]
    assert told[::5] == pytest.approx(GOLDEN, abs=5e-5)


GOLDEN = [6.478624, 6.227933, 4.802064, 4.585486]
