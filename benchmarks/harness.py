"""ARC-Challenge by log-likelihood against lm-evaluation-harness: same model, same items, same prompts, zero-shot.

    python benchmarks/harness.py --items 200 --dtype float32

Both have the model loaded before the clock starts and do all the rest within it: items, prompts, tokens, forward
passes, accuracy. lm-evaluation-harness runs its `hf` backend with the fastest of several batch sizes, found on a part
of the items. They take turns; the ratio is that of the medians. Log-likelihoods and both accuracies must be equal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair

from holdfast import builtin, models
from holdfast.items import read_items
from holdfast.probes import choice_probes

BATCH_SIZES = (1, 4, 8, 16, 32)


def ours(model: models.Base, tokenizer: models.Tokenizer, file: Path) -> tuple[list[list[float]], dict[str, float]]:
    """Log-likelihoods of every choice, and accuracies."""
    (probe,) = choice_probes(read_items(str(file)), ["character", "total"], tokenizer=tokenizer, shared=True)
    answers = probe.ask(model, lambda _share: None)
    by_character, total = probe.results(answers, answers)
    return answers, {"acc": total.accuracy.base.value, "acc_norm": by_character.accuracy.base.value}


def harness(
    model: models.Base, tokenizer: models.Tokenizer, file: Path, batch_size: int
) -> tuple[list[list[float]], dict[str, float]]:
    """The same by lm-evaluation-harness, with its own task's settings and the items from a file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    task = {
        "task": "arc_local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}",
        "metric_list": metrics,
    }  # fmt: skip
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
    found: dict[str, Any] = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0, log_samples=True)
    samples = sorted(found["samples"]["arc_local"], key=lambda sample: sample["doc_id"])
    scores = found["results"]["arc_local"]
    return [[value for value, _ in sample["filtered_resps"]] for sample in samples], {
        name: scores[f"{name},none"] for name in ("acc", "acc_norm")
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What work gives, its seconds on the clock and on the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - clock, time.process_time() - processor


def written(lines: list[str], folder: str, number: int) -> Path:
    """So many items as a file."""
    file = Path(folder) / f"arc{number}.jsonl"
    file.write_text("\n".join(lines[:number]) + "\n")
    return file


def main() -> None:
    """Take turns and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    tokenizer = models.load_tokenizer(pair.BASE)
    model = models.load_base(pair.BASE, dtype=asked.dtype, device="cpu")
    lines = gzip.decompress(builtin.data_path("arc_challenge").read_bytes()).decode().splitlines()
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        few = written(lines, folder, max(8, asked.items // 10))
        sizes = {size: timed(lambda size=size: harness(model, tokenizer, few, size))[2] for size in BATCH_SIZES}
        best = min(sizes, key=sizes.__getitem__)
        file = written(lines, folder, asked.items)
        ours(model, tokenizer, few)
        for _ in range(asked.rounds):
            one, *spent = timed(lambda: ours(model, tokenizer, file))
            other, *others = timed(lambda: harness(model, tokenizer, file, best))
            for name, value in zip(("clock", "processor"), zip(spent, others, strict=True), strict=True):
                seconds[f"ours {name}"].append(value[0])
                seconds[f"lm-eval {name}"].append(value[1])
    apart = max(abs(a - b) for x, y in zip(one[0], other[0], strict=True) for a, b in zip(x, y, strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = zip(seconds["lm-eval clock"], seconds["ours clock"], strict=True)
    print(
        json.dumps(
            {
                "dtype": asked.dtype,
                "items": asked.items,
                "batch_size_lm_eval": best,
                "seconds": {name: round(value, 2) for name, value in medians.items()},
                "ratio": round(medians["lm-eval clock"] / medians["ours clock"], 2),
                "ratio_processor": round(medians["lm-eval processor"] / medians["ours processor"], 2),
                "rounds_ratio": [round(a / b, 2) for a, b in ratios],
                "log_likelihoods_apart": apart,
                "accuracy": {"ours": one[1], "lm-eval": other[1]},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
