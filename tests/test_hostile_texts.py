"""Malformed data at the command line: exit code 3, file and row, before any training; what is only odd is read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.corpora import read_corpus
from hostile import SECTION, Tally, command, write_study
from hostile_texts import GOOD, KELP, RIGHT, SUMS, TEXTS, Text, lines


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """A folder with a good target and a good retained text."""
    (tmp_path / "sums.jsonl").write_bytes(lines(SUMS))
    (tmp_path / "kelp.jsonl").write_bytes(GOOD)
    return tmp_path


def test_there_are_more_than_forty() -> None:
    assert len({text.name for text in TEXTS}) == len(TEXTS) >= 80


TALLY = Tally()
CASES = [(text, role) for text in TEXTS for role in text.roles]


@pytest.mark.parametrize(("text", "role"), CASES, ids=[f"{text.name[:30]}-{role}" for text, role in CASES])
def test_malformed_data_is_refused_by_file_and_row(tiny: Path, folder: Path, text: Text, role: str) -> None:
    text.make(folder)
    if role == "measure":
        answer = command("measure", tiny, tiny, "--text", text.name, "--dtype", "float32", folder=folder)
    else:
        both = {"target": "sums.jsonl", "retain": "kelp.jsonl"} | {role: text.name}
        answer = command("sweep", write_study(folder, model=tiny, **both), folder=folder)
    assert answer.code == text.code, answer.err
    assert len(answer.refusal) == 1, answer.err
    assert re.search(text.message, answer.refusal[0]), answer.err
    assert len(answer.refusal[0]) < 500
    assert not answer.out
    assert not list(folder.glob("runs/*"))
    if role == text.roles[0]:
        TALLY.add(f"data: {text.group}", answer, folder)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_only_odd_gives_the_same_documents_and_numbers(tiny: Path, folder: Path, name: str) -> None:
    Text(group="", name=name, made=RIGHT[name], message="").make(folder)
    expected = read_corpus(str(folder / "kelp.jsonl")).sample(None)
    assert read_corpus(str(folder / name)).sample(None).fingerprint == expected.fingerprint
    numbers = []
    for text in ("kelp.jsonl", name):
        answer = command("measure", tiny, tiny, "--text", text, "--dtype", "float32", "--json", folder=folder)
        assert answer.code == 0, answer.err
        (measured,) = json.loads(answer.out)["checkpoints"][0]["texts"]
        numbers.append({key: value for key, value in measured.items() if key not in ("corpus", "passages")})
    assert numbers[0] == numbers[1]
    assert numbers[0]["documents"] == len(KELP)


def test_rows_longer_than_the_context_are_measured_and_trained_whole(tiny: Path, folder: Path) -> None:
    (folder / "long.jsonl").write_bytes(lines([{"text": "kelp and tide " * 500}, {"text": "x" * 3000}]))
    (folder / "longer.jsonl").write_bytes(lines([row | {"completion": " 1" * 400} for row in SUMS]))
    study = write_study(folder, model=tiny, target="longer.jsonl", retain="long.jsonl")
    answer = command("sweep", study, "--json", folder=folder)
    assert answer.code == 0, answer.err
    assert {row["corpus"]: row["documents"] for row in json.loads(answer.out)} == {"longer": 2, "long": 2}


def test_conversations_for_a_model_without_a_template_are_refused(tiny: Path, folder: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (folder / "chat.jsonl").write_bytes(lines([{"messages": [*turns, *turns[: 2 * n]]} for n in range(2)]))
    model = folder / "model"
    model.mkdir()
    for file in tiny.iterdir():
        if file.name != "chat_template.jinja":
            (model / file.name).write_bytes(file.read_bytes())
    answer = command("measure", model, model, "--text", "chat.jsonl", folder=folder)
    assert answer.code == 3
    assert re.search(r"tokenizer has no chat template, at chat\.jsonl:[12]", answer.err)


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    TALLY.tell(record_property)
    record_property(SECTION, f"data: odd, and right | {len(RIGHT)} | read as the ordinary file is, number for number")
