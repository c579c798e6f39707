"""A base divided between two processes: the numbers of one, a part of the bytes each, and an end that loses nothing."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import sharded
from holdfast import archive, cli, models, sharding, sweeps, trials, workers
from holdfast.config import Study, read_study
from holdfast.errors import ConfigError, Interrupted, ResourceError
from holdfast.interrupts import Stop
from holdfast.store import read_run

ROUNDED = 1e-7
"""Llama's norms and our logits are float32 whatever the weights are: one sum in another order may turn one rounding."""


@pytest.fixture
def study(tiny: Path, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two ranks of LoRA; processes are those of `sharded`, with a thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HELD", str(tmp_path))
    monkeypatch.setattr(workers, "PROGRAM", (sharded.__file__,))
    content = {
        "model": str(tiny), "dtype": "float32", "target": {"data": str(texts[0]), "held_out": 8},
        "retain": [str(texts[1])], "adapter": {"lora_alpha": 8}, "optimizer": {"learning_rate": 3e-3}, "steps": 8,
        "batch_size": 4, "gradient_accumulation_steps": 2, "context": 48,
        "measure": {"points": 2, "first": 3, "documents": 4}, "grid": {"adapter.r": [2, 8]},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return read_study(tmp_path / "study.yaml")


def one_long(tmp_path: Path) -> Study:
    """One run of 200 steps, measured at 0, 2, 9, 43 and 200."""
    changes = ["adapter.r=4", "steps=200", "measure.first=2", "measure.points=4", "gradient_accumulation_steps=1"]
    return read_study(tmp_path / "study.yaml", overrides=changes)


@contextmanager
def exactly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process in float64, as the others are."""
    monkeypatch.setattr(models, "load_base", sharded.exact)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def measured_steps(out: Path) -> set[int]:
    """Of the one run of a folder, so far."""
    (folder,) = (path.parent for path in out.glob("*/config.json"))
    return {one.step for one in read_run(folder).measurements}


def assert_adapters_equal(ours: Path, theirs: Path) -> None:
    """Every run's, number for number but for the order of sums."""
    for path in theirs.glob("*/adapter/adapter_model.safetensors"):
        made, weights = load_file(ours / path.relative_to(theirs)), load_file(path)
        assert made.keys() == weights.keys()
        for key, weight in weights.items():
            assert weight.dtype == torch.float64
            assert torch.allclose(made[key], weight, rtol=ROUNDED, atol=ROUNDED)


def test_two_processes_make_the_runs_of_one_and_hold_a_part_each(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "costs").mkdir()
    monkeypatch.setenv("COSTS", str(tmp_path / "costs"))
    together = workers.sweep_in_processes(study, out=tmp_path / "together", shard=2)
    monkeypatch.setattr(trials, "TRIED_S", 0.0)
    with exactly(monkeypatch):
        cost = trials.estimate_cost(study, out=tmp_path / "alone").to_dict()
        alone = sweeps.sweep(study, out=tmp_path / "alone")
    assert list(alone["state"].unique()) == ["done"]
    pd.testing.assert_frame_equal(together, alone, rtol=ROUNDED, atol=ROUNDED)
    assert_adapters_equal(tmp_path / "together", tmp_path / "alone")
    for number in (0, 1):
        found = json.loads((tmp_path / f"{number}.json").read_text())
        assert found["held"] < 0.8 * found["whole"]  # the tiny model is mostly embeddings
    foreseen = json.loads((tmp_path / "cost-0.json").read_text())
    assert [foreseen[name] == cost[name] for name in ("runs", "tokens", "flop")] == [True] * 3
    assert len(foreseen["device_memory_bytes"]) == 2
    assert foreseen["memory_bytes"] == max(foreseen["device_memory_bytes"])
    assert min(foreseen["device_memory_bytes"]) > 50_000_000  # torch alone


def test_a_stop_leaves_a_checkpoint_that_one_process_goes_on_from(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, out, stop = one_long(tmp_path), tmp_path / "runs", Stop()
    stop.working = 1

    heard: list[str] = []

    def look() -> None:
        if any(out.glob("*/records.jsonl")) and 2 in measured_steps(out):
            pids = {str(json.loads((tmp_path / f"{number}.json").read_text())["pid"]) for number in (0, 1)}
            sockets = subprocess.run(["ss", "-Htnpa"], capture_output=True, text=True, check=True).stdout.splitlines()
            heard.extend(line for line in sockets if any(f"pid={pid}," in line for pid in pids))
            stop.asked = signal.SIGTERM

    with pytest.raises(Interrupted) as stopped:
        workers.sweep_in_processes(read, out=out, shard=2, stop=stop, look=look)
    assert stopped.value.exit_code == 75
    assert len(heard) > 1
    assert all(line.split()[3].startswith(("127.0.0.1:", "[::1]:")) for line in heard)
    (checkpoint,) = out.glob("*/checkpoint/step-*")
    assert 2 <= int(checkpoint.name.removeprefix("step-")) < 200
    with exactly(monkeypatch):
        whole, alone = sweeps.sweep(read, out=out), sweeps.sweep(read, out=tmp_path / "alone")
    assert_adapters_equal(out, tmp_path / "alone")
    pd.testing.assert_frame_equal(whole, alone, rtol=ROUNDED, atol=ROUNDED)


def test_a_process_that_is_killed_is_named_and_the_run_goes_on(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, out, stop = one_long(tmp_path), tmp_path / "runs", Stop()

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.step == 5:
            stop.asked = signal.SIGTERM

    with exactly(monkeypatch), pytest.raises(Interrupted):
        sweeps.sweep(read, out=out, stop=stop, tell=tell)
    assert [path.name for path in out.glob("*/checkpoint/step-*")] == ["step-00000005"]
    killed: list[int] = []

    def look() -> None:
        if not killed and 9 in measured_steps(out):
            killed.append(json.loads((tmp_path / "1.json").read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(ResourceError, match=r"got process 2 of 2 ended by SIGKILL \(pid \d+\)") as died:
        workers.sweep_in_processes(read, out=out, shard=2, look=look)
    assert str(killed[0]) in str(died.value)
    assert not any(Path(f"/proc/{json.loads((tmp_path / f'{n}.json').read_text())['pid']}").exists() for n in (0, 1))
    (run,) = archive.read_runs(out)
    assert run.state == "in progress"
    assert [again.get("shard") for again in run.provenance["resumed"]] == [2]
    with exactly(monkeypatch):
        whole, alone = sweeps.sweep(read, out=out), sweeps.sweep(read, out=tmp_path / "alone")
    assert_adapters_equal(out, tmp_path / "alone")
    pd.testing.assert_frame_equal(whole, alone, rtol=ROUNDED, atol=ROUNDED)


ENDS = {
    "refuses first": (
        "if number == 0:\n    time.sleep(1)\n"
        "said = {'refused': ['ResourceError', f'process {number} ran out']}\n"
        "(meeting / f'{number}.json').write_text(json.dumps(said)); sys.exit(1)",
        "process 1 ran out",
    ),
    "ends without a word": ("sys.exit(7) if number else time.sleep(99)", "got process 2 of 2 ended by exit code 7"),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_first_that_ends_badly_is_told_of_and_the_others_end_too(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, expected = ENDS[how]
    (tmp_path / "program.py").write_text(
        "import json, sys, time\nfrom pathlib import Path\nwork = json.load(sys.stdin)['shard']\n"
        f"number, meeting = work['number'], Path(work['meeting'])\n{script}\n"
    )
    monkeypatch.setattr(workers, "PROGRAM", (str(tmp_path / "program.py"),))
    monkeypatch.setattr(workers, "LAST_WORDS_S", 2.0)
    with pytest.raises(ResourceError, match=expected):
        workers._made_together({}, 2, "cpu")


REFUSED = {
    "batch_size=3": "batch_size: got 3, expected a multiple of 2",
    "adapter={method: full}": "got 'full', expected lora or ia3",
    "adapter={method: top-layers, layers: 1}": "got 'top-layers', expected lora or ia3",
    "adapter={method: peft, peft_type: LOHA, config: {r: 2}}": "got 'LOHA', expected lora or ia3",
    "dtype=nf4": "got 'nf4', expected bfloat16 or float32",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_divided_is_refused_where_it_was_written(change: str, study: Study, tmp_path: Path) -> None:
    content = yaml.safe_load((tmp_path / "study.yaml").read_text())
    key, value = change.split("=", 1)
    content.pop("grid")
    content["adapter"]["r"] = 2
    content[key] = yaml.safe_load(value)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    refused = CliRunner().invoke(
        cli.app, ["sweep", str(tmp_path / "study.yaml"), "--shard", "2", "-o", str(tmp_path / "o")]
    )
    assert isinstance(refused.exception, ConfigError)
    assert refused.exception.exit_code == 2
    assert REFUSED[change] in str(refused.exception)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("options", [["--pack", "2"], ["--workers", "2"], ["--executor", "ray"]])
def test_what_shard_does_not_go_with_is_refused(options: list[str], study: Study, tmp_path: Path) -> None:
    arguments = ["sweep", str(tmp_path / "study.yaml"), "--shard", "2", "-o", str(tmp_path / "o"), *options]
    refused = CliRunner().invoke(cli.app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "--shard" in str(refused.exception)
    assert not (tmp_path / "o").exists()


def test_too_few_gpus_and_other_devices_are_refused(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="got 1 GPUs, expected 2"):
        sharding.check(study, shard=2, device="cuda")
    with pytest.raises(ConfigError, match="got device mps"):
        sharding.check(study, shard=2, device="mps")
