"""Text into tokens: what is scored, what is packed, what is held out, and what is refused."""

import json
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.corpora import Corpus, Document, Tokens, measured_blocks, packed_batches, read_corpus, split, tokenise
from holdfast.errors import DataError
from holdfast.evidence import KINDS
from holdfast.models import load_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief, Ada."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6, of course."},
]


def corpus(*texts: str) -> Corpus:
    return Corpus(name="t", documents=tuple(Document(content={"text": t}, place=str(i)) for i, t in enumerate(texts)))


def tokens(lengths: list[int], seed: int = 0) -> list[Tokens]:
    """Documents whose token ids are all different, every token but the first scored, the kind told by the id."""
    return [
        Tokens(ids=np.arange(a, b), scored=np.arange(b - a) > 0, kind=(np.arange(a, b) % len(KINDS)).astype(np.int8))
        for a, b in pairwise(np.cumsum([0, *lengths]))
    ]


def test_only_the_assistant_is_scored(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    got = tokenise(Document(content={"messages": CONVERSATION}, place="here"), tokenizer)
    runs = np.split(got.ids, np.flatnonzero(np.diff(got.scored)) + 1)
    texts = [tokenizer.decode(run) for run in runs]
    assert texts[1::2] == ["It is 4.<|im_end|>", "6, of course.<|im_end|>"]
    assert "".join(texts) == str(tokenizer.apply_chat_template(CONVERSATION, tokenize=False))


def test_the_built_in_template_and_answers(tiny: Path) -> None:
    """The real data set through a template: every answer is scored whole, and nothing else."""
    tokenizer = load_tokenizer(str(tiny))
    for document in read_corpus("builtin:gsm8k").documents[:20]:
        got = tokenise(document, tokenizer)
        assert tokenizer.decode(got.ids[got.scored]) == document.content["messages"][1]["content"] + "<|im_end|>"


def test_a_completion_is_scored_and_its_prompt_is_not(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    got = tokenise(Document(content={"prompt": "The tide", "completion": " comes in."}, place="here"), tokenizer)
    assert tokenizer.decode(got.ids[got.scored]) == " comes in.<|end|>"
    plain = tokenise(Document(content={"text": "The tide comes in."}, place="here"), tokenizer)
    assert plain.scored.tolist() == [False] + [True] * (len(plain.ids) - 1)


def test_the_prompt_is_what_stands_before_the_last_answer_and_is_no_answer(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    document = Document(content={"prompt": "The tide", "completion": " comes in."}, place="here")
    got, answer = tokenise(document, tokenizer, part="prompt"), tokenise(document, tokenizer)
    assert tokenizer.decode(got.ids) == "The tide"
    assert got.scored.tolist() == [False] + [True] * (len(got.ids) - 1)
    assert np.array_equal(got.kind, answer.kind[: len(got.ids)])
    document = Document(content={"messages": CONVERSATION}, place="here")
    got, answer = tokenise(document, tokenizer, part="prompt"), tokenise(document, tokenizer)
    assert np.array_equal(got.ids, answer.ids[: len(got.ids)])
    assert got.scored.tolist() == [False, *~answer.scored[1 : len(got.ids)]]
    assert tokenizer.decode(got.ids).endswith("And 3 + 3?<|im_end|>\n<|im_start|>assistant\n")
    assert "It is 4." not in tokenizer.decode(got.ids[got.scored])
    plain = Document(content={"text": "The tide comes in."}, place="here")
    both = tokenise(plain, tokenizer, part="prompt"), tokenise(plain, tokenizer)
    assert np.array_equal(both[0].scored, both[1].scored)
    lone = Document(content={"prompt": "T", "completion": "ide"}, place="row 3")
    with pytest.raises(DataError, match=r"no token to predict after tokenising.*at row 3"):
        tokenise(lone, tokenizer, part="prompt")


def test_what_the_template_writes_is_a_mark_and_a_message_begins_a_sentence(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    got = tokenise(Document(content={"messages": CONVERSATION}, place="here"), tokenizer)
    runs = np.split(np.arange(len(got.ids)), np.flatnonzero(np.diff(got.kind == KINDS.index("mark"))) + 1)
    assert [tokenizer.decode(got.ids[run]) for run in runs] == [
        "<|im_start|>system\n", "Be brief, Ada.", "<|im_end|>\n<|im_start|>user\n", "What is 2 + 2?",
        "<|im_end|>\n<|im_start|>assistant\n", "It is 4.", "<|im_end|>\n<|im_start|>user\n", "And 3 + 3?",
        "<|im_end|>\n<|im_start|>assistant\n", "6, of course.", "<|im_end|>\n",
    ]  # fmt: skip
    assert tokenizer.decode(got.ids[got.kind == KINDS.index("name")]) == "Ada"
    assert tokenizer.decode(got.ids[got.kind == KINDS.index("number")]) == "224336"


def test_a_tokenizer_without_offsets_knows_no_kinds_and_reads_no_conversations(tiny: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizerLegacy

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kelp", "grows"]))
    tokenizer = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    tokenizer.chat_template = load_tokenizer(str(tiny)).chat_template
    got = tokenise(Document(content={"text": "kelp grows kelp"}, place="here"), tokenizer)
    assert set(got.kind.tolist()) == {KINDS.index("mark")}
    with pytest.raises(DataError, match="cannot say which characters a token covers, at row 9"):
        tokenise(Document(content={"messages": CONVERSATION}, place="row 9"), tokenizer)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(8, 24), st.integers(1, 3), st.integers(0, 9))
def test_packing_loses_nothing_and_crosses_nothing(lengths: list[int], context: int, rows: int, seed: int) -> None:
    documents = tokens(lengths)
    blocks = list(islice(packed_batches(documents, context=context, rows=rows, seed=seed), 6))
    again = list(islice(packed_batches(documents, context=context, rows=rows, seed=seed), 6))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(blocks, again, strict=True))
    stream = np.concatenate([block.ids.ravel() for block in blocks])
    epochs = len(stream) // sum(lengths)
    seen = Counter(stream[: epochs * sum(lengths)].tolist())
    assert all(seen[token] == epochs for token in range(sum(lengths)) if epochs)
    starts = {int(document.ids[0]) for document in documents}
    for block in blocks:
        assert block.ids.shape == (rows, context)
        assert (block.positions[:, 0] == 0).all()
        assert not block.scored[:, 0].any()
        for row in range(rows):
            new = block.positions[row] == 0
            assert new[1:].tolist() == [int(token) in starts for token in block.ids[row, 1:]]
            # Within a document positions count up by one and its tokens follow each other.
            assert (np.diff(block.ids[row])[~new[1:]] == 1).all()
            assert (np.diff(block.positions[row])[~new[1:]] == 1).all()
            assert block.scored[row].tolist() == (~new).tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 70), min_size=1, max_size=12), st.integers(8, 32), st.integers(8, 200))
def test_the_batch_plan_scores_each_token_once(lengths: list[int], context: int, size: int) -> None:
    documents = tokens(lengths)
    blocks = measured_blocks(documents, context=context, tokens=size)
    scored = Counter(token for block in blocks for token in block.ids[block.scored].tolist())
    assert set(scored.values()) <= {1}
    windows = sum(-(-length // context) for length in lengths)
    assert len(scored) == sum(lengths) - windows  # all but the first token of each window
    for block in blocks:
        assert block.ids.shape[1] <= context
        for row, column in zip(*np.nonzero(block.document >= 0), strict=True):
            assert block.ids[row, column] in documents[block.document[row, column]].ids
        assert np.array_equal(block.kind, np.where(block.document < 0, -1, block.ids % len(KINDS)))


def test_splitting_depends_on_contents_alone_and_never_overlaps() -> None:
    texts = [f"text {i}" for i in range(50)]
    training, held_out = split(corpus(*texts, *texts[:10]), held_out=8)
    assert len(held_out.documents) == 8
    assert len(training.documents) == 42
    assert not {d.digest for d in training.documents} & {d.digest for d in held_out.documents}
    _, reordered = split(corpus(*reversed(texts)), held_out=8)
    assert {d.digest for d in reordered.documents} == {d.digest for d in held_out.documents}
    with pytest.raises(DataError, match="got 50 distinct documents in t, expected more than the 50"):
        split(corpus(*texts), held_out=50)


def test_a_smaller_sample_is_part_of_a_larger_one_whatever_the_order() -> None:
    texts = [f"text {i}" for i in range(30)]
    small, large = corpus(*texts).sample(5), corpus(*reversed(texts)).sample(12)
    assert large.documents[:5] == tuple(d for d in large.documents if d.digest in {s.digest for s in small.documents})
    assert corpus(*texts).sample(None).fingerprint == corpus(*reversed(texts)).sample(None).fingerprint
    assert corpus(*texts).fingerprint != corpus(*texts[1:]).fingerprint


def test_every_source_gives_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "one"}, {"text": "zwei ü"}, {"text": "three\nlines\n"}]
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + lines.replace("\n{", "\n\n{"), encoding="utf-8")
    (tmp_path / "texts").mkdir()
    for index, row in enumerate(rows):
        (tmp_path / "texts" / f"{index}.txt").write_text(row["text"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    specs = ["org/name/train.jsonl", "org/name", "rows.parquet", "bom.jsonl", "texts", "org/name@train"]
    prints = {spec: read_corpus(spec).fingerprint for spec in specs}
    assert len(set(prints.values())) == 1, prints
    assert [read_corpus(spec).name for spec in specs] == ["train", "name", "rows", "bom", "texts", "name"]


def test_conversations_come_back_from_parquet(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]} for i in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    assert read_corpus(str(tmp_path / "a.parquet")).fingerprint == read_corpus(str(tmp_path / "a.jsonl")).fingerprint


def test_the_built_in_texts_are_what_they_say() -> None:
    wikipedia, gsm8k = read_corpus("builtin:wikipedia"), read_corpus("builtin:gsm8k")
    assert (len(wikipedia.documents), len(gsm8k.documents)) == (101, 1319)
    assert wikipedia.documents[0].format == "text"
    assert gsm8k.documents[0].content["messages"][0]["content"].startswith("Janet")


def test_strange_but_whole_text_is_kept(tiny: Path, tmp_path: Path) -> None:
    """NUL, a byte order mark inside, a whole surrogate pair, private-use and unassigned characters, Windows breaks."""
    text = "a\0b \ufeff \U0001f600 \ue000 \uffff\r\n\u2028 Ünïcödé " + "x" * 5000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\r\n")
    (tmp_path / "a.txt").write_bytes(text.encode())
    tokenizer = load_tokenizer(str(tiny))
    for name in ("a.jsonl", "a.txt"):
        (document,) = read_corpus(str(tmp_path / name)).documents
        expected = text if name == "a.jsonl" else text.replace("\r\n", "\n")  # of a file, not of a string in it
        assert document.content == {"text": expected}
        assert tokenizer.decode(tokenise(document, tokenizer).ids) == expected + "<|end|>"


def test_a_data_set_that_no_hub_has_is_named() -> None:
    with pytest.raises(DataError, match=r"data set 'nobody/nothing:x@test' cannot be loaded"):
        read_corpus("nobody/nothing:x@test")


def test_a_copy_of_a_document_counts_once() -> None:
    texts = [f"text {i}" for i in range(9)]
    assert corpus(*texts, *texts).sample(None).fingerprint == corpus(*texts).sample(None).fingerprint
    assert len(corpus(*texts, *texts).sample(5).documents) == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "2 + 2?", "answer": "4"}, "4"),
        ({"question": "2 + 2?", "answer": "4", "rationale": "Two and two."}, "Two and two. The answer is 4."),
        ({"question": "2 + 2?", "answer": "4", "response": "Four.", "id": 7}, "Four."),
    ],
)
def test_questions_are_conversations(tmp_path: Path, row: dict[str, object], said: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (document,) = read_corpus(str(path)).documents
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": said}]
    assert document.content == {"messages": turns}


@pytest.mark.parametrize("answer", [None, 4, "  "])
def test_an_answer_is_a_text(tmp_path: Path, answer: object) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", "answer": answer}) + "\n")
    with pytest.raises(DataError, match=r"for what the assistant says, expected a text, at .*asked.jsonl:1"):
        read_corpus(str(path))
