"""One LoRA run of the built-in model against transformers' Trainer with PEFT, on the same conversations.

    python benchmarks/training.py --peer defaults    # float32, eight padded conversations a step: Trainer's defaults
    python benchmarks/training.py --peer packed      # bf16 weights and autocast, conversations packed to 512 tokens

Both sides learn the same conversations once, with LoRA of the same rank, AdamW and the same constant learning rate, and
take turns; a round has a seed. Tokens are those of conversations, without padding; the ratio is that of the medians.
The loss is on conversations held out, by the same meter. Memory is of fresh processes, above the weights loaded. The
packed peer's rows are cut from conversations laid end to end, and attention crosses their borders, as is usual.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pair
import peft
import torch
import transformers

from holdfast import adapters, meter, models, training, updates
from holdfast.config import Measure, Optimizer, RunConfig, Target
from holdfast.corpora import Tokens, packed_batches
from holdfast.methods import Lora

CONTEXT = 512
ROWS = 3
"""Of 512 tokens, about what eight conversations of GSM8K have."""

ADAPTER = Lora(r=16, lora_alpha=16.0, use_rslora=False)
RATE = 2e-4


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples as Trainer wants them."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index]


def example(ids: np.ndarray, scored: np.ndarray) -> dict[str, Any]:
    """Tokens, and -100 where nothing is to be predicted."""
    return {
        "input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": np.where(scored, ids, -100).tolist(),
    }  # fmt: skip


class Trial:
    """One side, ready to learn. A class because making it ready is not timed."""

    def __init__(self, side: str, documents: tuple[Tokens, ...], *, seed: int) -> None:
        self.side, self.documents, self.seed = side, documents, seed
        base = models.load_base(pair.BASE, dtype="float32" if side == "defaults" else "bfloat16", device="cpu")
        self.tuned = adapters.attach_adapter(base, ADAPTER, seed=seed) if side == "ours" else with_peft(base, seed)
        self.tokens = sum(len(document.ids) for document in documents)
        self.work: Callable[[], object] = self._ours() if side == "ours" else self._trainer()

    def _ours(self) -> Callable[[], object]:
        steps = self.tokens // (ROWS * CONTEXT)
        config = RunConfig(
            model=pair.BASE, dtype="bfloat16", target=Target(data="builtin:gsm8k"), retain=("builtin:wikipedia",),
            adapter=ADAPTER, steps=steps, optimizer=Optimizer(learning_rate=RATE), batch_size=ROWS, context=CONTEXT,
            measure=Measure(points=1), seed=self.seed,
        )  # fmt: skip
        self.tokens = steps * ROWS * CONTEXT
        optimizer = updates.make_optimizer(config.optimizer, self.tuned)
        batches = packed_batches(self.documents, context=CONTEXT, rows=ROWS, seed=self.seed)

        def learn() -> None:
            self.tuned.train()
            for step, block in enumerate(islice(batches, steps)):
                updates.update(
                    [
                        updates.Update(
                            tuned=self.tuned, optimizer=optimizer, blocks=[block], config=config, step=step, rows=ROWS
                        )
                    ]
                )

        return learn

    def _trainer(self) -> Callable[[], object]:
        tokenizer = models.load_tokenizer(pair.BASE)
        if self.side == "packed":
            ids, scored = (np.concatenate([getattr(d, name) for d in self.documents]) for name in ("ids", "scored"))
            self.tokens = len(ids) // (ROWS * CONTEXT) * ROWS * CONTEXT
            cuts = range(0, self.tokens, CONTEXT)
            examples = [example(ids[i : i + CONTEXT], scored[i : i + CONTEXT]) for i in cuts]
        else:
            examples = [example(document.ids, document.scored) for document in self.documents]
        extra: dict[str, Any] = {"bf16": True, "per_device_train_batch_size": ROWS} if self.side == "packed" else {}
        scratch = tempfile.mkdtemp()
        settings = transformers.TrainingArguments(
            output_dir=scratch, num_train_epochs=1, learning_rate=RATE, lr_scheduler_type="constant", seed=self.seed,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no", **extra,
        )  # fmt: skip
        collator = transformers.DataCollatorForSeq2Seq(tokenizer)
        trainer = transformers.Trainer(
            model=self.tuned, args=settings, train_dataset=Rows(examples), data_collator=collator
        )
        return trainer.train


def with_peft(base: models.Base, seed: int) -> models.Tuned:
    """The same adapter as PEFT makes and computes it."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=ADAPTER.r, lora_alpha=int(ADAPTER.lora_alpha), target_modules="all-linear")
    return peft.get_peft_model(base, config)


def data(conversations: int, held_out: int) -> tuple[tuple[Tokens, ...], meter.ObservedBase]:
    """Conversations to learn, and what the untuned model says of those held out."""
    config = RunConfig(
        model=pair.BASE, dtype="bfloat16", target=Target(data="builtin:gsm8k", held_out=held_out),
        retain=("builtin:wikipedia",), adapter=ADAPTER, steps=1, optimizer=Optimizer(learning_rate=RATE), batch_size=1,
        context=CONTEXT, measure=Measure(documents=2),
    )  # fmt: skip
    bench = training.prepare(config, training.read_texts(config), device="cpu")
    return bench.training[:conversations], dict(bench.observed)["target"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default="defaults", choices=("defaults", "packed"))
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=("ours", "defaults", "packed"))
    options = parser.parse_args()
    documents, held_out = data(options.conversations, 24)
    if options.memory:
        print(pair.peak_above(Trial(options.memory, documents[:16], seed=0).work))
        return
    speeds: dict[str, list[float]] = {"ours": [], options.peer: []}
    losses: dict[str, list[float]] = {side: [] for side in speeds}
    for seed in range(options.rounds):
        for side, found in speeds.items():
            trial = Trial(side, documents, seed=seed)
            start = time.perf_counter()
            trial.work()
            found.append(trial.tokens / (time.perf_counter() - start))
            losses[side].append(meter.measure_on(trial.tuned, held_out).nll.value)
    memory = {side: int(pair.in_fresh_process(__file__, "--memory", side)) for side in speeds}
    ours, peer = speeds.values()
    print(
        json.dumps(
            {
                "tokens_per_s": {side: round(statistics.median(found)) for side, found in speeds.items()},
                "ratio": round(statistics.median(ours) / statistics.median(peer), 2),
                "rounds_ratio": [round(a / b, 2) for a, b in zip(ours, peer, strict=True)],
                "held_out_loss": {side: [round(loss, 4) for loss in found] for side, found in losses.items()},
                "peak_above_weights_mb": {side: found // 2**20 for side, found in memory.items()},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
