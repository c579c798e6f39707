"""Tokens in the environment never reach a file, a page or a terminal; names never lead out of the folder asked for."""

import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hostile import SECTION, command, write_study
from hostile_texts import GOOD, SUMS, lines

NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "COMET_API_KEY", "NEPTUNE_API_TOKEN", "DATABASE_URL", "PIP_INDEX_URL", "TRACKIO_TOKEN",
)  # fmt: skip


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {name: f"canary{zlib.crc32(name.encode()):08x}secret" for name in NAMES}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def contents(path: Path) -> bytes:
    """A file as it lies there, and as it is once unpacked."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        return raw + gzip.decompress(raw)
    if path.suffix == ".parquet":
        return raw + pd.read_parquet(path).to_csv().encode()
    if path.suffix == ".png":
        return raw + b"".join(zlib.decompressobj().decompress(raw[at.end() :]) for at in re.finditer(b"zTXt|IDAT", raw))
    return raw


def test_no_secret_is_written_or_said(
    tiny: Path, tmp_path: Path, cache: Path, secrets: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sums.jsonl").write_bytes(lines(SUMS))
    (tmp_path / "kelp.jsonl").write_bytes(GOOD)
    study = write_study(tmp_path, model=tiny, target="sums.jsonl", retain="kelp.jsonl")
    more = ("--set", "steps=8", "--set", "measure.points=4", "--set", "grid.adapter.r=[1,2,4]")
    files = ("--html", "m.html", "--parquet", "m.parquet", "--model-card", "card.md")
    answers = [
        command("sweep", study, *more, folder=tmp_path),
        command("status", "runs", folder=tmp_path),
        command("fit", "runs", folder=tmp_path),
        command("report", "runs", "--max-forgetting", "0.1", folder=tmp_path),
        command("measure", tiny, tiny, "--text", "kelp.jsonl", "--text", "self", *files, folder=tmp_path),
        command("measure", tiny, "absent", "--text", "kelp.jsonl", folder=tmp_path),
        command("sweep", study, "--set", "model=absent/model", "-o", "others", folder=tmp_path),
    ]
    assert [answer.code for answer in answers] == [0, 0, 0, 0, 0, 3, 3], answers
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"report.html", "m.html", "m.parquet", "card.md", "records.jsonl"} <= {path.name for path in written}
    assert any(path.is_relative_to(cache) for path in written)
    said = "".join(answer.out + answer.err for answer in answers) + caplog.text
    for name, value in secrets.items():
        assert value not in said, name
        for path in written:
            assert value.encode() not in contents(path), (name, path)


HOSTILE_NAMES = (
    "..",
    "../../up",
    "a/../../b",
    "~",
    "C:\\x",
    "$HOME",
    "-rf",
    "<script>",
    "a b",
    "%2e%2e",
    "\u202egpj",
    "con",
)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_do_not_lead_out_of_the_folder(tiny: Path, tmp_path: Path, cache: Path, name: str) -> None:
    """A text's name comes from its file, a run's from a hash of all names in it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    text = inside / f"{name.replace('/', '_')}.jsonl"
    text.write_bytes(GOOD)
    (inside / "sums.jsonl").write_bytes(lines(SUMS))
    study = write_study(inside, model=tiny, target="sums.jsonl", retain=text.name)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)}
    answer = command("sweep", study, folder=inside)
    assert answer.code in (0, 2, 3), answer.err
    if answer.code == 0:
        (run,) = (path for path in (inside / "runs").iterdir() if path.is_dir())
        assert re.fullmatch("[0-9a-f]{12}", run.name)
        assert command("report", "runs", folder=inside).code in (0, 3)
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(inside)}
    assert {path for path in after - before if not path.is_relative_to(cache)} == set()


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    record_property(SECTION, f"tokens in the environment | {len(NAMES)} | in no file, page, table, cache or message")
    record_property(SECTION, f"names that lead elsewhere | {len(HOSTILE_NAMES)} | nothing was written outside")
