"""Kinds of token: labelled sentences, an oracle by character, relations, and real tokenizers' offsets."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.corpora import Document, read_corpus, tokenise
from holdfast.evidence import KINDS
from holdfast.kinds import token_kinds, without_template
from holdfast.models import load_tokenizer


def names(text: str) -> list[str]:
    """The words between spaces that hold a name."""
    words = list(re.finditer(r"\S+", text))
    kinds = token_kinds(text, np.array([word.span() for word in words]).reshape(-1, 2))
    return [word.group() for word, kind in zip(words, kinds, strict=True) if KINDS[kind] == "name"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In June the Danube froze.", ["June", "Danube"]),
        ("Paris is large. Rome is old, and Rome is warm.", ["Rome"]),  # the first of a sentence is not known to be one
        ("She met Dr. Smith. He had known J. R. R. Tolkien.", ["Dr.", "Smith.", "J.", "R.", "R.", "Tolkien."]),
        ("He saw the U.S. Army . The army saw him .", ["U.S.", "Army"]),
        ("So I think I'm the one who asked Zoë-Anne O'Brien.", ["Zoë-Anne", "O'Brien."]),
        ("It was Kirby's block.", ["Kirby's"]),
        ("STOP IT NOW! Then NASA called.", ["NASA"]),  # capitals tell nothing where all are
        ('He said, "The sky is blue." "The end" was near.', []),
        ("Question: What is kelp?\nAnswer: A plant.", []),
        (" = = Early Life = = \n He was born in Bonn .", ["Life", "Bonn"]),
        ("first line\nSecond line\r\nThird line", []),
        ("He sold B52 parts to McDonald's and an iPhone to 3M.", ["McDonald's"]),  # with a digit: a number
        ("Тогда Иван увидел Ελλάδα и 北京。Потом", ["Иван", "Ελλάδα"]),
        ("He went... Then he asked: who? Nobody (He had left).", ["(He"]),
        ("", []),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_every_kind() -> None:
    text = "In Rome 3½ hens, 你好 ²!\n\n"
    spans = [(0, 2), (2, 7), (7, 9), (9, 10), (10, 15), (15, 16), (17, 19), (20, 21), (21, 22), (22, 24), (9, 9)]
    expected = [
        "rarer word", "name", "number", "number", "rarer word", "punctuation", "rarer word", "number", "punctuation",
        "punctuation", "mark",
    ]  # fmt: skip
    kinds = token_kinds(text, np.array(spans))
    assert [KINDS[kind] for kind in kinds] == expected
    assert kinds.dtype == np.int8


anything = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates included


@settings(deadline=None, max_examples=300)
@given(anything, st.lists(st.tuples(st.integers(-3, 70), st.integers(-3, 70)), max_size=30))
def test_against_an_oracle_by_character(text: str, spans: list[tuple[int, int]]) -> None:
    kinds = token_kinds(text, np.array(spans, dtype=np.int64).reshape(-1, 2))
    assert len(kinds) == len(spans)
    for (low, high), kind in zip(spans, kinds, strict=True):
        piece = text[max(low, 0) : max(high, 0)]
        categories = {unicodedata.category(character)[0] for character in piece}
        if not piece:
            assert KINDS[kind] == "mark"
        elif "N" in categories:
            assert KINDS[kind] == "number"
        elif not categories & {"L", "M"}:
            assert KINDS[kind] == "punctuation"
        else:
            assert KINDS[kind] in ("name", "rarer word")
            if KINDS[kind] == "name":
                assert any(unicodedata.category(character) in ("Lu", "Lt") for character in text)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["the", "Rome", "NASA", "of", "e\u0301té", "Zoë", "I", "."]), min_size=1), st.data())
def test_a_piece_of_a_word_is_of_the_words_kind(words: list[str], data: st.DataObject) -> None:
    text = " ".join(words)
    for word in re.finditer(r"\S+", text):
        cut = data.draw(st.integers(word.start(), word.end()))
        spans = [word.span(), (word.start(), cut), (cut, word.end()), (max(word.start() - 1, 0), word.end())]
        kinds = token_kinds(text, np.array(spans))
        assert {kinds[i] for i, (low, high) in enumerate(spans) if high > low} == {kinds[0]}


def test_without_capitals_or_with_nothing_else_there_are_no_names(tiny: Path) -> None:
    """Real text: case decides which words are names and nothing else."""
    tokenizer = load_tokenizer(str(tiny))
    for document in read_corpus("builtin:wikipedia").documents[:10]:
        text = document.content["text"].encode("ascii", "replace").decode()
        spans = np.array(tokenizer(text, return_offsets_mapping=True)["offset_mapping"])
        kinds = token_kinds(text, spans)
        name, word = KINDS.index("name"), KINDS.index("rarer word")
        assert (kinds == name).any()
        for changed in (text.lower(), text.upper()):
            assert np.array_equal(token_kinds(changed, spans), np.where(kinds == name, word, kinds))


def test_bytes_of_one_character_share_its_kind(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    text = "At last 😀 Zoë saw 北京.\x00"
    got = tokenise(Document(content={"text": text}, place="here"), tokenizer)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    by_character: dict[str, set[str]] = {}
    for (low, high), kind in zip(spans, got.kind, strict=False):
        by_character.setdefault(text[low:high].strip(), set()).add(KINDS[kind])
    assert len(spans) > len(text)  # each of them is several tokens
    assert by_character["😀"] == {"punctuation"}
    assert by_character["ë"] == {"name"}
    assert by_character["北"] == by_character["京"] == {"rarer word"}
    assert by_character["\x00"] == {"punctuation"}
    assert KINDS[got.kind[-1]] == "mark"  # the end of the text


def test_offsets_in_the_style_of_sentencepiece() -> None:
    """Spaces as ▁ before a word, characters outside the vocabulary as bytes, marks put before the text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,", "In", "▁In", "Ro", "▁Ro", "me", "▁the"]
    merges = [("I", "n"), ("▁", "In"), ("R", "o"), ("▁", "Ro"), ("m", "e")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in ("<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    got = tokenise(Document(content={"text": "In Rome, 7 é</s>"}, place="here"), tokenizer)
    found = list(zip(tokenizer.convert_ids_to_tokens(got.ids), [KINDS[kind] for kind in got.kind], strict=True))
    assert found == [
        ("<s>", "mark"), ("▁In", "rarer word"), ("▁Ro", "name"), ("me", "name"), (",", "punctuation"),
        ("▁", "punctuation"), ("<0x37>", "number"), ("▁", "punctuation"), ("<0xC3>", "rarer word"),
        ("<0xA9>", "rarer word"), ("</s>", "mark"), ("</s>", "mark"),
    ]  # fmt: skip


def test_a_template_is_hidden_and_each_message_begins_a_sentence() -> None:
    text = "[USER] Who ran Rome [BOT] The Senate"
    spans = np.array([word.span() for word in re.finditer(r"\S+", text)])
    shown, visible = without_template(text, spans, [(7, 19), (26, 36)])
    assert shown == "\n" * 7 + "Who ran Rome" + "\n" * 7 + "The Senate"
    kinds = [KINDS[kind] for kind in token_kinds(shown, visible)]
    assert kinds == ["mark", "rarer word", "rarer word", "name", "mark", "rarer word", "name"]
