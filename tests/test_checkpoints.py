"""Saved and restored is never stopped: bit for bit; and what is damaged is never gone on from."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast import adapters, checkpoints, training, updates
from holdfast.config import Measure, Optimizer, RunConfig, Target
from holdfast.errors import Interrupted, ModelError
from holdfast.methods import Lora
from holdfast.store import Measurement
from holdfast.training import Ledger, Workbench


@pytest.fixture(params=["adamw", "adafactor"])
def config(request: pytest.FixtureRequest, tiny: Path, texts: tuple[Path, Path]) -> RunConfig:
    """With all that could be lost on the way: dropout, accumulation, a schedule, and more than two epochs."""
    return RunConfig(
        model=str(tiny), dtype="float32", target=Target(data=str(texts[0]), held_out=8), retain=(str(texts[1]),),
        adapter=Lora(r=4, lora_alpha=8.0, lora_dropout=0.2), steps=12, batch_size=2, gradient_accumulation_steps=2,
        optimizer=Optimizer(name=request.param, learning_rate=3e-3, schedule="cosine", warmup_steps=3), context=48,
        measure=Measure(points=4, first=2, documents=4), seed=5,
    )  # fmt: skip


class Trial:
    """One run in memory that can be stopped at any step and gone on with in another model."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.bench: Workbench = training.prepare(config, training.read_texts(config), device="cpu")
        self.measured: list[Measurement] = []

    def run(self, *, start: checkpoints.Snapshot | None, until: int | None, folder: Path) -> dict[str, torch.Tensor]:
        """Train from a snapshot, stopping (if asked) when so many updates were made; what is kept goes to a folder."""
        tuned = adapters.attach_adapter(self.bench.base, self.config.adapter, seed=self.config.seed)
        made: list[int] = []

        def pause() -> None:
            if until is not None and made and made[-1] >= until:
                raise Interrupted("now", exit_code=75)

        ledger = Ledger(
            record=self.measured.append, recorded={one.place for one in self.measured}, start=start, pause=pause,
            keep=lambda snapshot: checkpoints.save_snapshot(snapshot, folder),
        )  # fmt: skip
        try:
            training.train(
                tuned, self.config, self.bench, ledger=ledger,
                tell=lambda event: made.append(event.step) if event.report is None else None,
            )  # fmt: skip
            torch.rand(3)  # whoever draws between two lives of a run must not matter
            return {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}
        except Interrupted:
            return {}
        finally:
            adapters.detach_adapter(tuned)


def test_a_run_stopped_anywhere_goes_on_bit_for_bit(config: RunConfig, tmp_path: Path) -> None:
    whole = Trial(config)
    assert 12 * config.batch_tokens > 2 * sum(len(tokens.ids) for tokens in whole.bench.training)
    expected = whole.run(start=None, until=None, folder=tmp_path / "whole")
    for stops in ([1], [2], [7], [11], [1, 2, 3, 9]):
        trial, folder = Trial(config), tmp_path / "-".join(map(str, stops))
        start = None
        for stop in stops:
            assert trial.run(start=start, until=stop, folder=folder) == {}
            start = checkpoints.newest(folder, at_most=12)
            assert start is not None
            assert start.step == stop
        found = trial.run(start=start, until=None, folder=folder)
        assert trial.measured == whole.measured, stops
        assert all(torch.equal(found[name], expected[name]) for name in expected), stops


def test_each_part_of_a_snapshot_is_needed(config: RunConfig, tmp_path: Path) -> None:
    """Without the optimiser's state, the random state or the parameters the run ends elsewhere."""
    expected = Trial(config).run(start=None, until=None, folder=tmp_path / "whole")
    stopped = Trial(config)
    stopped.run(start=None, until=7, folder=tmp_path / "stopped")
    snapshot = checkpoints.newest(tmp_path / "stopped", at_most=12)
    assert snapshot is not None
    fresh = Trial(config)
    fresh.run(start=None, until=1, folder=tmp_path / "other")
    other = checkpoints.newest(tmp_path / "other", at_most=12)
    assert other is not None
    for part in ("parameters", "optimizer", "random"):
        broken = checkpoints.Snapshot(**{**vars(snapshot), part: getattr(other, part)})
        found = Trial(config).run(start=broken, until=None, folder=tmp_path / "whole")
        assert not all(torch.equal(found[name], expected[name]) for name in expected), part


@pytest.fixture
def saved(config: RunConfig, tmp_path: Path) -> tuple[Trial, Path]:
    """Two sound checkpoints, of 3 and 6 steps."""
    trial = Trial(config)
    trial.run(start=None, until=3, folder=tmp_path / "three")
    start = checkpoints.newest(tmp_path / "three", at_most=12)
    trial.run(start=start, until=6, folder=tmp_path / "both")
    (tmp_path / "three" / "step-00000003").rename(tmp_path / "both" / "step-00000003")
    return trial, tmp_path / "both"


def newest_step(folder: Path, at_most: int = 12) -> int | None:
    snapshot = checkpoints.newest(folder, at_most=at_most)
    return snapshot and snapshot.step


def test_the_newest_that_is_not_too_new_is_taken(saved: tuple[Trial, Path]) -> None:
    _, folder = saved
    assert [newest_step(folder, at_most=most) for most in (2, 3, 5, 6, 12)] == [None, 3, 3, 6, 6]


@pytest.mark.parametrize("name", ["parameters", "optimizer", "random", "manifest"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(
    name: str, damage: str, saved: tuple[Trial, Path], caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    _, folder = saved
    (path,) = (folder / "step-00000006").glob(f"{name}.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    changed = {"flip": bytes(content), "truncate": bytes(content[:-7]), "empty": b"", "delete": b""}[damage]
    path.unlink() if damage == "delete" else path.write_bytes(changed)
    assert newest_step(folder) == 3
    assert path.name in caplog.text or "step-00000006" in caplog.text
    assert (folder / "damaged-step-00000006").is_dir()
    assert newest_step(folder) == 3
    record_property(
        "Durability",
        "each file of the newest checkpoint changed by a bit, cut short, emptied, deleted | 16, AdamW and Adafactor | "
        "named, set aside, gone on from the one before",
    )


def test_the_one_before_goes_when_the_next_is_verified(saved: tuple[Trial, Path]) -> None:
    trial, folder = saved
    (folder / ".step-00000007.making").mkdir()  # what a crash left
    start = checkpoints.newest(folder, at_most=12)
    trial.run(start=start, until=9, folder=folder)
    assert [path.name for path in folder.iterdir()] == ["step-00000009"]


def test_a_checkpoint_of_another_run_is_refused(config: RunConfig, saved: tuple[Trial, Path]) -> None:
    _, folder = saved
    start = checkpoints.newest(folder, at_most=12)
    other = Trial(config.model_copy(update={"adapter": Lora(r=2)}))
    with pytest.raises(ModelError, match="checkpoint of other parameters"):
        other.run(start=start, until=None, folder=folder)


def test_there_is_no_pickle_in_it(saved: tuple[Trial, Path]) -> None:
    _, folder = saved
    names = {path.name for path in (folder / "step-00000006").iterdir()}
    assert names == {"manifest.json", "parameters.safetensors", "optimizer.safetensors", "random.safetensors"}


def test_out_of_memory_halves_the_rows_and_nothing_else(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with room for one row at a time learns what one with room for all does, and goes on from there."""
    roomy = config.model_copy(update={"adapter": Lora(r=4, lora_alpha=8.0), "batch_size": 4})
    expected = Trial(roomy).run(start=None, until=None, folder=tmp_path / "whole")
    batch_losses, tried = updates.batch_losses, []

    def cramped(tuned: list[torch.nn.Module], blocks: list[object]) -> list[torch.Tensor]:
        tried.append(len(blocks[0].ids))  # type: ignore[attr-defined]
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return batch_losses(tuned, blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(updates, "batch_losses", cramped)
    trial = Trial(roomy)
    trial.run(start=None, until=5, folder=tmp_path / "small")
    assert tried[:6] == [4, 2, 1, 1, 1, 1]
    assert set(tried[6:]) == {1}
    start = checkpoints.newest(tmp_path / "small", at_most=12)
    assert start is not None
    assert start.rows == 1
    tried.clear()
    found = trial.run(start=start, until=None, folder=tmp_path / "small")
    assert set(tried) == {1}
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=2e-3), name


def test_one_row_too_many_for_the_memory_ends_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cramped(*_: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(updates, "batch_losses", cramped)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        Trial(config).run(start=None, until=None, folder=tmp_path / "whole")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient", "measurement"])
def test_what_is_not_a_number_ends_the_run_wherever_it_appears(
    where: str, value: float, config: RunConfig, tmp_path: Path
) -> None:
    """Put into the live model: the loss by an embedding, the gradient alone by a hook, a measurement by the adapter."""
    trial = Trial(config)
    tuned = adapters.attach_adapter(trial.bench.base, config.adapter, seed=0)
    parameters = [p for p in tuned.parameters() if p.requires_grad]

    def harm(event: training.Event) -> None:
        if event.step == 2 and event.report is None and where != "gradient":
            with torch.no_grad():
                parameters[-1].fill_(value)

    if where == "gradient":
        calls: list[int] = []
        parameters[0].register_hook(lambda grad: grad * value if calls.append(1) or len(calls) > 5 else grad)
    steps = {"measurement": 2, "loss": 3, "gradient": 3}[where]
    ledger = None if where == "loss" else Ledger(record=trial.measured.append)
    with pytest.raises(training.Diverged, match=rf"step {steps}: .*(nan|inf|NaN|infinity)"):
        training.train(tuned, config, trial.bench, ledger=ledger, tell=harm)
    assert all(math.isfinite(v) for one in trial.measured for v, _ in one.values.values())
