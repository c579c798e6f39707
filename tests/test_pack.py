"""Runs that share each pass learn what each would alone, end by themselves, and go on where they were stopped."""

import copy
import json
import shutil
import signal
from itertools import islice
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast import adapters, sweeps, training, updates
from holdfast.config import Measure, Optimizer, RunConfig, Target
from holdfast.corpora import packed_batches
from holdfast.errors import Interrupted
from holdfast.interrupts import Stop
from holdfast.methods import Ia3, Lora
from holdfast.models import Tuned
from holdfast.updates import Diverged, Update

VARIED: dict[str, list[dict[str, object]]] = {
    "ranks": [{"adapter": Lora(r=r, lora_alpha=8.0)} for r in (1, 4, 16)],
    "scales": [{"adapter": Lora(r=4, lora_alpha=a, use_rslora=rs)} for a, rs in ((1.0, True), (8.0, False))],
    "seeds": [{"seed": seed} for seed in (0, 1, 2)],
    "learning rates": [{"optimizer": Optimizer(learning_rate=rate)} for rate in (1e-4, 3e-3)],
    "clipping": [{"optimizer": Optimizer(learning_rate=3e-3, max_grad_norm=norm)} for norm in (0.01, 1.0, None)],
}


@pytest.fixture
def config(tiny: Path, texts: tuple[Path, Path]) -> RunConfig:
    return RunConfig(
        model=str(tiny), dtype="float32", target=Target(data=str(texts[0]), held_out=8), retain=(str(texts[1]),),
        adapter=Lora(r=4, lora_alpha=8.0), steps=6, optimizer=Optimizer(learning_rate=3e-3), batch_size=2,
        gradient_accumulation_steps=2, context=48, measure=Measure(points=2, first=3, documents=4),
    )  # fmt: skip


@pytest.mark.parametrize("varied", VARIED)
def test_what_a_pack_learns_is_what_each_learns_alone(varied: str, config: RunConfig) -> None:
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        runs = [config.model_copy(update=change) for change in VARIED[varied]]
        learned = []
        for side_by_side in (False, True):
            base = copy.deepcopy(bench.base)
            models = [adapters.attach_adapter(adapters.same_weights(base), run.adapter, seed=run.seed) for run in runs]
            made = [
                (tuned.double().train(), updates.make_optimizer(run.optimizer, tuned))
                for tuned, run in zip(models, runs, strict=True)
            ]
            batches = [
                packed_batches(bench.training, context=48, rows=config.batch_size, seed=run.seed) for run in runs
            ]
            losses = []
            for step in range(4):
                asked = [
                    Update(
                        tuned=tuned, optimizer=optimizer, blocks=list(islice(data, 2)), config=run, step=step, rows=2
                    )
                    for run, (tuned, optimizer), data in zip(runs, made, batches, strict=True)
                ]
                found = updates.update(asked) if side_by_side else [updates.update([one])[0] for one in asked]
                losses.append([one.loss for one in found if isinstance(one, updates.Updated)])
            learned.append((losses, [[p for p in tuned.parameters() if p.requires_grad] for tuned, _ in made]))
    finally:
        torch.set_default_dtype(torch.float32)
    (alone, each), (packed, together) = learned
    assert all(len(row) == len(runs) for row in packed)
    assert torch.allclose(torch.tensor(packed), torch.tensor(alone), rtol=1e-10, atol=0)
    assert len({tuple(column) for column in zip(*alone, strict=True)}) == len(runs)  # they do differ
    for ours, theirs in zip(together, each, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.dtype == torch.float64
            assert torch.allclose(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "other", [Ia3(method="ia3"), Lora(r=4, lora_dropout=0.5), Lora(r=4, target_modules=("q_proj",))]
)
def test_what_cannot_share_a_pass_takes_its_own(other: object, config: RunConfig) -> None:
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    asked = []
    for adapter in (config.adapter, other):
        run = config.model_copy(update={"adapter": adapter, "gradient_accumulation_steps": 1})
        tuned = adapters.attach_adapter(adapters.same_weights(bench.base), run.adapter, seed=0)
        blocks = list(islice(packed_batches(bench.training, context=48, rows=2, seed=0), 1))
        optimizer = updates.make_optimizer(run.optimizer, tuned)
        asked.append(Update(tuned=tuned, optimizer=optimizer, blocks=blocks, config=run, step=0, rows=2))
    assert all(isinstance(made, updates.Updated) for made in updates.update(asked))


def study_of(tmp_path: Path, config: RunConfig, **grid: list[object]) -> Path:
    """A study file of the fixture's run over a grid."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(json.loads(config.canonical()) | {"grid": grid}))
    return path


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    return table.select_dtypes("number")


def test_a_packed_sweep_gives_the_table_of_one_run_after_another(config: RunConfig, tmp_path: Path) -> None:
    study = study_of(tmp_path, config, **{"adapter.r": [2, 8], "steps": [3, 6], "adapter.method": ["lora"]})
    alone = sweeps.sweep(study, out=tmp_path / "alone")
    packed = sweeps.sweep(study, out=tmp_path / "packed", pack=3)
    assert packed["state"].unique().tolist() == ["done"]
    assert packed["run"].tolist() == alone["run"].tolist()
    pd.testing.assert_frame_equal(numbers(packed), numbers(alone), rtol=1e-4, atol=1e-5)
    assert (packed.loc[packed["step"] == 0, "kl_base_tuned"] == 0).all()


@pytest.mark.parametrize("dropped", ["the adapter's", "the base's"])
def test_every_run_of_a_pack_drops_out_what_it_would_alone(dropped: str, config: RunConfig, tmp_path: Path) -> None:
    """GPT-2 comes with dropout of its own; plain LoRA on it would share a pass."""
    if dropped == "the base's":
        folder = Path(shutil.copytree(config.model, tmp_path / "gpt2"))
        shape = GPT2Config(
            vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.3, eos_token_id=0
        )
        torch.manual_seed(0)
        GPT2LMHeadModel(shape).save_pretrained(folder)
        config = config.model_copy(update={"model": str(folder)})
    else:
        config = config.model_copy(update={"adapter": Lora(r=4, lora_alpha=8.0, lora_dropout=0.3)})
    study = study_of(tmp_path, config, seed=[0, 1])
    alone = sweeps.sweep(study, out=tmp_path / "alone")
    packed = sweeps.sweep(study, out=tmp_path / "packed", pack=2)
    pd.testing.assert_frame_equal(packed, alone)


def test_a_run_that_cannot_be_begun_leaves_the_others_alone(config: RunConfig, tmp_path: Path) -> None:
    """Found only when the adapter is put on: one after another as in a pack, it is on record and the rest is made."""
    whole = [{"method": "top-layers", "layers": 5}, {"method": "lora", "r": 4}, {"method": "top-layers", "layers": 1}]
    study = study_of(tmp_path, config, adapter=whole)
    for pack in (1, 3):
        table = sweeps.sweep(study, out=tmp_path / str(pack), pack=pack)
        states = table.fillna({"layers": 0}).groupby("layers")["state"].first().to_dict()
        assert states == {0: "done", 1: "done", 5: "failed"}
        assert "expected at most the 2 there are" in table["reason"].dropna().iloc[0]


def test_a_run_that_diverges_leaves_the_others_alone(config: RunConfig, tmp_path: Path) -> None:
    study = study_of(tmp_path, config, **{"optimizer.learning_rate": [3e-3, 1e30, 1e-3]})
    alone = sweeps.sweep(study, out=tmp_path / "alone")
    packed = sweeps.sweep(study, out=tmp_path / "packed", pack=3)
    assert packed.groupby("learning_rate")["state"].first().to_dict() == {1e-3: "done", 3e-3: "done", 1e30: "diverged"}
    assert alone["reason"].dropna().unique().tolist() == packed["reason"].dropna().unique().tolist()
    sound = packed["state"] == "done"
    pd.testing.assert_frame_equal(
        numbers(packed[sound]), numbers(alone[alone["state"] == "done"]), rtol=1e-4, atol=1e-5
    )


def test_a_stopped_pack_goes_on_bit_for_bit(config: RunConfig, tmp_path: Path) -> None:
    study = study_of(tmp_path, config, **{"adapter.r": [2, 8, 4]})
    whole = sweeps.sweep(study, out=tmp_path / "whole", pack=3)
    stop = Stop()

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.step == 4 and at.index == 1:
            stop.asked = signal.SIGTERM

    with pytest.raises(Interrupted):
        sweeps.sweep(study, out=tmp_path / "stopped", pack=3, stop=stop, tell=tell)
    kept = sorted((tmp_path / "stopped").glob("*/checkpoint/step-*"))
    assert len(kept) == 3
    again = sweeps.sweep(study, out=tmp_path / "stopped", pack=3)
    pd.testing.assert_frame_equal(again, whole)


def test_out_of_memory_halves_the_rows_of_all(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    tried: list[int] = []
    batch_losses = updates.batch_losses

    def cramped(tuned: list[Tuned], blocks: list[object]) -> list[torch.Tensor]:
        tried.append(len(blocks[0].ids))  # type: ignore[attr-defined]
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return batch_losses(tuned, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(updates, "batch_losses", cramped)
    asked = []
    for seed in (0, 1):
        tuned = adapters.attach_adapter(adapters.same_weights(bench.base), config.adapter, seed=seed)
        blocks = list(islice(packed_batches(bench.training, context=48, rows=2, seed=0), 1))
        optimizer = updates.make_optimizer(config.optimizer, tuned)
        asked.append(Update(tuned=tuned, optimizer=optimizer, blocks=blocks, config=config, step=0, rows=2))
    made = updates.update(asked)
    assert tried == [2, 1, 1]
    assert [one.rows for one in made if not isinstance(one, Diverged)] == [1, 1]


@pytest.mark.parametrize("fits", ["one row of one run", "one of two"])
def test_where_runs_do_not_fit_together_each_is_made_by_itself(
    fits: str, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much for all is none of each; what is too much for one is no matter of another's."""
    batch_losses = updates.batch_losses

    def cramped(tuned: list[Tuned], blocks: list[object]) -> list[torch.Tensor]:
        large = any(isinstance(part, torch.nn.Linear) and part.out_features == 20 for part in tuned[0].modules())
        if len(tuned) * len(blocks[0].ids) > 1 if fits == "one row of one run" else large:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return batch_losses(tuned, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(updates, "batch_losses", cramped)
    adapter = {"lora_dropout": 0.1} if fits == "one of two" else {}
    config = config.model_copy(update={"adapter": Lora(r=4, lora_alpha=8.0, **adapter)})
    study = study_of(tmp_path, config, **{"adapter.r": [4, 20]})
    packed = sweeps.sweep(study, out=tmp_path / "packed", pack=2)
    alone = sweeps.sweep(study, out=tmp_path / "alone")
    assert packed.groupby("r")["state"].first().to_dict() == {4: "done", 20: "failed" if adapter else "done"}
    pd.testing.assert_frame_equal(numbers(packed), numbers(alone), rtol=1e-4, atol=1e-5)
