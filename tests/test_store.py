"""Run folders: what is acknowledged is there, what is damaged is named, nothing is dropped."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest

from holdfast import store
from holdfast.config import Adapter, Optimizer, RunConfig, Target
from holdfast.errors import ResourceError, StoreError
from holdfast.store import Row, recording


def config(r: int = 4) -> RunConfig:
    return RunConfig(
        model="m", dtype="float32", target=Target(data="learn"), retain=("keep",), adapter=Adapter(r=r), steps=4,
        optimizer=Optimizer(learning_rate=1e-3), batch_size=1, context=16,
    )  # fmt: skip


def row(step: int, quantity: str = "nll", value: float = 1 / 3, stderr: float = 0.1, corpus: str = "keep") -> Row:
    return Row(
        step=step, tokens=16 * step, corpus=corpus, role="retain", quantity=quantity, value=value, stderr=stderr,
        documents=7, scored_tokens=99,
    )  # fmt: skip


def made(root: Path, *, r: int = 4, rows: tuple[Row, ...] = (), end: str = "done") -> Path:
    with recording(config(r), root=root, provenance={"trainable_params": 10 * r}) as recorder:
        recorder.append(rows)
        if end == "done":
            recorder.finish({})
        elif end != "in progress":
            recorder.fail(end, "because")  # type: ignore[arg-type]
    return root / config(r).name


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = (row(0), row(1, value=math.pi, stderr=math.nan), row(2, value=5e-324))
    run = store.read_run(made(tmp_path, rows=rows))
    assert run.state == "done"
    assert run.rows[0] == rows[0]
    assert run.rows[1].value == math.pi
    assert math.isnan(run.rows[1].stderr)
    assert run.rows[2].value == 5e-324
    assert run.config == config()


def test_what_is_acknowledged_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    with recording(config(), root=tmp_path, provenance={}) as recorder:
        recorder.append([row(0), row(1)])
        assert [r.step for r in store.read_run(recorder.folder).rows] == [0, 1]
        assert store.read_run(recorder.folder).state == "in progress"


def test_a_value_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with recording(config(), root=tmp_path, provenance={}) as recorder, pytest.raises(ValueError, match="JSON"):
        recorder.append([row(0, value=math.nan)])


def test_an_unfinished_run_starts_over_from_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(row(0), row(1)), end="in progress")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "half").write_text("x")
    made(tmp_path, rows=(row(0),))
    assert [r.step for r in store.read_run(folder).rows] == [0]
    assert not (folder / "adapter").exists()


def test_a_torn_last_line_of_an_unfinished_run_is_passed_over(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(row(0), row(1)), end="in progress")
    whole = (folder / "records.jsonl").read_bytes()
    for cut in range(1, len(whole)):
        (folder / "records.jsonl").write_bytes(whole[:cut])
        assert len(store.read_run(folder).rows) == whole[:cut].count(b"\n")


@pytest.mark.parametrize("place", range(0, 260, 13))
def test_a_changed_byte_in_a_finished_run_is_named(place: int, tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(row(0),))
    whole = bytearray((folder / "records.jsonl").read_bytes())
    place %= len(whole) - 1
    whole[place] ^= 0x04
    (folder / "records.jsonl").write_bytes(bytes(whole))
    with pytest.raises(StoreError, match=r"records.jsonl:1") as caught:
        store.read_run(folder)
    assert caught.value.exit_code == 3


def test_a_finished_run_without_all_of_its_records_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path, rows=(row(0), row(1)))
    whole = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").write_bytes(whole[:-20])
    with pytest.raises(StoreError, match="half a record at the end of a finished run"):
        store.read_run(folder)
    (folder / "records.jsonl").unlink()
    with pytest.raises(StoreError, match="no records of a finished run"):
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
        store.table(tmp_path / "nothing")


def test_the_table_has_every_run_whatever_became_of_it(tmp_path: Path) -> None:
    made(tmp_path, r=1, rows=(row(0), row(0, "kl_base_tuned", 0.0), row(3), row(3, "kl_base_tuned", 0.25)))
    made(tmp_path, r=2, rows=(row(0),), end="diverged")
    made(tmp_path, r=3, end="failed")
    made(tmp_path, r=5, rows=(row(0),), end="in progress")
    table = store.table(tmp_path)
    states = table.groupby("r")["state"].first().to_dict()
    assert states == {1: "done", 2: "diverged", 3: "failed", 5: "in progress"}
    assert len(table) == 5
    (last,) = table[(table["r"] == 1) & (table["step"] == 3)].to_dict("records")
    assert (last["kl_base_tuned"], last["nll"], last["nll_stderr"]) == (0.25, 1 / 3, 0.1)
    assert (last["documents"], last["scored_tokens"], last["trainable_params"]) == (7, 99, 10)
    (failed,) = table[table["state"] == "failed"].to_dict("records")
    assert failed["reason"] == "because"
    assert math.isnan(failed["step"])


def _own(root: Path, ready: multiprocessing.Queue, leave: multiprocessing.Event) -> None:  # type: ignore[type-arg]
    with recording(config(), root=root, provenance={}) as recorder:
        recorder.append([row(0)])
        ready.put(True)
        leave.wait(30)


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Event()
    owner = context.Process(target=_own, args=(tmp_path, ready, leave))
    owner.start()
    try:
        ready.get(timeout=30)
        with pytest.raises(StoreError, match="written by another process"):
            made(tmp_path)
        assert len(store.read_run(tmp_path / config().name).rows) == 1  # and the refusal removed nothing
    finally:
        leave.set()
        owner.join(30)
    made(tmp_path, rows=(row(0), row(1)))
    assert len(store.read_run(tmp_path / config().name).rows) == 2


def test_a_place_that_cannot_be_written_is_a_resource(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        made(tmp_path / "file")
    assert caught.value.exit_code == 5


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", {"b": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(tmp_path / "a.json", {"b": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
