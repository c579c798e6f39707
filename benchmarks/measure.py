"""Forgetting of one whole model against a naive loop over two models with full logits: same tokens, same precision.

    python benchmarks/measure.py --dtype float32

Both sides have what they need before the clock starts: the naive loop two models, ours one and, on disk, what was kept
of the base. They take turns; the ratio is that of the medians. Memory is of fresh processes, above the weights
loaded; the naive loop's second model is weights, and not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import pair
import torch

from holdfast import basecache, meter, models
from holdfast.corpora import Block, read_corpus

CONTEXT = 512


def observed(dtype: str, documents: int, *, on_disk: bool) -> meter.ObservedBase:
    """What the base says of the text: in memory, or kept and found again."""
    corpus = read_corpus("builtin:wikipedia").sample(documents)
    base = models.load_base(pair.BASE, dtype=dtype, device="cpu")
    found = meter.observe_base(base, corpus, role="retain", tokenizer=models.load_tokenizer(pair.BASE), context=CONTEXT)
    if not on_disk:
        return found
    identity = {"benchmark": f"{dtype} {documents}"}
    basecache.keep(identity, found.batches, kind="vectors", head=models.head_of(base))
    stored = basecache.find(identity, kind="vectors", device="cpu")
    if stored is None:
        raise RuntimeError("got nothing back from the cache")
    return meter.ObservedBase(
        corpus=found.corpus, role=found.role, places=found.places, blocks=found.blocks, batches=stored
    )


def naive(base: models.Base, tuned: models.Base, blocks: tuple[Block, ...]) -> float:
    """Mean KL the obvious way: both models' full logits, a batch of 4 rows at a time, softmax in float32."""
    total, count = 0.0, 0
    with torch.no_grad():
        for block in blocks:
            ids, keep = torch.from_numpy(block.ids), torch.from_numpy(block.scored[:, 1:])
            p, q = (model(input_ids=ids, use_cache=False).logits[:, :-1][keep].float() for model in (base, tuned))
            ln_p, ln_q = p.log_softmax(-1), q.log_softmax(-1)
            total += (ln_p.exp() * (ln_p - ln_q)).sum().item()
            count += int(keep.sum())
    return total / count


def memory(side: str, options: argparse.Namespace, tuned: Path) -> int:
    """Peak bytes above the weights of one side."""
    shared = ["--dtype", options.dtype, "--documents", str(options.documents), "--tuned", str(tuned)]
    return int(pair.in_fresh_process(__file__, "--memory", side, *shared))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "naive"))
    parser.add_argument("--tuned", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tuned_folder = options.tuned
        if tuned_folder is None:
            adapter = pair.write_adapter(Path(scratch) / "adapter")
            tuned_folder = pair.write_merged(adapter, Path(scratch) / "tuned")
        kept = observed(options.dtype, options.documents, on_disk=True)
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
