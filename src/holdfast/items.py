"""Questions and prompts from the package, files or the hub; a row that cannot be asked is named with its place."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from holdfast import builtin
from holdfast.errors import DataError
from holdfast.questions import LETTERS, Group, Prompt, Question
from holdfast.rows import SUFFIXES, file_rows, hub_rows

XSTEST = "walledai/XSTest@test"
"""Where `xstest` is. No package carries it, so without the hub it takes a path."""

SIDE_BY_SIDE = "side_by_side"
"""Questions that ship with the package, to be answered freely: for who has no prompts of their own."""

PROMPTS = ("prompt", "goal", "question")
"""Columns that may hold what a user says."""

_EXPECTED = "columns 'question', 'choices' and 'answerKey' (a question), or a column 'prompt' or 'goal' (a prompt)"


@dataclass(frozen=True, kw_only=True)
class Items:
    """What a task asks: questions, all with choices, or prompts to be answered freely."""

    name: str
    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]

    @property
    def kind(self) -> Literal["questions", "prompts"]:
        """Which of the two it is."""
        return "questions" if self.questions else "prompts"

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over what is asked, in order."""
        digests = "".join(item.digest for item in self.questions or self.prompts)
        return hashlib.sha256(digests.encode()).hexdigest()

    def sample(self, limit: int | None) -> Items:
        """So many items (all of them for None), lowest SHA-256 first.

        As good as a random sample, the same whatever the order of the file, and a smaller one is part of a larger one.
        """
        questions = tuple(sorted(self.questions, key=lambda item: item.digest)[:limit])
        prompts = tuple(sorted(self.prompts, key=lambda item: item.digest)[:limit])
        return replace(self, questions=questions, prompts=prompts)


def read_items(spec: str) -> Items:
    """The items of `arc_challenge`, `arc_easy`, `advbench`, `xstest`, `side_by_side`, a data file, or a hub set.

    Files are `.jsonl[.gz]`, `.parquet` or `.csv`; a hub set is `org/name[:config][@split]`. A question is a row with
    `question`, `choices` (texts, or ARC's `{text, label}`) and `answerKey` (a label) or `answer` (an index or label). A
    prompt is a row with `prompt` or `goal`; its `target`, where there is one, is how a compliant answer would begin. A
    `label` of `safe` or `unsafe` says whether it should be answered; AdvBench's goals are all unsafe.

    Raises:
        DataError: nothing there, no rows, rows of both kinds, or a row that cannot be asked, naming its place.
    """
    if spec == SIDE_BY_SIDE:
        return _open_questions()
    rows = list(_rows(spec))
    if not rows:
        raise DataError(f"got no items, expected at least one, at {spec}")
    harmful = spec == "advbench" or "advbench" in spec.lower()
    items = [_item(row, place, harmful) for place, row in rows]
    questions = tuple(item for item in items if isinstance(item, Question))
    prompts = tuple(item for item in items if isinstance(item, Prompt))
    if questions and prompts:
        odd = prompts[0] if len(questions) > len(prompts) else questions[0]
        raise DataError(f"got questions with choices and prompts without, expected one kind, at {odd.place}")
    name = spec if spec in builtin.ITEMS else spec.partition("@")[0].split("/")[-1].split(".")[0]
    return Items(name=name, questions=questions, prompts=prompts)


def _open_questions() -> Items:
    """ARC-Easy's questions without their choices."""
    prompts = tuple(
        Prompt(id=q.id, prompt=q.question, group="open", target=None, place=q.place)
        for q in read_items("arc_easy").questions
    )
    return Items(name=SIDE_BY_SIDE, questions=(), prompts=prompts)


def _rows(spec: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = Path(spec)
    if spec in builtin.ITEMS:
        inside = builtin.data_path(spec)  # whose place is its name, not that of a file inside the package
        yield from ((place.replace(str(inside), spec), row) for place, row in file_rows(inside))
    elif path.is_file():
        yield from _csv_rows(path) if path.suffix == ".csv" else file_rows(path)
    elif path.name.endswith((*SUFFIXES, ".csv")) or spec.startswith((".", "/", "~")) or path.is_dir():
        raise DataError(f"got {spec!r}, expected a file of items there, at {path.resolve()}")
    elif spec == "xstest":
        try:
            yield from hub_rows(XSTEST)
        except DataError as error:
            raise DataError(f"{error}; XSTest is not in the package: give a path to its xstest_prompts.csv") from error
    elif "/" not in spec:
        known = ", ".join((*builtin.ITEMS, "xstest", SIDE_BY_SIDE, "refusal_logodds"))
        raise DataError(f"got task {spec!r}, expected one of {known}, a data file, or org/name of a hub set")
    else:
        yield from hub_rows(spec)


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    wanted = len(reader.fieldnames or ())
                    raise DataError(f"got a row without exactly {wanted} cells, at {path}:{reader.line_num}")
                yield f"{path}:{reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}, at {path}") from error


def _item(row: Mapping[str, Any], place: str, harmful: bool) -> Question | Prompt:
    if "choices" in row:
        return _question(row, place)
    key = next((name for name in PROMPTS if name in row), None)
    if key is None:
        raise DataError(f"got columns {sorted(map(str, row))}, expected {_EXPECTED}, at {place}")
    target = row.get("target")
    return Prompt(
        id=str(row.get("id", place)),
        prompt=_text(row[key], key, place),
        group=_group(row, place, harmful or key == "goal"),
        target=None if target is None else _text(target, "target", place),
        place=place,
    )


def _group(row: Mapping[str, Any], place: str, harmful: bool) -> Group:
    label = row.get("label")
    if label in ("safe", "unsafe"):
        return "safe" if label == "safe" else "unsafe"
    if isinstance(label, str) and label:
        raise DataError(f"got label {label!r:.40}, expected safe or unsafe, at {place}")
    return "unsafe" if harmful else "open"


def _question(row: Mapping[str, Any], place: str) -> Question:
    choices, labels = _choices(row["choices"], place)
    return Question(
        id=str(row.get("id", place)),
        question=_text(row.get("question"), "question", place),
        choices=choices,
        answer=_answer(row, labels, place),
        place=place,
    )


def _choices(given: Any, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(texts, labels): labels are letters unless the row names its own."""
    texts, labels = given, None
    if isinstance(given, Mapping):
        texts, labels = given.get("text"), given.get("label")
    texts = texts.tolist() if isinstance(texts, np.ndarray) else texts
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"got choices {given!r:.60}, expected a list of 2 to {len(LETTERS)} texts, at {place}")
    read = tuple(_text(text, "choice", place) for text in texts)
    labels = list(LETTERS[: len(read)]) if labels is None else labels
    if len(labels) != len(read) or len(set(map(str, labels))) < len(labels):
        raise DataError(
            f"got {len(read)} choices labelled {labels!r:.60}, expected a label of its own each, at {place}"
        )
    return read, tuple(map(str, labels))


def _answer(row: Mapping[str, Any], labels: tuple[str, ...], place: str) -> int:
    key = "answerKey" if "answerKey" in row else "answer"
    answer = row.get(key)
    numbered = any(label.isdecimal() for label in labels)  # then a number is a label: 1 is ARC's first choice
    if not isinstance(answer, bool) and str(answer) in labels:
        return labels.index(str(answer))
    if (
        isinstance(answer, int | np.integer)
        and not (isinstance(answer, bool) or numbered)
        and 0 <= answer < len(labels)
    ):
        return int(answer)
    expected = f"one of {', '.join(labels)}" + ("" if numbered else f", or an index below {len(labels)}")
    raise DataError(f"got {key} {answer!r:.40}, expected {expected}, at {place}")


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"got {name} {value!r:.60}, expected a text that is not empty, at {place}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half of a surrogate pair ({error.object[error.start]!a})"
        raise DataError(f"got {half} in {name}, expected whole characters, at {place}") from error
    return value
