"""A sweep told to real trackers and read back from their own files; one that fails, at any moment, changes nothing."""

import contextlib
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from accelerate import tracking

from holdfast import archive
from holdfast.errors import ConfigError
from holdfast.integrations import trackers
from hostile import Answer, command, write_study
from hostile_texts import GOOD, SUMS, lines

pytestmark = pytest.mark.filterwarnings("ignore")  # the trackers' own
SET = ("--set", "steps=3", "--set", "measure.points=2", "--set", "retain=[kelp.jsonl, more.jsonl]")
ADAPTERS = ("--set", "grid.adapter.r=[1,2]")


def texts(folder: Path) -> Path:
    (folder / "sums.jsonl").write_bytes(lines(SUMS))
    (folder / "kelp.jsonl").write_bytes(GOOD)
    (folder / "more.jsonl").write_bytes(lines([{"text": f"Tide {i} takes what rock {i} holds."} for i in range(7)]))
    return folder


@pytest.fixture(scope="module")
def untold(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the same study without any tracker."""
    folder = texts(tmp_path_factory.mktemp("untold"))
    assert sweep(tiny, folder).code == 0
    return folder / "runs"


@pytest.fixture
def folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study, in a home of its own without anybody's keys."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return texts(tmp_path)


def sweep(tiny: Path, folder: Path, *more: str) -> Answer:
    study = write_study(folder, model=tiny, target="sums.jsonl", retain="kelp.jsonl")
    return command("sweep", study, *SET, *ADAPTERS, *more, folder=folder)


def expected(table: pd.DataFrame, run: str) -> dict[str, dict[int, float]]:
    """What a tracker should hold of a run, from the table of the sweep."""
    rows = table[table["run"] == run]
    target, retained = rows[rows["role"] == "target"], rows[rows["role"] == "retain"]
    found = {"eval_loss": dict(zip(target["step"], target["nll"], strict=True))}
    for corpus, part in retained.groupby("corpus"):
        found[f"forgetting/{corpus}"] = dict(zip(part["step"], part["kl_base_tuned"], strict=True))
    nats = (retained["kl_base_tuned"] * retained["scored_tokens"]).groupby(retained["step"]).sum()
    found["eval_forgetting"] = (nats / retained.groupby("step")["scored_tokens"].sum()).to_dict()
    return found


def agree(logged: dict[str, dict[int, float]], table: pd.DataFrame, run: str) -> None:
    for name, values in expected(table, run).items():
        assert logged[name] == {step: pytest.approx(value, rel=1e-6, abs=1e-9) for step, value in values.items()}, name
    assert set(logged["loss"]) == set(logged["learning_rate"]) == {1, 2, 3}
    assert list(logged["learning_rate"].values()) == pytest.approx([1e-3] * 3)


def same_runs(one: Path, other: Path) -> None:
    """The tables and the names of all files in the runs are the same, trackers or not."""
    pd.testing.assert_frame_equal(archive.table(one), archive.table(other))
    names = [
        sorted(path.relative_to(root) for path in root.rglob("*") if path.relative_to(root).parts[0] != "trackers")
        for root in (one, other)
    ]
    assert names[0] == names[1]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_what_the_table_holds(tiny: Path, folder: Path, untold: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'holdfast[tensorboard]'")
    answer = sweep(tiny, folder, "--report-to", "tensorboard")
    assert answer.code == 0, answer.err
    assert answer.out == ""
    same_runs(untold, folder / "runs")
    table = archive.table(folder / "runs")
    for run in table["run"].unique():
        place = folder / "runs" / "trackers" / "tensorboard" / run
        agree(scalars(place), table, run)
        (settings,) = place.glob("*/hparams.yml")
        assert f"adapter.r: {table[table['run'] == run]['r'].iloc[0]}" in settings.read_text()
    again = sweep(tiny, folder, "--report-to", "tensorboard", "--json")
    assert json.loads(again.out)  # and nothing else on stdout


def test_workers_tell_their_own_trackers(tiny: Path, folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'holdfast[tensorboard]'")
    answer = sweep(tiny, folder, "--report-to", "tensorboard", "--workers", "2")
    assert answer.code == 0, answer.err
    table = archive.table(folder / "runs")
    for run in table["run"].unique():
        agree(scalars(folder / "runs" / "trackers" / "tensorboard" / run), table, run)


def records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after the seven bytes of its own head."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(file: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """(what was logged, the config) of a run that Weights & Biases wrote offline."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    config: dict[str, Any] = {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in items.items():
            found.setdefault(name, {})[items.get("_step", record.history.step.num)] = value
        for update in (*record.config.update, *record.run.config.update):
            config["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return found, config


def test_weights_and_biases_writes_offline_and_never_asks(tiny: Path, folder: Path) -> None:
    """As a process of its own, with nothing to answer a question by."""
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'holdfast[wandb]'")
    study = write_study(folder, model=tiny, target="sums.jsonl", retain="kelp.jsonl")
    program = [sys.executable, "-c", "from holdfast.cli import main; main()"]
    ended = subprocess.run(
        [*program, "sweep", study, *SET, *ADAPTERS, "--report-to", "wandb", "--json"],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "goes on without" not in ended.stderr
    assert json.loads(ended.stdout)
    table = archive.table(folder / "runs")
    files = sorted((folder / "runs" / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    told = [history(file) for file in files]
    ranks = dict(table[["r", "run"]].drop_duplicates().itertuples(index=False))
    assert {config["adapter.r"] for _, config in told} == set(ranks)
    for logged, config in told:
        agree(logged, table, ranks[config["adapter.r"]])


def test_a_server_that_is_not_there_is_not_waited_for(
    tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'holdfast[wandb]'")
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(trackers, "ONLINE_S", 1)
    answer = sweep(tiny, folder, "--report-to", "wandb")
    assert answer.code == 0, answer.err
    assert set(archive.table(folder / "runs")["state"]) == {"done"}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert secret.encode() not in path.read_bytes(), path
    assert secret not in answer.err
    assert list((folder / "runs" / "trackers" / "wandb").glob("offline-run-*"))


def test_mlflow_holds_what_the_table_holds(tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install 'holdfast[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    answer = sweep(tiny, folder, "--report-to", "mlflow")
    assert answer.code == 0, answer.err
    table, client = archive.table(folder / "runs"), mlflow.MlflowClient()
    for run in client.search_runs([client.get_experiment_by_name("holdfast").experiment_id]):
        names = [*expected(table, run.info.run_name), "loss", "learning_rate"]
        logged = {name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)} for name in names}
        agree(logged, table, run.info.run_name)


def test_trackio_is_told(tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio", reason="needs Trackio: pip install 'holdfast[trackio]'")
    answer = sweep(tiny, folder, "--report-to", "trackio")
    assert answer.code == 0, answer.err
    assert "goes on without" not in answer.err
    assert list((folder / "trackio").rglob("*holdfast*"))


@contextlib.contextmanager
def breaking(moment: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorBoard's tracker raises at a moment: its start, its config, its end, or from the fourth thing logged on."""
    real, calls = getattr(tracking.TensorBoardTracker, moment), []

    def fails(self: object, *arguments: object, **options: object) -> object:
        calls.append(moment)
        if moment != "log" or len(calls) > 3:
            raise error
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.TensorBoardTracker, moment, fails)
        yield


FAILURES = [
    ("start", OSError(28, "No space left on device")), ("store_init_configuration", SystemExit(1)),
    ("log", RuntimeError("")), ("finish", ValueError("late")),
]  # fmt: skip


@pytest.mark.parametrize(("moment", "error"), FAILURES, ids=[moment for moment, _ in FAILURES])
def test_a_tracker_that_fails_stops_nothing(
    tiny: Path, folder: Path, untold: Path, moment: str, error: BaseException, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'holdfast[tensorboard]'")
    with breaking(moment, error, monkeypatch):
        answer = sweep(tiny, folder, "--report-to", "tensorboard")
    assert answer.code == 0, answer.err
    said = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
    assert len(said) == 1  # and not again in the second run
    assert said[0].startswith("tensorboard failed (")
    same_runs(untold, folder / "runs")


def test_a_place_that_cannot_be_written_stops_nothing(
    tiny: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'holdfast[tensorboard]'")
    (folder / "runs").mkdir()
    (folder / "runs" / "trackers").write_text("in the way")
    assert sweep(tiny, folder, "--report-to", "tensorboard").code == 0
    assert "goes on without it" in caplog.text
    assert set(archive.table(folder / "runs")["state"]) == {"done"}


def test_what_is_not_there_is_refused_before_anything_is_made(
    tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'holdfast[wandb]'")
    for name, said in (("tensorbord", "did you mean 'tensorboard'?"), ("wandb,neptune", "got 'neptune', expected one")):
        answer = sweep(tiny, folder, "--report-to", name)
        assert answer.code == 2
        assert said in answer.err
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    for name in trackers.NAMES:
        answer = sweep(tiny, folder, "--report-to", name)
        assert answer.code == 2
        assert f"got {name}, which is not installed: pip install 'holdfast[{name}]', at --report-to" in answer.err
        with pytest.raises(ConfigError):
            trackers.Tracking([name], out=folder)
    assert not (folder / "runs").exists()


def test_a_config_is_flat_and_plain() -> None:
    content = {"a": {"b": {"c": 1}, "d": None}, "e": ["x", "y"], "f": True, "g": "é"}
    assert trackers.flat(content) == {"a.b.c": 1, "a.d": "null", "e": '["x", "y"]', "f": True, "g": "é"}
