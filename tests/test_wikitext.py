"""WikiText cut into articles: the real test set, the traps in it, and copies that were damaged on the way."""

import json
from pathlib import Path

import pytest

from holdfast import wikitext
from holdfast.corpora import read_corpus
from holdfast.errors import DataError

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "wikitext" / "wiki.test.raw"

LINES = [
    " \n", " = Robert Boulter = \n", " \n", " Robert is an actor . \n", " He was cast . \n", " \n",
    " = = Career = = \n", " \n", " \n", " = = = 2000 = = = \n", " \n", " Its cut @-@ off frequency is ωc \n",
    " = 1 rad / s and a nominal impedance k = \n", " 1 Ω . This has inductance L \n",
    " = 1 henry and capacitance C = \n", " 1 farad . \n", " Key \n", " Q \n",
    " = Qualified for the next round \n", " q = \n", " \n",
    " = Du Fu = \n", " \n", " Du Fu ( Chinese : 杜甫 ) was a poet . \n",
]  # fmt: skip


def test_the_real_test_set_has_its_sixty_articles() -> None:
    """60 is what the set's authors say. A count of lines like ` = Title = ` is 62: two are formulas torn apart."""
    if not REAL.is_file():
        pytest.skip(f"WikiText's test set is not at {REAL}")
    corpus = read_corpus(str(REAL))
    assert (corpus.name, len(corpus.documents)) == ("wikitext", 60)
    texts = [document.content["text"] for document in corpus.documents]
    titles = [text.partition("\n")[0].strip(" =") for text in texts]
    assert titles[:3] == ["Robert Boulter", "Du Fu", "Kiss You ( One Direction song )"]
    assert titles[-1] == "The Hustler ( film )"
    assert "Constant k filter" in titles
    assert not [title for title in titles if title.startswith("1 ")]
    assert "".join(texts) == REAL.read_bytes().decode().replace("\r\n", "\n")
    assert corpus.documents[1].place == f"{REAL}:15"


@pytest.mark.parametrize("suffix", wikitext.SUFFIXES)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("empty_lines", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_articles_of_a_file(suffix: str, line_break: str, empty_lines: bool, mark: str, tmp_path: Path) -> None:
    lines = [line.replace("\n", line_break) for line in LINES if empty_lines or line.strip()]
    path = tmp_path / f"wiki.test{suffix}"
    path.write_bytes((mark + "".join(lines)).encode())
    corpus = read_corpus(str(path))
    second = next(number for number, line in enumerate(lines) if "Du Fu = " in line)
    first = 1 if empty_lines else 0
    read = [line.replace("\r\n", "\n") for line in lines]  # a break is a break, whichever system wrote it
    assert [d.content["text"] for d in corpus.documents] == ["".join(read[first:second]), "".join(read[second:])]
    assert [d.place for d in corpus.documents] == [f"{path}:{first + 1}", f"{path}:{second + 1}"]
    assert corpus.name == "wikitext"


def test_a_folder_of_parts_and_text_before_the_first_title(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_text("the end of an article . \n" + "".join(LINES))
    (tmp_path / "b.raw").write_text("".join(LINES[20:]))
    (tmp_path / "readme.md").write_text("not a text")
    documents = read_corpus(str(tmp_path)).documents
    assert [d.place for d in documents] == [
        f"{tmp_path}/a.raw:1", f"{tmp_path}/a.raw:3", f"{tmp_path}/a.raw:23", f"{tmp_path}/b.raw:2",
    ]  # fmt: skip
    assert documents[0].content["text"] == "the end of an article . \n \n"


@pytest.mark.parametrize("content", ["", " \n \n", "plain text\n", " = = Section = = \n", " = Something\n", "= =\n"])
def test_a_file_without_a_title_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_text(content)
    with pytest.raises(DataError, match=r"got no title such as ' = Title = '.*other.raw:1"):
        read_corpus(str(tmp_path / "other.raw"))


def test_the_hub_set_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub keeps a line a row, an empty one without its space and break: the documents are those of the file."""
    folder = tmp_path / "Salesforce" / "wikitext"
    folder.mkdir(parents=True)
    rows = "".join(json.dumps({"text": line if line.strip() else ""}) + "\n" for line in LINES)
    (folder / "test.jsonl").write_text(rows)
    (folder / "train.jsonl").write_text(json.dumps({"text": "another split"}) + "\n")
    data = "{split: train, path: train.jsonl}, {split: test, path: test.jsonl}"
    configs = f"[{{config_name: wikitext-103-raw-v1, data_files: [{data}]}}]"
    (folder / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    (tmp_path / "wiki.test.raw").write_text("".join(LINES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = read_corpus("wiki.test.raw")
    alone, full = read_corpus("wikitext"), read_corpus("Salesforce/wikitext:wikitext-103-raw-v1@test")
    assert alone == full
    assert (alone.name, alone.fingerprint) == ("wikitext", file.fingerprint)
    assert alone.documents[1].place == "Salesforce/wikitext:wikitext-103-raw-v1@test, row 22"
    with pytest.raises(DataError, match=r"no title.*wikitext-103-raw-v1@train, row 1"):
        read_corpus("Salesforce/wikitext:wikitext-103-raw-v1@train")


def test_a_squeezed_copy_keeps_titles_that_follow_a_list_or_open_with_a_number() -> None:
    lines = [" = One = \n", " A list of places\n", " = 2010 Shield = \n", " The Shield was won . \n", " = 6teen = \n"]
    lines += [" 6teen is a series . \n"]
    assert [number for number, _ in wikitext.articles(lines)] == [1, 3, 5]
