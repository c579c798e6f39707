"""A small real sweep of a tiny model: made once, read back at once, and honest about what went wrong."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

import holdfast
from holdfast import archive, store, sweeps, trials
from holdfast.config import read_study
from holdfast.errors import ConfigError, DataError, Interrupted, ModelError, StoreError
from holdfast.interrupts import Stop


@pytest.fixture
def study(tiny: Path, texts: tuple[Path, Path], tmp_path: Path) -> Path:
    content = {
        "model": str(tiny),
        "dtype": "float32",
        "target": {"data": str(texts[0]), "held_out": 8},
        "retain": [str(texts[1])],
        "adapter": {"lora_alpha": 8},
        "optimizer": {"learning_rate": 3e-3},
        "steps": 6,
        "batch_size": 2,
        "context": 48,
        "measure": {"points": 3, "first": 2, "documents": 4},
        "grid": {"adapter.r": [2, 8]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def heard(study: Path, out: Path, **options: object) -> tuple[pd.DataFrame, list[sweeps.Progress]]:
    events: list[sweeps.Progress] = []
    return holdfast.sweep(study, out=out, tell=events.append, **options), events


def test_a_sweep_makes_its_runs_and_reads_them_back_at_once(study: Path, tmp_path: Path) -> None:
    first, events = heard(study, tmp_path / "runs")
    assert first["r"].unique().tolist() == [2, 8]
    assert first.groupby(["run", "step", "corpus"]).size().eq(1).all()
    assert len(first) == 2 * 4 * 2
    control = first[first["step"] == 0]
    assert control["kl_base_tuned"].tolist() == [0.0] * 4
    assert control["agreement"].tolist() == [1.0] * 4
    shares = [(e.index + e.event.share) / e.runs for e in events if e.event]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    again, quiet = heard(study, tmp_path / "runs")
    pd.testing.assert_frame_equal(first, again)
    assert [e.state for e in quiet] == ["done", "done"]
    assert all(e.event is None for e in quiet)
    pd.testing.assert_frame_equal(
        first.sort_values(["run", "step", "corpus"], ignore_index=True),
        archive.table(tmp_path / "runs").sort_values(["run", "step", "corpus"], ignore_index=True),
    )


def test_the_same_study_elsewhere_gives_the_same_rows(study: Path, tmp_path: Path) -> None:
    one, _ = heard(study, tmp_path / "one")
    other, _ = heard(study, tmp_path / "other")
    pd.testing.assert_frame_equal(one, other)


def test_a_study_goes_on_elsewhere_from_its_archive(study: Path, tmp_path: Path) -> None:
    whole, _ = heard(study, tmp_path / "whole")
    first, other = archive.read_runs(tmp_path / "whole")
    (tmp_path / "rest").mkdir()
    archive.write_archive([first], tmp_path / "rest" / archive.FILE)
    assert trials.estimate_cost(read_study(study), out=tmp_path / "rest").runs == 1
    again, events = heard(study, tmp_path / "rest")
    pd.testing.assert_frame_equal(again, whole)
    assert {e.run.name for e in events if e.event} == {other.name}


def test_a_run_folder_is_complete(study: Path, tmp_path: Path) -> None:
    heard(study, tmp_path / "runs")
    for run in archive.read_runs(tmp_path / "runs"):
        names = {path.name for path in run.folder.iterdir()}
        assert names == {"config.json", "provenance.json", "records.jsonl", "adapter", "done.json"}
        assert {"versions", "platform", "fingerprints", "trainable_params", "threads"} <= run.provenance.keys()
        assert {"weights", "training", "target:sums", "retain:kelp"} == run.provenance["fingerprints"].keys()
        report = holdfast.measure(
            base=run.config.model, tuned=str(run.folder), texts=run.config.retain, context=48, documents=4,
            dtype="float32",
        )["kelp"]  # fmt: skip
        (last,) = [one for one in run.measurements if one.step == 6 and one.role == "retain"]
        assert report.kl_base_tuned.value == pytest.approx(last.values["kl_base_tuned"][0], abs=1e-7)


def test_an_unfinished_run_starts_over_and_ends_the_same(study: Path, tmp_path: Path) -> None:
    whole, _ = heard(study, tmp_path / "runs")
    folder = archive.read_runs(tmp_path / "runs")[0].folder
    (folder / "done.json").unlink()
    lines = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").write_bytes(lines[: len(lines) // 2])
    again, events = heard(study, tmp_path / "runs")
    pd.testing.assert_frame_equal(whole, again)
    assert sum(e.event is not None and e.event.report is None for e in events) == 6


def test_a_diverged_run_is_listed_and_the_sweep_goes_on(study: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study.read_text())
    content["grid"] = {"optimizer.learning_rate": [1e30, 3e-3], "adapter.r": [2]}
    content["measure"]["points"] = 6
    study.write_text(yaml.safe_dump(content))
    table, _ = heard(study, tmp_path / "runs")
    states = table.groupby("learning_rate")["state"].first()
    assert states[1e30] == "diverged"
    assert states[3e-3] == "done"
    reason = table.loc[table["state"] == "diverged", "reason"].iloc[0]
    assert reason.startswith("step ")
    again, _ = heard(study, tmp_path / "runs")
    assert again.groupby("learning_rate")["state"].first()[1e30] == "diverged"
    fitted = holdfast.fit(table)
    assert fitted.n_runs == 1
    assert any("not in any fit" in warning and "diverged" in warning for warning in fitted.warnings)


def test_a_failed_run_is_listed_and_can_be_tried_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 99 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(sweeps, "learning", out_of_memory)
        table, _ = heard(study, tmp_path / "runs")
    assert table["state"].tolist() == ["failed", "failed"]
    assert table["reason"].str.contains("not enough memory").all()
    kept, _ = heard(study, tmp_path / "runs")
    assert kept["state"].unique().tolist() == ["failed"]
    made, _ = heard(study, tmp_path / "runs", retry_failed=True)
    assert made["state"].unique().tolist() == ["done"]


def test_other_texts_in_the_same_folder_are_refused(study: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    heard(study, tmp_path / "runs")
    texts[1].write_text("".join(json.dumps({"text": f"Another text, the {i}th of them."}) + "\n" for i in range(6)))
    with pytest.raises(DataError, match=r"got other texts \(retain:kelp\) than run .* was begun with"):
        heard(study, tmp_path / "runs")


def test_two_texts_of_one_name_are_refused(study: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sums.jsonl").write_text(texts[1].read_text())
    content = yaml.safe_load(study.read_text())
    content["retain"] = [str(tmp_path / "other" / "sums.jsonl")]
    study.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="got texts named sums, sums"):
        heard(study, tmp_path / "runs")


def test_a_wrong_study_is_refused_before_anything_is_written(study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text().replace("steps: 6", "steps: six"))
    with pytest.raises(ConfigError, match="steps: got 'six'"):
        heard(study, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_adapters_of_measured_steps_are_kept_on_request_and_are_the_runs_own(study: Path, tmp_path: Path) -> None:
    """Stopped in the middle, and one lost: whatever is missing is made again, and measures as it was recorded."""
    plain, _ = heard(study, tmp_path / "plain")
    stop = Stop()

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.report is None and at.event.step == 4:
            stop.asked = signal.SIGTERM

    with pytest.raises(Interrupted):
        holdfast.sweep(study, out=tmp_path / "runs", keep_adapters=True, stop=stop, tell=tell)
    (lost,) = (tmp_path / "runs").glob("*/checkpoint-2")
    shutil.rmtree(lost)
    table, _ = heard(study, tmp_path / "runs", keep_adapters=True)
    pd.testing.assert_frame_equal(plain, table)
    for run in archive.read_runs(tmp_path / "runs"):
        assert {path.name for path in run.folder.glob("checkpoint-*")} == {
            "checkpoint-2",
            "checkpoint-3",
            "checkpoint-6",
        }
        report = holdfast.measure(
            base=run.config.model, tuned=str(run.folder), texts=run.config.retain, context=48, documents=4,
            dtype="float32",
        )  # fmt: skip
        found = {point.step: text.kl_base_tuned.value for point, text in report.rows()}
        recorded = {one.step: one.values["kl_base_tuned"][0] for one in run.measurements if one.role == "retain"}
        assert set(found) == {2, 3, 6}
        assert all(found[step] == pytest.approx(recorded[step], abs=1e-7) for step in found)


@pytest.fixture
def finished(study: Path, tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """The folder of one finished run, and its table."""
    table = holdfast.sweep(read_study(study, overrides=["grid.adapter.r=[2]"]), out=tmp_path / "runs")
    return tmp_path / "runs" / str(table["run"].iloc[0]), table


@pytest.mark.parametrize("damage", ["a bit", "half", "empty", "gone"])
@pytest.mark.parametrize("name", ["records.jsonl", "done.json", "provenance.json", "config.json"])
def test_whatever_is_damaged_is_named_and_made_again_on_request(
    name: str,
    damage: str,
    study: Path,
    finished: tuple[Path, pd.DataFrame],
    record_property: Callable[[str, object], None],
) -> None:
    folder, whole = finished
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x02
    left = {"a bit": bytes(content), "half": bytes(content[: len(content) // 2]), "empty": b""}
    (folder / name).unlink() if damage == "gone" else (folder / name).write_bytes(left[damage])
    one = read_study(study, overrides=["grid.adapter.r=[2]"])
    if name == "config.json" or (name, damage) == ("done.json", "gone"):
        table = holdfast.sweep(one, out=folder.parent)  # its name says what it was; or the run was simply not over
    else:
        with pytest.raises(StoreError, match=rf"{name}.*--retry-failed makes it again") as refused:
            holdfast.sweep(one, out=folder.parent)
        assert refused.value.exit_code == 3
        table = holdfast.sweep(one, out=folder.parent, retry_failed=True)
    pd.testing.assert_frame_equal(whole, table)
    record_property(
        "Durability",
        "each file of a finished run changed by a bit, cut in half, emptied, removed | 16 | named with exit code 3; "
        "`--retry-failed` makes the same table again",
    )


def test_an_adapter_that_changed_since_its_run_is_not_measured(
    study: Path, finished: tuple[Path, pd.DataFrame]
) -> None:
    folder, _ = finished
    path = folder / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x01
    path.write_bytes(content)
    run = store.read_run(folder)
    with pytest.raises(ModelError, match=r"changed since the run was finished, at .*adapter_model.safetensors"):
        holdfast.measure(base=run.config.model, tuned=str(folder), texts=run.config.retain, context=48, dtype="float32")
