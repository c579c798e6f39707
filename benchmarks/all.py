"""Run every benchmark and write its tables to docs/benchmarks.md: `make bench`, half an hour on two quiet cores.

    python benchmarks/all.py [llama.cpp] [naive] [checkpoints] [precision] [harness] [training] [fits] [page]

llama.cpp's needs its tools: LLAMA_CPP=folder/of/llama-perplexity make bench. Without them its table is left as it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
DTYPES = ("float32", "bfloat16")


def result(script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark printed; its other output goes to this one's stderr."""
    command = [sys.executable, str(HERE / script), *arguments]
    print(*command, file=sys.stderr)
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(printed[printed.index("{\n") :])
    print(json.dumps(found), file=sys.stderr)
    return found


def table(*rows: tuple[object, ...]) -> str:
    """Markdown, the first row its head."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def spread(found: dict[str, Any]) -> str:
    """A ratio of medians with its rounds' range."""
    return f"**{found['ratio']}×** ({min(found['rounds_ratio'])} to {max(found['rounds_ratio'])})"


def against_naive() -> str:
    """One checkpoint against two models in one loop."""
    rows: list[tuple[object, ...]] = [
        ("precision", "ours, scored tokens/s", "naive", "ratio (rounds)", "KL ours", "KL naive", "MB above weights")
    ]
    for dtype in DTYPES:
        found = result("measure.py", "--dtype", dtype)
        speed, kl, memory = found["scored_tokens_per_s"], found["kl"], found["peak_above_weights_mb"]
        rows.append(
            (
                dtype, speed["ours"], speed["naive"], spread(found), f"{kl['ours']:.6f}", f"{kl['naive']:.6f}",
                f"{memory['ours']} against {memory['naive']}",
            )
        )  # fmt: skip
    return table(*rows)


def against_llama_cpp(folder: str) -> str:
    """One checkpoint against llama-perplexity."""
    rows: list[tuple[object, ...]] = [
        (
            "precision", "ours, scored tokens/s", "llama.cpp", "ratio (rounds)", "KL ours, its tokens",
            "KL llama.cpp, its tokens", "bytes kept a token",
        )
    ]  # fmt: skip
    for dtype in DTYPES:
        found = result("llama_cpp.py", folder, "--dtype", dtype)
        speed, kept = found["scored_tokens_per_s"], found["bytes_kept_per_token"]
        ours, theirs = (
            f"{kl[0]:.5f} ± {kl[1]:.5f}" for kl in (found["kl"]["ours, its tokens"], found["kl"]["llama.cpp"])
        )
        rows.append(
            (
                dtype, speed["ours"], speed["llama.cpp"], spread(found), ours, theirs,
                f"{kept['ours']:,} against {kept['llama.cpp']:,}",
            )
        )  # fmt: skip
    return table(*rows)


def ten_checkpoints() -> str:
    """A trajectory in one call."""
    found = result("checkpoints.py")
    ten, single = found["seconds"].values()
    head = ("checkpoints", "one call, nothing kept of the base, s", "ten calls, base kept, s", "ratio", "numbers equal")
    return table(head, (10, ten, single, f"**{found['ratio']}×**", "yes" if found["equal"] else "no"))


def precision() -> str:
    """Errors against float64."""
    found = result("precision.py")
    columns = ("float32 merged", "float32 unmerged", "bfloat16 unmerged", "bfloat16 merged")
    rows: list[tuple[object, ...]] = [("KL in float64, nats per token", *columns)]
    for row in found["kl"]:
        errors = (f"{row[column] - row['float64']:+.1e}" if row[column] else "exactly 0" for column in columns)
        rows.append((f"{row['float64']:.6f}", *errors))
    return table(*rows)


def against_harness() -> str:
    """ARC-Challenge by log-likelihood."""
    rows: list[tuple[object, ...]] = [
        (
            "precision",
            "questions",
            "ours, s",
            "lm-eval, s",
            "ratio (rounds)",
            "log-likelihoods apart",
            "acc_norm ours",
            "lm-eval",
        )
    ]
    for dtype in DTYPES:
        found = result("harness.py", "--dtype", dtype)
        seconds, accuracy = found["seconds"], found["accuracy"]
        rows.append(
            (
                dtype, found["items"], seconds["ours clock"], seconds["lm-eval clock"], spread(found),
                f"{found['log_likelihoods_apart']:.1e}", accuracy["ours"]["acc_norm"], accuracy["lm-eval"]["acc_norm"],
            )
        )  # fmt: skip
    return table(*rows)


def against_trainer() -> str:
    """One LoRA run."""
    rows: list[tuple[object, ...]] = [
        (
            "Trainer with PEFT",
            "ours, tokens/s",
            "Trainer",
            "ratio (rounds)",
            "held-out loss ours",
            "Trainer",
            "MB above weights",
        )
    ]
    for peer, name in {"defaults": "float32, padded: its defaults", "packed": "bf16, packed"}.items():
        found = result("training.py", "--peer", peer)
        speed, memory = found["tokens_per_s"], found["peak_above_weights_mb"]
        losses = (" ".join(f"{loss:.3f}" for loss in found["held_out_loss"][side]) for side in ("ours", peer))
        rows.append(
            (name, speed["ours"], speed[peer], spread(found), *losses, f"{memory['ours']:,} against {memory[peer]:,}")
        )
    return table(*rows)


def fits() -> str:
    """Fitting against SciPy's optimiser."""
    found = result("fits.py")
    ours, scipy = found["seconds"].values()
    best = found["starts_within_1e-6_of_the_best"]
    head = ("starts", "resamples", "ours, s", "SciPy L-BFGS, s", "ratio", "starts at the best optimum", "SciPy's")
    counts = found["starts"], found["resamples"], ours, scipy, f"**{found['ratio']}×**"
    return table(head, (*counts, f"{best['ours']:.0%}", f"{best['scipy']:.0%}"))


def page_of_fifty_runs() -> str:
    """Size of a page, and how soon its first figure is there."""
    head = ("fifty runs", "figures, still", "MB", "first figure, still, ms (range)", "first that answers, ms (range)")
    rows: list[tuple[object, ...]] = [head]
    for name, found in result("page.py").items():
        still, drawn = (
            f"**{found[kind]['median']}** ({min(found[kind]['all'])} to {max(found[kind]['all'])})"
            for kind in ("still_ms", "drawn_ms")
        )
        times = still if found["still_figures"] else "no room for one", drawn
        rows.append((name, f"{found['figures']}, {found['still_figures']}", f"**{found['megabytes']}**", *times))
    return table(*rows)


def replaced(page: str, name: str, content: str) -> str:
    """The page with what stands between a table's marks replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}{content}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Run all, or those named, one after another, and write each table as soon as it is known."""
    made = {
        "naive": against_naive,
        "checkpoints": ten_checkpoints,
        "precision": precision,
        "harness": against_harness,
        "training": against_trainer,
        "fits": fits,
        "page": page_of_fifty_runs,
    }
    if folder := os.environ.get("LLAMA_CPP"):
        made = {"llama.cpp": lambda: against_llama_cpp(folder), **made}
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    machine = f"{os.cpu_count()} cores, {platform.machine()}; Python {platform.python_version()}, {libraries}"
    asked = sys.argv[1:] or list(made)
    for name, make in {"machine": lambda: machine, **{name: made[name] for name in asked}}.items():
        content = make()
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), name, content), encoding="utf-8")


if __name__ == "__main__":
    main()
