"""Text into tokens: documents from files, hub or package; chat templates and loss masks; packed and measured blocks.

Everything is deterministic: the same data, tokenizer and seed give the same blocks in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, Int8

from holdfast import builtin, chats, rows, sources, wikitext
from holdfast.errors import DataError
from holdfast.kinds import token_kinds, without_template
from holdfast.mistakes import clip, clip_path, show
from holdfast.models import Tokenizer

Part = Literal["answer", "prompt"]
"""Which tokens of a document are to be predicted: what the model is to say, or what it is given before that."""

_FORMATS = "'text', 'prompt' and 'completion', 'messages', or 'question' with 'response' or 'answer', for columns"


@dataclass(frozen=True, kw_only=True)
class Document:
    """One row of a data set in one of three formats: `text`, `prompt` and `completion`, or `messages`."""

    content: Mapping[str, Any]
    place: str

    @property
    def format(self) -> str:
        """`text`, `prompt` or `messages`."""
        return next(iter(self.content))

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the content alone: two documents with the same text are the same document."""
        canonical = json.dumps(self.content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Named documents; `fingerprint` is the hex SHA-256 over all of them, in order."""

    name: str
    documents: tuple[Document, ...]

    @property
    def fingerprint(self) -> str:
        """Which text this is, whatever file it came from."""
        return hashlib.sha256("".join(document.digest for document in self.documents).encode()).hexdigest()

    def sample(self, documents: int | None) -> Corpus:
        """So many distinct documents (all of them for None), lowest SHA-256 first.

        As good as a random sample, the same whatever the order of the file, and a smaller one is part of a larger one.
        Copies of one document count once: together they say no more than it does.
        """
        distinct = {document.digest: document for document in reversed(self.documents)}
        chosen = sorted(distinct)[:documents]
        return Corpus(name=self.name, documents=tuple(distinct[digest] for digest in chosen))


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A document as tokens.

    `scored[t]` says whether token t is one to be predicted, see `tokenise`; `kind[t]` is an index into
    `evidence.KINDS`, see `kinds.token_kinds`.
    """

    ids: Int[np.ndarray, " t"]
    scored: Bool[np.ndarray, " t"]
    kind: Int8[np.ndarray, " t"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A batch of rows of tokens for one forward pass.

    Position t predicts token t+1 of the same row, so `scored[:, 0]` is always False. `positions` restart at 0 with each
    document; `document` says which document of the corpus a token belongs to and `kind` of which kind it is (-1:
    padding). Only a measurement asks for kinds: in a training batch all are -1.
    """

    ids: Int[np.ndarray, "b t"]
    scored: Bool[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    document: Int[np.ndarray, "b t"]
    kind: Int8[np.ndarray, "b t"]


def read_corpus(spec: str) -> Corpus:
    """The documents of a data spec.

    A spec is `builtin:name`, a `.jsonl[.gz]`, `.parquet` or `.txt` path, a folder of them, or
    `org/name[:config][@split]` from the hub (split `train` unless named). A `.txt` file is one document. Column
    formats are TRL's, and those of questions, which make a conversation: OpenOrca's (`system_prompt`, `question`,
    `response`), GSM8K's (`question`, `answer`) and FLAN's chains of thought (`rationale` too, said before the answer).
    WikiText, as a `.raw` or `.tokens` file or from the hub, has a document per article, with its own spacing and line
    breaks; `wikitext` alone is the test set of WikiText-103.

    Raises:
        DataError: nothing there, an unreadable row, or no known columns; the message names file and row.
    """
    if spec.startswith(builtin.PREFIX):
        path = builtin.text_path(spec)  # whose place is its name, not that of a file inside the package
        found = ((place.replace(str(path), spec), row) for place, row in rows.file_rows(path))
        return _corpus(spec.removeprefix(builtin.PREFIX), found, spec)
    there = sources.on_disk(spec)
    if there is not None and there.is_dir():
        return _corpus(there.resolve().name, rows.folder_rows(there), spec)
    if there is not None:
        is_wikitext = there.name.endswith(wikitext.SUFFIXES)
        return _corpus(wikitext.NAME if is_wikitext else there.name.split(".")[0], rows.file_rows(there), spec)
    if not spec.strip() or spec.endswith(rows.SUFFIXES) or spec.startswith((".", "/", "~")):
        raise DataError(
            f"got {clip(spec)!r}, expected a file or folder there, at {clip_path(str(Path(spec).absolute()))}"
        )
    name = spec.partition("@")[0].partition(":")[0].split("/")[-1]
    if name == wikitext.NAME:
        spec = wikitext.HUB if spec == name else spec
        lines = (str(row.get("text") or wikitext.EMPTY_LINE) for _, row in rows.hub_rows(spec))
        return _corpus(name, rows.articles(lines, f"{spec}, row "), spec)
    return _corpus(name, rows.hub_rows(spec), spec)


def _corpus(name: str, found: rows.Rows, spec: str) -> Corpus:
    documents = tuple(_document(row, place) for place, row in found)
    if not documents:
        raise DataError(f"got no documents, expected at least one, at {spec}")
    first = documents[0]
    other = next((document for document in documents if document.format != first.format), None)
    if other is not None:
        raise DataError(f"got {other.format!r} after {first.format!r}, expected one format in a text, at {other.place}")
    return Corpus(name=name, documents=documents)


def _document(row: Mapping[str, Any], place: str) -> Document:
    """One row, reduced to the columns of its format and checked."""
    document = _of_known_format(row, place)
    try:
        json.dumps(document.content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"got half of a surrogate pair ({error.object[error.start]!a}), expected whole characters, at {place}"
        ) from error
    return document


def _of_known_format(row: Mapping[str, Any], place: str) -> Document:
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise DataError(f"got messages {show(messages)}, expected a list of {{role, content}}, at {place}")
        for message in messages:
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                raise DataError(f"got message {show(message)}, expected texts 'role' and 'content', at {place}")
        if not any(message["role"] == "assistant" for message in messages):
            raise DataError(f"got a conversation in which the assistant says nothing, expected an answer, at {place}")
        return Document(
            content={"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}, place=place
        )
    reply = next((key for key in ("response", "answer") if "question" in row and key in row), None)
    if reply is not None:
        said = {"system": row.get("system_prompt") or "", "user": row["question"], "assistant": row[reply]}
        if reply == "answer" and row.get("rationale"):
            said["assistant"] = f"{row['rationale']} The answer is {row['answer']}."
        for role, text in said.items():
            if not isinstance(text, str) or (role != "system" and not text.strip()):
                raise DataError(f"got {show(text)} for what the {role} says, expected a text, at {place}")
        turns = [{"role": role, "content": text} for role, text in said.items() if text.strip()]
        return Document(content={"messages": turns}, place=place)
    keys = ("prompt", "completion") if "prompt" in row and "completion" in row else ("text",)
    if not all(key in row for key in keys):
        raise DataError(f"got columns {sorted(row)}, expected {_FORMATS}, at {place}")
    for key in keys:
        if not isinstance(row[key], str) or not row[key].strip():
            raise DataError(f"got {key} {show(row[key])}, expected a text that is not empty, at {place}")
    return Document(content={key: row[key] for key in keys}, place=place)


def split(corpus: Corpus, *, held_out: int) -> tuple[Corpus, Corpus]:
    """(training part, held-out part): so many documents that are measured and never trained on.

    The choice depends on the documents' contents alone (lowest SHA-256 first), so every run, seed and row order of a
    study holds out the same ones. Copies of one document count once and never stand on both sides.

    Raises:
        DataError: too few distinct documents to leave any for training.
    """
    distinct = {document.digest: document for document in corpus.documents}
    if len(distinct) <= held_out:
        places = f"{corpus.documents[0].place} to {corpus.documents[-1].place}"
        raise DataError(
            f"got {len(distinct)} distinct documents in {corpus.name}, expected more than the {held_out} to be held "
            f"out, at {places}"
        )
    chosen = sorted(distinct)[:held_out]
    training = tuple(document for digest, document in distinct.items() if digest not in set(chosen))
    return (
        Corpus(name=corpus.name, documents=training),
        Corpus(name=corpus.name, documents=tuple(distinct[digest] for digest in chosen)),
    )


def check_apart(retained: Corpus, target: Corpus) -> None:
    """Refuse a retained text that holds a document of the target: training on it is not what forgetting is.

    Raises:
        DataError: it does, naming both places.
    """
    learned = {document.digest: document.place for document in target.documents}
    for document in retained.documents:
        if document.digest in learned:
            raise DataError(
                f"got a document of the target ({learned[document.digest]}), expected retained texts without any, at "
                f"{document.place}"
            )


def tokenise(document: Document, tokenizer: Tokenizer, *, part: Part = "answer") -> Tokens:
    """A document as tokens, with which of them are scored and of which kind each is.

    The answer is all of a plain text; of a prompt and completion the completion; of a conversation what the assistant
    says, its end-of-turn marks included. A text or completion ends with the end-of-sequence token. The prompt is what
    stands before the last answer and is no answer; the tokens end there. A plain text is its own prompt. The first
    token is never scored.

    Conversations pass through the tokenizer's chat template. The assistant's tokens are found by rendering the
    conversation up to and through each answer and taking the characters in between, so no marks in the template are
    needed. Every token of a tokenizer that cannot say which characters a token covers is a `mark`.

    Raises:
        DataError: no chat template, a template that rewrites earlier turns, a conversation for a tokenizer without
            character offsets, or nothing left to predict.
    """
    encode = _encode_chat if document.format == "messages" else _encode
    ids, answer, kind = encode(document, tokenizer)
    scored = answer
    if part == "prompt" and document.format != "text":
        last = np.flatnonzero(np.diff(answer, prepend=False) & answer)[-1:]  # where the last answer begins
        ids, kind, scored = (column[: int(last.sum())] for column in (ids, kind, ~answer))
    if len(ids):
        scored[0] = False  # nothing stands before it to predict it from
    if not scored.any():
        raise DataError(f"got no token to predict after tokenising, expected at least one, at {document.place}")
    return Tokens(ids=ids, scored=scored, kind=kind)


def _encode(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, answer, kind) of a plain text, or of a prompt and its completion, each cut into tokens by itself."""
    given, rest = document.content.get("prompt", ""), document.content.get("completion", document.content.get("text"))
    prompt, prompt_spans = _cut(given, tokenizer, add_special_tokens=bool(given))
    answer, answer_spans = _cut(rest, tokenizer, add_special_tokens=not len(prompt))
    end = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], dtype=np.int64)
    ids = np.concatenate([prompt, answer, end])
    spans = np.concatenate([prompt_spans, answer_spans + len(given), np.zeros((len(end), 2), dtype=np.int64)])
    return ids, np.arange(len(ids)) >= len(prompt), _kinds(given + rest, ids, spans, tokenizer)


def _encode_chat(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, answer, kind) of a conversation."""
    chat = chats.render(document.content["messages"], tokenizer, place=document.place)
    if not tokenizer.is_fast:
        raise DataError(
            "got a conversation, but the model's tokenizer cannot say which characters a token covers, at "
            f"{document.place}"
        )
    ids, spans = _cut(chat.text, tokenizer, add_special_tokens=False)
    answer = np.zeros(len(ids), dtype=bool)
    for low, high in chat.answers:
        answer |= (spans[:, 0] < high) & (spans[:, 1] > low)
    text, spans = without_template(chat.text, spans, (*chat.answers, *chat.others))
    return ids, answer, _kinds(text, ids, spans, tokenizer)


def _cut(text: str, tokenizer: Tokenizer, *, add_special_tokens: bool) -> tuple[np.ndarray, np.ndarray]:
    """(ids, spans): the tokens of a text, and which characters each covers, none where the tokenizer cannot say."""
    encoded = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    spans = encoded["offset_mapping"] if tokenizer.is_fast else np.zeros((len(ids), 2))
    return ids, np.asarray(spans, dtype=np.int64).reshape(-1, 2)


def _kinds(text: str, ids: np.ndarray, spans: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """The kinds of tokens, special ones marks wherever they come from."""
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    return token_kinds(text, np.where(np.isin(ids, list(special))[:, None], 0, spans))


def packed_batches(documents: Sequence[Tokens], *, context: int, rows: int, seed: int) -> Iterator[Block]:
    """Training batches without padding, for ever: documents shuffled, laid end to end and cut into rows of `context`.

    Each epoch has its own order from (seed, epoch). Positions restart at each document and at each cut, so attention
    never crosses from one document into the next and a short document's loss is what it would be alone. The remainder
    of an epoch that fills no row leads the next one, so no token is lost. Depends on the documents and these numbers
    alone: every rank of a study sees the same batches.
    """
    ids, scored, positions = (np.zeros(0, dtype=dtype) for dtype in (np.int64, bool, np.int64))
    epoch = 0
    size = rows * context
    while True:
        while len(ids) < size:
            order = np.random.default_rng([seed, epoch]).permutation(len(documents))
            ids = np.concatenate([ids, *(documents[i].ids for i in order)])
            scored = np.concatenate([scored, *(documents[i].scored for i in order)])
            positions = np.concatenate([positions, *(np.arange(len(documents[i].ids)) for i in order)])
            epoch += 1
        block_positions = positions[:size].reshape(rows, context)
        block_scored = scored[:size].reshape(rows, context).copy()
        # A row that starts inside a document starts again at position 0, and its first token has nothing before it.
        lead = np.where(np.cumsum(block_positions == 0, axis=1) == 0, block_positions[:, :1], 0)
        block_scored[:, 0] = False
        yield Block(
            ids=ids[:size].reshape(rows, context),
            scored=block_scored,
            positions=block_positions - lead,
            document=np.zeros((rows, context), dtype=np.int64),
            kind=np.full((rows, context), -1, dtype=np.int8),
        )
        ids, scored, positions = ids[size:], scored[size:], positions[size:]


def measured_blocks(documents: Sequence[Tokens], *, context: int, tokens: int) -> list[Block]:
    """The batch plan of a measurement: every document cut into windows of `context`, similar lengths together.

    Rows are padded on the right, where a causal model cannot see; a batch holds about `tokens` tokens. Base and tuned
    are measured with the same plan, because batch shape alone moves floating-point results. Windows without a token to
    predict are left out.
    """
    windows = [
        (index, document, slice(start, start + context))
        for index, document in enumerate(documents)
        for start in range(0, len(document.ids), context)
        if document.scored[start + 1 : start + context].any()
    ]
    windows.sort(key=lambda window: len(window[1].ids[window[2]]))
    blocks: list[Block] = []
    while windows:
        _, longest, cut = windows[-1]
        width = len(longest.ids[cut])
        rows = max(1, tokens // width)
        blocks.append(_padded(windows[-rows:], width))
        windows = windows[:-rows]
    return blocks


def _padded(windows: Sequence[tuple[int, Tokens, slice]], width: int) -> Block:
    shape = (len(windows), width)
    ids, document = np.zeros(shape, dtype=np.int64), np.full(shape, -1)
    scored, kind = np.zeros(shape, dtype=bool), np.full(shape, -1, dtype=np.int8)
    for row, (index, tokens, cut) in enumerate(windows):
        length = len(tokens.ids[cut])
        ids[row, :length], kind[row, :length], document[row, :length] = tokens.ids[cut], tokens.kind[cut], index
        scored[row, 1:length] = tokens.scored[cut][1:]
    positions = np.tile(np.arange(width), (shape[0], 1))
    return Block(ids=ids, scored=scored, positions=positions, document=document, kind=kind)
