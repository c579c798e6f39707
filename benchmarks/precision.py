"""The error of measured forgetting in float32 and bfloat16 against two whole models in float64 with full logits.

    python benchmarks/precision.py

One adapter of rank 16 at five sizes, and the same model twice. `merged` is what `holdfast.measure` does in float32,
`unmerged` what it does in bfloat16; the others show why.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pair
import torch

from holdfast import adapters, meter, models
from holdfast.corpora import Block, read_corpus

SCALES = (1.0, 0.3, 0.1, 0.03, 0.01)


def exact(adapter: Path, blocks: tuple[Block, ...]) -> float:
    """Mean KL in float64."""
    base = torch.nn.Module.to(models.load_base(pair.BASE, dtype="float32", device="cpu"), torch.float64)
    tuned = adapters.load_adapter(models.load_base(pair.BASE, dtype="float32", device="cpu"), str(adapter))
    tuned = torch.nn.Module.to(tuned, torch.float64)
    total, count = 0.0, 0
    with torch.no_grad():
        for block in blocks:
            ids, keep = torch.from_numpy(block.ids), torch.from_numpy(block.scored[:, 1:])
            ln_p, ln_q = (m(input_ids=ids).logits[:, :-1][keep].log_softmax(-1) for m in (base, tuned))
            total += (ln_p.exp() * (ln_p - ln_q)).sum().item()
            count += len(ln_p)
    return total / count


def measured(adapter: Path, kept: meter.ObservedBase, dtype: str, *, merge: bool) -> float:
    """Mean KL by the meter."""
    tuned = adapters.load_adapter(models.load_base(pair.BASE, dtype=dtype, device="cpu"), str(adapter))
    model = tuned.merge_and_unload(safe_merge=True) if merge else tuned
    return meter.measure_on(model, kept).kl_base_tuned.value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2)
    options = parser.parse_args()
    corpus = read_corpus("builtin:wikipedia").sample(options.documents)
    tokenizer = models.load_tokenizer(pair.BASE)
    kept = {}
    for dtype in ("float32", "bfloat16"):
        base = models.load_base(pair.BASE, dtype=dtype, device="cpu")
        kept[dtype] = meter.observe_base(base, corpus, role="retain", tokenizer=tokenizer, context=512)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for scale in (*SCALES, 0.0):
            adapter = pair.write_adapter(Path(scratch) / f"adapter-{scale}", scale=scale)
            row = {"scale": scale, "float64": exact(adapter, kept["float32"].blocks)}
            for dtype, base_kept in kept.items():
                for merge in (True, False):
                    name = f"{dtype} {'merged' if merge else 'unmerged'}"
                    row[name] = measured(adapter, base_kept, dtype, merge=merge)
            rows.append(row)
    tokens = sum(int(block.scored.sum()) for block in kept["float32"].blocks)
    print(json.dumps({"scored_tokens": tokens, "kl": rows}, indent=2))


if __name__ == "__main__":
    main()
