"""What a sweep is said to take: the arithmetic exactly, and that trying writes nothing and changes nothing."""

from pathlib import Path

import pandas as pd
import pytest

import crashes
import holdfast
from holdfast import checkpoints, files, trials
from holdfast.config import Study, read_study


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Study:
    return read_study(crashes.study(tiny, tmp_path))


def test_tokens_operations_and_disk_are_those_of_the_runs_to_be_made(study: Study, tmp_path: Path) -> None:
    cost = trials.estimate_cost(study, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    table = holdfast.sweep(study, out=tmp_path / "runs")
    runs = table.drop_duplicates("run")
    assert cost.runs == len(runs) == 2
    assert cost.tokens == (runs["total_steps"] * runs["batch_tokens"]).sum() == 2 * 24 * 64
    flop = (4 * runs["base_params"] + 6 * runs["trainable_params"]) * runs["total_steps"] * runs["batch_tokens"]
    assert cost.flop == pytest.approx(flop.sum())
    adapters = 4 * runs["trainable_params"].sum()
    largest = int(runs["trainable_params"].max())
    on_the_way = checkpoints.most_bytes(largest, 0) + files.passing_bytes(tmp_path, 4 * largest)
    assert cost.disk_bytes == adapters + on_the_way
    taken = sum(path.stat().st_size for path in (tmp_path / "runs").rglob("adapter_model.safetensors"))
    assert adapters <= taken <= 1.5 * adapters
    assert cost.seconds > 0
    assert cost.memory_bytes > 50_000_000  # torch alone
    assert trials.estimate_cost(study, out=tmp_path / "runs").runs == 0


def test_a_run_that_is_half_made_costs_half(study: Study, tmp_path: Path) -> None:
    made = holdfast.sweep(study, out=tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob(f"{made['run'].iloc[0]}")
    (folder / "done.json").unlink()
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:8]))  # to step 7 of 24
    cost = trials.estimate_cost(study, out=tmp_path / "runs")
    assert cost.runs == 1
    assert cost.tokens == round((1 - 7 / 25) * 24 * 64)
    again = holdfast.sweep(study, out=tmp_path / "runs")
    pd.testing.assert_frame_equal(made, again)


def test_ranks_in_between_lie_on_the_line_between_the_ends(study: Study, tmp_path: Path) -> None:
    small, large = study.runs
    middle = large.model_copy(update={"adapter": large.adapter.model_copy(update={"r": 5})})
    trial = trials._Trial([small, middle, large], "cpu")
    assert trial.params[middle.adapter] == (trial.params[small.adapter] + trial.params[large.adapter]) / 2
    ends = [trial.run_s(small), trial.run_s(large)]
    assert trial.run_s(middle) == pytest.approx(sum(ends) / 2)
    longer = small.model_copy(update={"steps": 2 * small.steps})
    assert trial.run_s(longer) > ends[0]
