"""Forgetting of one whole model against llama.cpp's `llama-perplexity --kl-divergence`: same weights, text and tokens.

    python benchmarks/llama_cpp.py BIN --dtype float32

BIN is the folder with llama.cpp's llama-perplexity and llama-quantize. llama-cpp-python 0.3.36 as a source archive has
all of it: cmake -B build vendor/llama.cpp; cmake --build build --target llama-perplexity llama-quantize

llama.cpp scores the second half of each window of 512 tokens, and has to have run the base into a file of its logits
before; ours scores all of a window, and has to have kept the base's vectors. Both are done before the clock starts.
llama.cpp's seconds begin with its own line that it begins, the model loaded. Both tools have the same float32 weights
(checked tensor by tensor), or the same rounded to bf16; that the numbers agree is shown on the very same tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pair
from gguf import GGUFReader

from holdfast import builtin, meter, models

MAPS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def run(*command: str) -> str:
    """A tool's output, both streams."""
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    return outcome.stdout + outcome.stderr


def as_llama_cpp_has_it(name: str, weight: np.ndarray, heads: dict[str, int]) -> np.ndarray:
    """llama.cpp interleaves the two halves of each query and key head, which transformers keep apart."""
    if name not in heads:
        return weight
    return weight.reshape(heads[name], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_tuned(base: Path, tuned: Path, model: models.Base, reference: models.Base) -> None:
    """A copy of the base's F32 GGUF with the tuned model's maps in it; the base's own must equal ours first."""
    shutil.copy(base, tuned)
    ours, theirs = (dict(m.named_parameters()) for m in (model, reference))
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for tensor in GGUFReader(tuned, "r+").tensors:
        if (found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)) and found[2] in MAPS:
            name = f"model.layers.{found[1]}.{MAPS[found[2]]}.weight"
            if not np.array_equal(tensor.data, as_llama_cpp_has_it(found[2], theirs[name].numpy(), heads)):
                raise RuntimeError(f"got other weights than ours in {tensor.name}")
            tensor.data[:] = as_llama_cpp_has_it(found[2], ours[name].numpy(), heads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bin", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        quantise, perplexity = (str(options.bin / name) for name in ("llama-quantize", "llama-perplexity"))
        run(quantise, "--allow-requantize", str(builtin.fetch_gguf(folder)), str(folder / "base-f32.gguf"), "F32")
        pair.write_merged(pair.write_adapter(folder / "adapter"), folder / "tuned")
        base, tuned = (
            models.load_base(spec, dtype="float32", device="cpu") for spec in (pair.BASE, str(folder / "tuned"))
        )
        write_tuned(folder / "base-f32.gguf", folder / "tuned-f32.gguf", tuned, base)
        kind = "f32"
        if options.dtype == "bfloat16":
            kind = "bf16"
            for name in ("base", "tuned"):
                run(quantise, str(folder / f"{name}-f32.gguf"), str(folder / f"{name}-bf16.gguf"), "BF16")
            base, tuned = (
                models.load_base(spec, dtype="bfloat16", device="cpu") for spec in (pair.BASE, str(folder / "tuned"))
            )
        tokenizer = models.load_tokenizer(pair.BASE)
        (folder / "text.txt").write_text(tokenizer.decode(pair.ids(tokenizer, number=options.windows)))
        ids = tokenizer((folder / "text.txt").read_text())["input_ids"]
        # llama.cpp asks positions 256 to 510 of each window for their next tokens; we ask all but the last.
        plans = {"ours, its tokens": pair.windows(ids, first=pair.CONTEXT // 2 + 1), "ours": pair.windows(ids, first=1)}
        count = {name: sum(int(block.scored.sum()) for block in plan) for name, plan in plans.items()}
        count["llama.cpp"] = count["ours, its tokens"]

        shared = [
            "-f",
            str(folder / "text.txt"),
            "-c",
            str(pair.CONTEXT),
            "-b",
            "2048",
            "--kl-divergence-base",
            str(folder / "kld"),
        ]
        run(perplexity, "-m", str(folder / f"base-{kind}.gguf"), *shared)
        places = tuple(str(i) for i in range(len(ids) // pair.CONTEXT))
        kept = {
            name: meter.ObservedBase(
                corpus="text", role="retain", places=places, blocks=plan,
                batches=tuple(meter.observe(base, plan, kind="vectors", corpus="text")),
            )
            for name, plan in plans.items()
        }  # fmt: skip
        seconds: dict[str, list[float]] = {"ours": [], "ours, its tokens": [], "llama.cpp": []}
        kl: dict[str, list[float]] = {}
        for _ in range(options.rounds + 1):
            for name, plan in kept.items():
                start = time.perf_counter()
                found = meter.measure_on(tuned, plan).kl_base_tuned
                seconds[name].append(time.perf_counter() - start)
                kl[name] = [found.value, found.stderr]
            start = time.perf_counter()
            said = run(perplexity, "-m", str(folder / f"tuned-{kind}.gguf"), *shared, "--kl-divergence")
            ended = time.perf_counter() - start
            begun = re.search(r"(\d+)\.(\d+)\.(\d+)\.\d+ I kl_divergence: computing over", said)
            mean = re.search(r"Mean\s+KLD:\s+([-\d.]+) ±\s+([\d.]+)", said)
            if not begun or not mean:
                raise RuntimeError(f"got an output that is not llama-perplexity's: {said[-2000:]}")
            minutes, whole, thousandths = (int(part) for part in begun.groups())
            seconds["llama.cpp"].append(ended - 60 * minutes - whole - thousandths / 1000)
        medians = {side: statistics.median(taken[1:]) for side, taken in seconds.items()}
        speed = {side: count[side] / taken for side, taken in medians.items()}
        result = {
            "dtype": options.dtype,
            "scored_tokens": count,
            "kl": kl | {"llama.cpp": [float(mean[1]), float(mean[2])]},
            "scored_tokens_per_s": {side: round(found, 1) for side, found in speed.items()},
            "ratio": round(speed["ours"] / speed["llama.cpp"], 2),
            "rounds_ratio": [
                round(theirs / count["llama.cpp"] / (ours / count["ours"]), 2)
                for theirs, ours in zip(seconds["llama.cpp"][1:], seconds["ours"][1:], strict=True)
            ],
            "bytes_kept_per_token": {
                "ours": 4 * 576 + 32, "llama.cpp": round((folder / "kld").stat().st_size / count["llama.cpp"]),
            },
        }  # fmt: skip
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
