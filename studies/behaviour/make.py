"""Does accuracy hide what changed, and what does a nat of forgetting cost in answers? Adapters of several kinds.

    python studies/behaviour/make.py DATA --output-dir made --also runs/*/adapter

DATA holds `openorca/openorca_gpt4.jsonl`, `flan_cot/flan_cot_8320.jsonl`, and `xstest/xstest_prompts.csv`; none of it
is copied into the project. Three adapters of the built-in model are trained for equally many steps: on grade-school
maths, on GPT-4's answers to OpenOrca's instructions, and on FLAN's short rationales. They, and any `--also`, answer
ARC-Challenge by likelihood per character and AdvBench's requests beside their base, with `--xstest` XSTest's prompts
too, and their forgetting on Wikipedia is measured. Written: `results.json` with every share and interval, `report.html`
(without XSTest's prompts), `items.parquet`. Finished adapters are found again when the same command is given.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import holdfast
from holdfast.behaviour import ProbeReport
from holdfast.publishing import publish_probe

BASE = "builtin:smollm2"
HERE = Path(__file__).parent


def conversations(data: Path, kind: str) -> Iterator[list[dict[str, str]]]:
    """The rows of a kind of data, as conversations."""
    file = {"openorca": "openorca/openorca_gpt4.jsonl", "flan_cot": "flan_cot/flan_cot_8320.jsonl"}[kind]
    for line in (data / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if kind == "flan_cot":
            said = {"question": row["question"], "answer": f"{row['rationale']} So the answer is {row['answer']}."}
            system: list[dict[str, str]] = []
        else:
            said = {"question": row["question"], "answer": row["response"]}
            system = [{"role": "system", "content": row["system_prompt"]}] if row["system_prompt"] else []
        if said["question"].strip() and said["answer"].strip():
            yield [
                *system,
                {"role": "user", "content": said["question"]},
                {"role": "assistant", "content": said["answer"]},
            ]


def trained(data: Path, kind: str, out: Path, steps: int) -> str:
    """The adapter of one kind of data: made, or found finished."""
    source = "builtin:gsm8k"
    if kind != "gsm8k":
        file = out / "data" / f"{kind}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in conversations(data, kind)))
        source = str(file.resolve())
    study = yaml.safe_load((HERE / "study.yaml").read_text(encoding="utf-8"))
    study["target"]["data"] = source
    study |= {"steps": steps}
    path = out / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(study))
    table = holdfast.sweep(path, out=out / "runs" / kind)
    return str(out / "runs" / kind / str(table["run"].iloc[-1]) / "adapter")


def together(reports: Sequence[ProbeReport]) -> ProbeReport:
    """Probes of the same models as one."""
    models = [
        replace(models[0], results=tuple(result for model in models for result in model.results))
        for models in zip(*(report.models for report in reports), strict=True)
    ]
    return replace(reports[0], models=tuple(models))


def main() -> None:
    """Train, probe, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--also", nargs="*", default=[], help="more adapters of the same base, name=folder")
    parser.add_argument("--protocols", nargs="*", default=["character"], help="of ARC-Challenge")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--questions", type=int, help="of ARC-Challenge; default all 1,172")
    parser.add_argument("--prompts", type=int, default=200, help="of AdvBench")
    parser.add_argument("--xstest", type=int, default=0, help="of XSTest's 450; default none")
    parser.add_argument("--documents", type=int, default=32, help="of Wikipedia")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    out = asked.output_dir
    out.mkdir(parents=True, exist_ok=True)
    named = {trained(asked.data, kind, out, asked.steps): kind for kind in ("gsm8k", "openorca", "flan_cot")}
    named |= {folder: name for name, folder in (each.split("=", 1) for each in asked.also)}
    common: dict[str, Any] = {"base": BASE, "tuned": list(named), "dtype": asked.dtype}
    measured = holdfast.measure(**common, texts=["builtin:wikipedia"], documents=asked.documents)
    forgetting = {one.name: {"wikipedia": one.texts["wikipedia"].kl_base_tuned} for one in measured.checkpoints}
    common |= {"max_new_tokens": asked.max_new_tokens}
    arc = holdfast.probe(**common, tasks=["arc_challenge"], protocols=asked.protocols, limit=asked.questions)
    advbench = holdfast.probe(**common, tasks=["advbench"], limit=asked.prompts)
    probed = [arc, advbench]
    if asked.xstest:
        prompts = str(asked.data / "xstest" / "xstest_prompts.csv")
        probed.append(holdfast.probe(**common, tasks=[prompts], limit=asked.xstest))
    shown, whole = (
        replace(
            report,
            models=tuple(
                replace(one, name=named[one.name], run=named[one.name], forgetting=forgetting[one.name])
                for one in report.models
            ),
        )
        for report in (together([arc, advbench]), together(probed))
    )
    results = whole.to_dict() | {"exchange": [one.to_dict() for one in holdfast.exchanges(whole)]}
    (out / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    publish_probe(
        shown, html=out / "report.html", parquet=out / "items.parquet",
        commands=["python studies/behaviour/make.py DATA --output-dir made"],
    )  # fmt: skip
    print(whole)
    print(json.dumps(results["exchange"], indent=2))


if __name__ == "__main__":
    main()
