"""The texts of this study, out of files anyone can have: openings of documents, so that many count and none too much.

    python studies/smollm2-135m/prepare.py SOURCES DATA

SOURCES holds wikitext/wiki.test.raw (WikiText-2's test articles, those of WikiText-103 and of the paper; CC BY-SA 3.0),
wiki100/wiki100.jsonl (101 Wikipedia articles; CC BY-SA 4.0), news/press_2024-07_2025-12.jsonl (press releases of
members of the United States Congress, later than the model's training data; public domain),
openorca/openorca_gpt4.jsonl (284 rows of OpenOrca with GPT-4's answers; MIT) and flan_cot/flan_cot_8320.jsonl (FLAN's
questions with rationales; Apache-2.0). Maths is GSM8K, which comes with Holdfast.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from holdfast.corpora import read_corpus

WORDS = 180


def opening(text: str, words: int = WORDS) -> str:
    """The first words of a text, its spaces and lines as they were."""
    found = list(re.finditer(r"\S+", text))
    return text if len(found) <= words else text[: found[words - 1].end()]


def write(path: Path, texts: list[str]) -> None:
    """A JSONL file of plain texts."""
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    print(f"{path}: {len(texts)} documents")


def main(sources: Path, data: Path) -> None:
    """Write every text of the study."""
    (data / "instructions").mkdir(parents=True, exist_ok=True)
    articles = read_corpus(str(sources / "wikitext" / "wiki.test.raw")).documents
    write(data / "wikitext.jsonl", [opening(article.content["text"]) for article in articles])
    pages = map(json.loads, (sources / "wiki100" / "wiki100.jsonl").read_text(encoding="utf-8").splitlines())
    prose = [re.sub(r"^\*: .*? - ", "", page["text"], flags=re.MULTILINE) for page in pages]
    write(data / "wikipedia.jsonl", [opening(text) for text in prose])
    released = (sources / "news" / "press_2024-07_2025-12.jsonl").read_text(encoding="utf-8").splitlines()
    write(data / "news.jsonl", [opening(json.loads(line)["text"]) for line in released])
    for name in ("openorca/openorca_gpt4.jsonl", "flan_cot/flan_cot_8320.jsonl"):
        rows = (sources / name).read_bytes()
        (data / "instructions" / Path(name).name).write_bytes(rows)
        print(f"{data / 'instructions' / Path(name).name}: {len(rows.splitlines())} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
