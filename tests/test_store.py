"""Run folders: what is acknowledged is there, what is damaged is named, nothing is dropped."""

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from holdfast import archive, store
from holdfast.config import Optimizer, RunConfig, Target
from holdfast.errors import ResourceError, StoreError
from holdfast.methods import Lora
from holdfast.store import QUANTITIES, Measurement, owning


def config(r: int = 4) -> RunConfig:
    return RunConfig(
        model="m", dtype="float32", target=Target(data="learn"), retain=("keep",), adapter=Lora(r=r), steps=4,
        optimizer=Optimizer(learning_rate=1e-3), batch_size=1, context=16,
    )  # fmt: skip


def measured(step: int, value: float = 1 / 3, stderr: float = 0.1, corpus: str = "keep") -> Measurement:
    return Measurement(
        step=step, tokens=16 * step, corpus=corpus, role="retain", documents=7, scored_tokens=99,
        values=dict.fromkeys(QUANTITIES, (value, stderr)),
    )  # fmt: skip


def made(root: Path, *, r: int = 4, rows: tuple[Measurement, ...] = (), end: str = "done") -> Path:
    with owning(config(r), root=root) as recorder:
        assert recorder is not None
        recorder.begin({"trainable_params": 10 * r})
        for row in rows:
            recorder.append(row)
        if end == "done":
            recorder.finish({})
        elif end != "in progress":
            recorder.fail(end, "because")  # type: ignore[arg-type]
    return root / config(r).name


def steps(folder: Path) -> list[int]:
    return [one.step for one in store.read_run(folder).measurements]


def test_measurements_come_back_exactly(tmp_path: Path) -> None:
    rows = (measured(0), measured(1, value=math.pi, stderr=math.nan), measured(2, value=5e-324))
    run = store.read_run(made(tmp_path, rows=rows))
    assert run.state == "done"
    assert run.measurements[0] == rows[0]
    value, stderr = run.measurements[1].values["nll"]
    assert value == math.pi
    assert math.isnan(stderr)
    assert run.measurements[2] == rows[2]
    assert run.config == config()


def test_what_is_acknowledged_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with owning(config(), root=tmp_path) as recorder:
        assert recorder is not None
        recorder.begin({})
        recorder.append(measured(0))
        recorder.append(measured(1))
        assert steps(recorder.folder) == [0, 1]
        assert store.read_run(recorder.folder).state == "in progress"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_a_number_is_refused(value: float, tmp_path: Path) -> None:
    with owning(config(), root=tmp_path) as recorder:
        assert recorder is not None
        with pytest.raises(ValueError, match="JSON"):
            recorder.append(measured(0, value=value))
    assert not (tmp_path / config().name / "records.jsonl").exists()


def test_no_place_is_recorded_twice(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0), measured(0, corpus="other"), measured(1)), end="in progress")
    with owning(config(), root=tmp_path) as recorder:
        assert recorder is not None
        recorder.begin({"trainable_params": 40})
        assert recorder.recorded == {(0, "keep"), (0, "other"), (1, "keep")}
        with pytest.raises(ValueError, match="second measurement of keep at step 1"):
            recorder.append(measured(1))
        recorder.append(measured(2))
    assert steps(folder) == [0, 0, 1, 2]


@pytest.mark.parametrize("part", [0.001, 0.3, 0.5, 0.999])
def test_a_torn_last_line_is_passed_over_by_readers_and_cut_off_by_the_next_owner(part: float, tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0), measured(1)), end="in progress")
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    for keep in (whole[: round(part * len(whole))], whole[:-1]):
        records.write_bytes(keep)
        count = keep.count(b"\n")
        assert len(steps(folder)) == count
        made(tmp_path, rows=tuple(measured(step) for step in range(count, 2)), end="in progress")
        assert records.read_bytes() == whole


def test_the_order_of_a_mended_run_is_that_of_its_steps(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0), measured(4), measured(1)))
    assert steps(folder) == [0, 1, 4]


@pytest.mark.parametrize("place", range(0, 700, 23))
def test_a_changed_byte_is_named_and_in_a_run_in_progress_set_aside(place: int, tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0), measured(1)))
    records = folder / "records.jsonl"
    whole = bytearray(records.read_bytes())
    whole[place % whole.index(b"\n")] ^= 0x04
    records.write_bytes(bytes(whole))
    with pytest.raises(StoreError, match=r"records.jsonl:1") as caught:
        store.read_run(folder)
    assert caught.value.exit_code == 3
    (folder / "done.json").unlink()
    made(tmp_path, rows=(measured(0),))
    assert store.read_run(folder).measurements == (measured(0), measured(1))
    (aside,) = folder.glob("damaged-*")
    assert aside.read_bytes() == whole[: whole.index(b"\n") + 1]


def test_a_finished_run_without_all_of_its_records_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0), measured(1)))
    records = folder / "records.jsonl"
    whole = records.read_bytes()
    for left in (whole[:-20], whole[: whole.index(b"\n") + 1], b""):
        records.write_bytes(left)
        with pytest.raises(StoreError, match="expected the 2 of a finished run"):
            store.read_run(folder)
    records.unlink()
    with pytest.raises(StoreError, match="got 0 records"):
        store.read_run(folder)


@pytest.mark.parametrize("name", ["done.json", "provenance.json", "failed.json"])
def test_a_changed_value_in_any_other_file_is_named(name: str, tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0),), end="failed" if name == "failed.json" else "done")
    content = json.loads((folder / name).read_text())
    key = next(key for key in content if key != "crc32")
    content[key] = 41
    for damaged in (json.dumps(content), "[1]", "{", ""):
        (folder / name).write_text(damaged)
        with pytest.raises(StoreError, match=name):
            store.read_run(folder)


def test_a_config_that_is_not_the_folders_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "config.json").write_text(config(8).canonical())
    with pytest.raises(StoreError, match=f"expected the folder's own name, at {folder}"):
        store.read_run(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(StoreError, match=r"no readable config.json"):
        store.read_run(folder)
    with pytest.raises(StoreError, match="no run folders"):
        archive.table(tmp_path / "nothing")


def test_what_a_run_was_begun_with_is_what_it_goes_on_with(tmp_path: Path) -> None:
    for time_, weights in (("1", "aa"), ("2", "aa"), ("3", "bb")):
        with owning(config(), root=tmp_path) as recorder:
            assert recorder is not None
            origin = {"started_at": time_, "threads": 2, "fingerprints": {"weights": weights}}
            if weights == "bb":
                with pytest.raises(StoreError, match="got other weights or texts than this run was begun with"):
                    recorder.begin(origin)
            else:
                recorder.begin(origin)
    found = store.read_run(tmp_path / config().name).provenance
    assert found["started_at"] == "1"
    assert found["resumed"] == [{"started_at": "2"}]


def test_the_table_has_every_run_whatever_became_of_it(tmp_path: Path) -> None:
    made(tmp_path, r=1, rows=(measured(0, 0.0), measured(3, 0.25)))
    made(tmp_path, r=2, rows=(measured(0),), end="diverged")
    made(tmp_path, r=3, end="failed")
    made(tmp_path, r=5, rows=(measured(0),), end="in progress")
    table = archive.table(tmp_path)
    states = table.groupby("r")["state"].first().to_dict()
    assert states == {1: "done", 2: "diverged", 3: "failed", 5: "in progress"}
    assert len(table) == 5
    (last,) = table[(table["r"] == 1) & (table["step"] == 3)].to_dict("records")
    assert (last["kl_base_tuned"], last["nll"], last["nll_stderr"]) == (0.25, 0.25, 0.1)
    assert (last["documents"], last["scored_tokens"], last["trainable_params"]) == (7, 99, 10)
    (failed,) = table[table["state"] == "failed"].to_dict("records")
    assert failed["reason"] == "because"
    assert math.isnan(failed["step"])
    (tmp_path / "begun").mkdir()
    made(tmp_path / "begun", r=3, end="failed")
    alone = archive.table(tmp_path / "begun")
    assert set(alone) == set(table)
    assert alone[["role", "corpus", "step", "kl_base_tuned"]].isna().all(axis=None)


def test_a_failed_run_goes_on_from_what_it_has(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(measured(0),), end="failed")
    with owning(config(), root=tmp_path) as recorder:
        assert recorder is not None
        recorder.retry()
    assert store.standing(folder) == ("in progress", None)
    assert steps(made(tmp_path, rows=(measured(1),))) == [0, 1]


def _own(root: Path, ready: multiprocessing.Queue, leave: multiprocessing.Event) -> None:  # type: ignore[type-arg]
    with owning(config(), root=root) as recorder:
        assert recorder is not None
        recorder.begin({"trainable_params": 40})
        recorder.append(measured(0))
        ready.put(True)
        leave.wait(60)


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_a_run_has_one_owner_which_a_pause_does_not_change_and_death_does(end: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Event()
    owner = context.Process(target=_own, args=(tmp_path, ready, leave))
    owner.start()
    folder = tmp_path / config().name
    assert owner.pid is not None
    waited: list[bool] = []

    def wait() -> None:
        """Pause the owner, find that this changes nothing, and only then let go of it."""
        waited.append(store.owned(folder))
        if len(waited) == 1:
            os.kill(owner.pid, signal.SIGSTOP)
        elif len(waited) == 3:
            os.kill(owner.pid, signal.SIGCONT)
            leave.set() if end == "leaves" else os.kill(owner.pid, signal.SIGKILL)

    try:
        ready.get(timeout=60)
        assert store.owned(folder)
        with owning(config(), root=tmp_path) as recorder:
            assert recorder is None
        assert steps(folder) == [0]
        with owning(config(), root=tmp_path, wait=wait) as recorder:
            assert recorder is not None
            recorder.begin({"trainable_params": 40})
            assert recorder.recorded == {(0, "keep")}
        assert waited[:3] == [True, True, True]
    finally:
        owner.kill()
        owner.join(60)
    assert not store.owned(folder)


def test_a_place_that_cannot_be_written_is_a_resource(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        made(tmp_path / "file")
    assert caught.value.exit_code == 5
