"""Forgetting of one whole model against a naive loop over two models with full logits: same tokens, same quantities.

    python benchmarks/measure.py --dtype float32

The naive loop takes 8 windows at a time, the default of transformers' Trainer, and makes from both models' full logits
the quantities that ours makes: both losses, the base's entropy, soft and hard cross-entropy, KL, agreement. Both sides
have what they need before the clock starts: the naive loop two models, ours one and, on disk, what is kept of the base.
They take turns; the ratio is that of the medians. Memory is of fresh processes, above the weights loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pair
import torch

from holdfast import basecache, meter, models
from holdfast.corpora import Block


def observed(dtype: str, number: int) -> meter.ObservedBase:
    """What the base says of so many windows, kept on disk and found again."""
    tokenizer = models.load_tokenizer(pair.BASE)
    base = models.load_base(pair.BASE, dtype=dtype, device="cpu")
    blocks = pair.windows(pair.ids(tokenizer, number=number), first=1)
    identity = {"benchmark": f"{dtype} {number}"}
    batches = meter.observe(base, blocks, kind="vectors", corpus="text")
    basecache.keep(identity, batches, kind="vectors", head=models.head_of(base))
    stored = basecache.find(identity, kind="vectors", device="cpu")
    if stored is None:
        raise RuntimeError("got nothing back from the cache")
    places = tuple(str(i) for i in range(number))
    return meter.ObservedBase(corpus="text", role="retain", places=places, blocks=blocks, batches=stored)


def naive(base: models.Base, tuned: models.Base, blocks: tuple[Block, ...]) -> float:
    """Mean KL, and all else, the obvious way."""
    rows = torch.from_numpy(np.concatenate([block.ids for block in blocks]))
    sums: dict[str, float] = defaultdict(float)
    with torch.no_grad():
        for ids in torch.split(rows, 8):
            ln_p, ln_q = (
                model(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1) for model in (base, tuned)
            )
            p, target, top = ln_p.exp(), ids[:, 1:, None], ln_p.argmax(-1, keepdim=True)
            sums["count"] += target.numel()
            sums["base_nll"] -= ln_p.gather(-1, target).sum().item()
            sums["nll"] -= ln_q.gather(-1, target).sum().item()
            sums["base_entropy"] -= (p * ln_p).sum().item()
            sums["cross_entropy"] -= (p * ln_q).sum().item()
            sums["hard_cross_entropy"] -= ln_q.gather(-1, top).sum().item()
            sums["agreement"] += (top[..., 0] == ln_q.argmax(-1)).sum().item()
    return (sums["cross_entropy"] - sums["base_entropy"]) / sums["count"]


def memory(side: str, options: argparse.Namespace, tuned: Path) -> int:
    """Peak bytes above the weights of one side."""
    shared = ["--dtype", options.dtype, "--windows", str(options.windows), "--tuned", str(tuned)]
    return int(pair.in_fresh_process(__file__, "--memory", side, *shared))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "naive"))
    parser.add_argument("--tuned", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tuned_folder = options.tuned
        if tuned_folder is None:
            adapter = pair.write_adapter(Path(scratch) / "adapter")
            tuned_folder = pair.write_merged(adapter, Path(scratch) / "tuned")
        kept = observed(options.dtype, options.windows)
        tuned = models.load_base(str(tuned_folder), dtype=options.dtype, device="cpu")
        if options.memory == "ours":
            print(pair.peak_above(lambda: meter.measure_on(tuned, kept)))
            return
        base = models.load_base(pair.BASE, dtype=options.dtype, device="cpu")
        if options.memory == "naive":
            print(pair.peak_above(lambda: naive(base, tuned, kept.blocks)))
            return
        seconds: dict[str, list[float]] = {"ours": [], "naive": []}
        kl = {}
        for _ in range(options.rounds + 1):
            for side, taken in seconds.items():
                start = time.perf_counter()
                kl[side] = (
                    meter.measure_on(tuned, kept).kl_base_tuned.value
                    if side == "ours"
                    else naive(base, tuned, kept.blocks)
                )
                taken.append(time.perf_counter() - start)
        tokens = sum(int(block.scored.sum()) for block in kept.blocks)
        medians = {side: statistics.median(taken[1:]) for side, taken in seconds.items()}
        result = {
            "dtype": options.dtype,
            "scored_tokens": tokens,
            "kl": kl,
            "scored_tokens_per_s": {side: round(tokens / taken, 1) for side, taken in medians.items()},
            "ratio": round(medians["naive"] / medians["ours"], 2),
            "rounds_ratio": [round(n / o, 2) for n, o in zip(seconds["naive"][1:], seconds["ours"][1:], strict=True)],
            "peak_above_weights_mb": {side: round(memory(side, options, tuned_folder) / 2**20) for side in seconds},
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
