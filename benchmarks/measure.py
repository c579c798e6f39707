"""Forgetting of one checkpoint, on a CPU: ours against a naive loop over two models with full logits.

Run: python benchmarks/measure.py [--dtype float32|bfloat16] [--documents 4] [--rounds 3]

Both measure the same adapter on the same windows of 512 tokens of the built-in Wikipedia text, with the same forward
precision, in turn in one process; the ratio of medians is printed, and that both agree. The base is observed before the
clock starts, as when a second checkpoint is measured. Peak memory above what was resident before
is taken in a process for each.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from holdfast import meter, models
from holdfast.config import Adapter
from holdfast.corpora import read_corpus

CONTEXT = 512


def adapted(dtype: str) -> models.Tuned:
    """The built-in model with an adapter of rank 16 that moves it by some tenths of a nat."""
    tuned = models.attach_adapter(models.load_base("builtin:smollm2", dtype=dtype, device="cpu"), Adapter(r=16), seed=0)
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return tuned.eval()


def naive(base: models.Base, tuned: models.Tuned, observed: meter.ObservedBase) -> float:
    """KL per scored token from the full logits of two models, batch by batch: what people write."""
    total, count = 0.0, 0
    with torch.no_grad():
        for block in observed.blocks:
            ids, positions = torch.from_numpy(block.ids), torch.from_numpy(block.positions)
            keep = torch.from_numpy(block.scored[:, 1:])
            logits = []
            for model in (base, tuned):
                head = models.output_head(model)
                with torch.autocast("cpu", torch.bfloat16, enabled=head.dtype == torch.bfloat16):
                    logits.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits)
            ln_p, ln_q = (part[:, :-1][keep].float().log_softmax(-1) for part in logits)
            total += (ln_p.exp() * (ln_p - ln_q)).sum().item()
            count += int(keep.sum())
    return total / count


def peak_above(work: Callable[[], object]) -> int:
    """Bytes by which this process grows while it works (Linux: the kernel's own high-water mark, reset first)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def memory(side: str, dtype: str, documents: int) -> int:
    """Peak bytes above the weights of one side, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory", side, "--dtype", dtype, "--documents", str(documents)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("ours", "naive"))
    options = parser.parse_args()
    corpus = read_corpus("builtin:wikipedia").sample(options.documents)
    tokenizer = models.load_tokenizer("builtin:smollm2")
    base = models.load_base("builtin:smollm2", dtype=options.dtype, device="cpu")
    observed = meter.observe_base(base, corpus, tokenizer=tokenizer, context=CONTEXT)
    tuned = adapted(options.dtype)
    if options.memory == "ours":
        print(peak_above(lambda: meter.measure_on(tuned, observed)))
        return
    if options.memory == "naive":
        print(peak_above(lambda: naive(base, tuned, observed)))
        return
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    values = {}
    for _ in range(options.rounds + 1):
        for side, seconds in times.items():
            start = time.perf_counter()
            if side == "ours":
                values[side] = meter.measure_on(tuned, observed).kl_base_tuned.value
            else:
                values[side] = naive(base, tuned, observed)
            seconds.append(time.perf_counter() - start)
    tokens = sum(int(block.scored.sum()) for block in observed.blocks)
    medians = {side: statistics.median(seconds[1:]) for side, seconds in times.items()}
    result = {
        "dtype": options.dtype,
        "scored_tokens": tokens,
        "kl": values,
        "scored_tokens_per_s": {side: tokens / seconds for side, seconds in medians.items()},
        "ratio": medians["naive"] / medians["ours"],
        "rounds_ratio": [n / o for n, o in zip(times["naive"][1:], times["ours"][1:], strict=True)],
        "peak_above_weights_mb": {side: memory(side, options.dtype, options.documents) / 2**20 for side in times},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
