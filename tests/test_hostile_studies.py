"""Wrong study files at the command line: exit code 2, every mistake at its place, no traceback, nothing made."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hostile import Tally, command
from hostile_studies import Study, studies
from test_config import BODY

STUDIES = list(studies())
TALLY = Tally()


def test_there_are_more_than_a_hundred() -> None:
    assert len(STUDIES) >= 150
    assert len({(s.content, s.overrides) for s in STUDIES}) == len(STUDIES)


@pytest.mark.parametrize("study", STUDIES, ids=[f"{s.group}-{s.key}-{s.got}"[:60] for s in STUDIES])
def test_a_mistake_is_located_and_explained(tmp_path: Path, study: Study) -> None:
    (tmp_path / "study.yaml").write_bytes(study.content)
    overrides = [part for override in study.overrides for part in ("--set", override)]
    answer = command("sweep", "study.yaml", *overrides, folder=tmp_path)
    assert answer.code == 2
    assert answer.err.startswith("ConfigError: ")
    assert not answer.out
    where = f"{study.place}: {study.key}: " if study.key else f"{study.place}: "
    found = [line for line in answer.refusal if line.startswith(where)]
    assert len(found) == 1, answer.err
    got, expected = found[0].removeprefix(where).split(", expected ", 1)
    assert study.got in got
    assert study.expected in f"expected {expected}"
    assert len(answer.refusal) == 1 or not study.alone, answer.err
    assert all(len(line) < 500 and line.isprintable() for line in answer.refusal)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]  # neither runs nor what a file would run
    TALLY.add(f"study file: {study.group}", answer, tmp_path, line=found[0])


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = BODY.replace("dtype: float32", "dtype: f32").replace("r: 16", "rank: 16").replace("seed: 0", "sed: 0")
    (tmp_path / "study.yaml").write_text(text)
    answer = command("sweep", "study.yaml", "--set", "batch_size=0", folder=tmp_path)
    assert answer.code == 2
    assert [line.split(": got ")[0] for line in answer.refusal] == [
        "study.yaml:2: dtype", "study.yaml:7: adapter.r", "study.yaml:8: adapter.rank", "study.yaml:16: sed",
        "--set batch_size=0: batch_size",
    ]  # fmt: skip
    assert "did you mean 'seed'?" in answer.refusal[3]


@pytest.mark.parametrize("name", ["absent.yaml", "folder", "study.yaml/below", "", "."])
def test_what_is_no_file_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "study.yaml").write_text(BODY)
    answer = command("sweep", name, folder=tmp_path)
    assert answer.code == 2
    assert "expected a YAML file" in answer.err


@pytest.mark.parametrize(("arguments", "word"), [
    (["sweep"], "Missing argument"), (["sweep", "study.yaml", "--device", "gpu9"], "expected auto, cpu, cuda"),
    (["sweep", "study.yaml", "--set"], "requires an argument"), (["sweep", "study.yaml", "extra"], "unexpected extra"),
    (["sweep", "study.yaml", "--sett", "a=b"], "No such option"), (["swep", "study.yaml"], "No such command"),
    (["plan", "--law", "kalajdzievski2024-news", "--max-forgetting", "nan"], "expected a finite number"),
])  # fmt: skip
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str], word: str) -> None:
    (tmp_path / "study.yaml").write_text(BODY)
    answer = command(*arguments, folder=tmp_path)
    assert answer.code == 2, answer.err
    assert word in answer.err


@pytest.mark.parametrize("place", ["file/below.json", "x" * 300, "folder", "/proc/nope/below.json"])
def test_a_place_that_cannot_be_written_is_the_machines(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    answer = command("schema", place, folder=tmp_path)
    assert answer.code == 5, answer.err
    assert answer.err.startswith("ResourceError: cannot be written: ")
    assert command("schema", "new/folder/schema.json", folder=tmp_path).code == 0


def test_what_nobody_foresaw_of_the_machine_is_no_bug_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory or files anywhere ends in a sentence; what may be our own mistake ends in a traceback."""
    for error, said in (
        (MemoryError("8 GiB"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "Tried to allocate 20.00 GiB"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), "out of memory"),
        (OSError(24, "Too many open files"), "Too many"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("holdfast.schemas.study_schema", raising(error))
            answer = command("schema", folder=tmp_path)
        assert (answer.code, answer.out) == (5, "")
        assert said in answer.err
    for ours in (FileNotFoundError(2, "ours"), RuntimeError("ours")):
        monkeypatch.setattr("holdfast.schemas.study_schema", raising(ours))
        with pytest.raises(type(ours)):
            command("schema", folder=tmp_path)


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    TALLY.tell(record_property)
