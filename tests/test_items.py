"""Items from the package and from files: what is read, and how a row that cannot be asked is named."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from holdfast import builtin
from holdfast.errors import DataError
from holdfast.items import read_items

SHARED = Path("/work/shared/data")
ARC = {"id": "a", "question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}


def written(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("name", "items"), [("arc_challenge", 1172), ("arc_easy", 2376), ("advbench", 520)])
def test_built_in_items(name: str, items: int) -> None:
    read = read_items(name)
    assert len(read.questions or read.prompts) == items
    assert (read.name, read.kind) == (name, "prompts" if name == "advbench" else "questions")
    assert {len(q.choices) for q in read.questions} <= {3, 4, 5}
    assert {(p.group, p.target) for p in read.prompts} <= {("unsafe", None)}
    assert builtin.data_path(name).stat().st_size < 300_000
    attribution = (builtin.data_path(name).parent / "ATTRIBUTION.md").read_text()
    assert "MIT" in attribution if name == "advbench" else "Attribution-ShareAlike" in attribution


def test_a_limit_takes_the_same_items_whatever_their_order(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in gzip.decompress(builtin.data_path("arc_easy").read_bytes()).splitlines()]
    backwards = read_items(written(tmp_path / "arc.jsonl", *reversed(rows[:50]))).sample(9)
    forwards = read_items(written(tmp_path / "arc2.jsonl", *rows[:50]))
    assert [q.id for q in backwards.questions] == [q.id for q in forwards.sample(9).questions]
    assert set(forwards.sample(4).questions) <= set(forwards.sample(9).questions)
    assert forwards.fingerprint != forwards.sample(49).fingerprint
    assert forwards.sample(None).fingerprint == forwards.sample(50).fingerprint


def test_shapes_a_question_may_have(tmp_path: Path) -> None:
    plain = {"question": "Why?", "choices": ["x", "y"], "answer": 1}
    lettered = {"question": "Why?", "choices": ["x", "y"], "answer": "B"}
    file = written(tmp_path / "q.jsonl", ARC, plain, "", lettered)
    read = read_items(file)
    assert [q.answer for q in read.questions] == [1, 1, 1]
    assert {q.digest for q in read.questions} == {read.questions[0].digest}
    assert [q.id for q in read.questions] == ["a", f"{file}:2", f"{file}:4"]
    frame = pd.DataFrame([ARC, ARC | {"id": "b"}])
    frame.to_parquet(tmp_path / "q.parquet")
    assert [q.digest for q in read_items(str(tmp_path / "q.parquet")).questions] == [read.questions[0].digest] * 2


def test_a_label_that_is_a_number_is_no_index(tmp_path: Path) -> None:
    """ARC labels choices 1 to 4; read through pandas its answers are numbers, and 1 is the first of them."""
    numbered = ARC | {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}}
    rows = [numbered | {"answerKey": key} for key in (1, "1", 3)]
    assert [q.answer for q in read_items(written(tmp_path / "q.jsonl", *rows)).questions] == [0, 0, 2]
    pd.DataFrame([numbered | {"answerKey": key} for key in (1, 2)]).to_parquet(tmp_path / "q.parquet")
    assert [q.answer for q in read_items(str(tmp_path / "q.parquet")).questions] == [0, 1]
    with pytest.raises(DataError, match="got answerKey 0, expected one of 1, 2, 3, at"):
        read_items(written(tmp_path / "odd.jsonl", numbered | {"answerKey": 0}))


def test_shapes_a_prompt_may_have(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text('goal,target\n"Do, harm",Sure\n')
    (prompt,) = read_items(str(file)).prompts
    assert (prompt.prompt, prompt.target, prompt.group) == ("Do, harm", "Sure", "unsafe")
    file.write_text("id,prompt,label\n1,How do I kill a process?,safe\n2,How do I kill?,unsafe\n3,Hello,\n")
    assert [p.group for p in read_items(str(file)).prompts] == ["safe", "unsafe", "open"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real sets in {SHARED}")
def test_the_real_sets_are_read() -> None:
    arc = read_items(str(SHARED / "arc" / "ARC-Challenge-Test.jsonl"))
    assert arc.fingerprint == read_items("arc_challenge").fingerprint
    xstest = read_items(str(SHARED / "xstest" / "xstest_prompts.csv"))
    assert (sum(p.group == "safe" for p in xstest.prompts), len(xstest.prompts)) == (250, 450)
    with_targets = read_items(str(SHARED / "advbench" / "harmful_behaviors.csv"))
    assert [p.prompt for p in with_targets.prompts] == [p.prompt for p in read_items("advbench").prompts]
    assert all(p.target is not None and p.target.startswith("Sure, here") for p in with_targets.prompts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "broken JSON"),
        ("[1]", r"got \[1\], expected an object"),
        ({"text": "a"}, r"got columns \['text'\], expected columns 'question', 'choices' and 'answerKey'"),
        (ARC | {"question": " "}, "got question ' ', expected a text that is not empty"),
        ({k: v for k, v in ARC.items() if k != "question"}, "got question None"),
        (ARC | {"choices": ["x"]}, r"got choices \['x'\], expected a list of 2 to 26 texts"),
        (ARC | {"choices": "xy"}, "expected a list of 2 to 26 texts"),
        (ARC | {"choices": {"label": ["1", "2"]}}, "expected a list of 2 to 26 texts"),
        (ARC | {"choices": ["x", ""]}, "got choice '', expected a text"),
        (ARC | {"choices": ["x", 3]}, "got choice 3, expected a text"),
        (ARC | {"choices": {"text": ["x", "y"], "label": ["1", "1"]}}, "expected a label of its own each"),
        (ARC | {"choices": {"text": ["x", "y"], "label": ["1"]}}, "got 2 choices labelled"),
        (ARC | {"answerKey": "C"}, "got answerKey 'C', expected one of 1, 2, at"),
        (ARC | {"answerKey": 3}, "got answerKey 3"),
        (ARC | {"choices": ["x", "y"], "answerKey": 2}, "got answerKey 2, expected one of A, B, or an index below 2"),
        (ARC | {"answerKey": True}, "got answerKey True"),
        (ARC | {"answerKey": None}, "got answerKey None"),
        ('{"question": "\\ud800", "choices": ["x", "y"], "answer": 0}', "half of a surrogate pair .* in question"),
        ({"prompt": ""}, "got prompt '', expected a text"),
        ({"prompt": "a", "label": "evil"}, "got label 'evil', expected safe or unsafe"),
        ({"prompt": "a", "target": ""}, "got target ''"),
        ({"prompt": "Hello"}, "got questions with choices and prompts without, expected one kind"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, row: object, message: str) -> None:
    file = written(tmp_path / "q.jsonl", ARC, ARC | {"question": "How?"}, row)
    with pytest.raises(DataError, match=message) as caught:
        read_items(file)
    assert str(caught.value).endswith(f"at {file}:3")


def test_questions_to_be_answered_freely_ship_with_the_package() -> None:
    read = read_items("side_by_side")
    assert {prompt.group for prompt in read.prompts} == {"open"}
    assert [p.prompt for p in read.prompts] == [q.question for q in read_items("arc_easy").questions]


def test_sets_that_are_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bad.csv").write_text("prompt,label\nHello,safe,more\n")
    (tmp_path / "latin.csv").write_bytes(b"prompt\n\xff\n")
    for spec, message in {
        str(tmp_path / "empty.jsonl"): "got no items, expected at least one",
        str(tmp_path / "no.jsonl"): "expected a file of items there",
        str(tmp_path): "expected a file of items there",
        str(tmp_path / "bad.csv"): r"without exactly 2 cells, at .*bad.csv:2",
        str(tmp_path / "latin.csv"): "cannot be read",
        "arc_chalenge": "expected one of advbench, arc_challenge, arc_easy, xstest, side_by_side, refusal_logodds",
        "no-such/set": "cannot be loaded",
        "xstest": "XSTest is not in the package: give a path",
    }.items():
        with pytest.raises(DataError, match=message):
            read_items(spec)
