"""Ten checkpoints of one base in one call, nothing kept beforehand, against ten calls that find the base kept.

    python benchmarks/checkpoints.py

Each call loads its models from disk, as the command does. The ten adapters are steps on a straight line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pair

import holdfast
from holdfast import models

CHECKPOINTS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--documents", type=int, default=4)
    options = parser.parse_args()
    models.builtin_folder()
    asked = {"base": pair.BASE, "dtype": options.dtype, "documents": options.documents}
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs"
        outputs.mkdir()
        for step in range(1, CHECKPOINTS + 1):
            pair.write_adapter(outputs / f"checkpoint-{step}", scale=step / CHECKPOINTS)
        user = os.environ.get("HOLDFAST_CACHE")
        made = models.locate(pair.BASE).parent
        cache = Path(scratch) / "cache"
        (cache).mkdir()
        (cache / "models").symlink_to(made)
        os.environ["HOLDFAST_CACHE"] = str(cache)
        start = time.perf_counter()
        together = holdfast.measure(tuned=str(outputs), **asked)
        ten = time.perf_counter() - start
        single = []
        values = []
        for step in range(1, CHECKPOINTS + 1):
            start = time.perf_counter()
            values.append(holdfast.measure(tuned=str(outputs / f"checkpoint-{step}"), **asked).kl_base_tuned.value)
            single.append(time.perf_counter() - start)
        if user is not None:
            os.environ["HOLDFAST_CACHE"] = user
    kl = [text.kl_base_tuned.value for _, text in together.rows()]
    result = {
        "dtype": options.dtype,
        "scored_tokens_each": together["wikipedia"].scored_tokens,
        "seconds": {"ten in one call, nothing kept": round(ten, 1), "ten calls, base kept": round(sum(single), 1)},
        "ratio": round(ten / sum(single), 2),
        "kl": [round(value, 5) for value in kl],
        "equal": kl == values,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
