"""The slow, obvious way to measure forgetting: two whole models in float64, full logits, one window at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from holdfast import models
from holdfast.corpora import Corpus, tokenise
from holdfast.store import QUANTITIES

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Token ids (1, t) to logits (t, v), float64."""


def whole(folder: Path) -> Logits:
    """A whole model's logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return lambda ids: model(ids).logits[0]


def adapted(base: Path, adapter: Path) -> Logits:
    """A base's with a PEFT adapter on it; virtual tokens before the text are cut off."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    model = torch.nn.Module.to(model, torch.float64)
    return lambda ids: model(ids).logits[0, -ids.shape[1] :]


def sums(base: Logits, tuned: Logits, corpus: Corpus, *, tokenizer: str, context: int) -> dict[str, np.ndarray]:
    """Every quantity of `QUANTITIES` and the count, summed per document; p over the rows both models have."""
    tokeniser = models.load_tokenizer(tokenizer)
    rows: dict[str, list[float]] = {name: [] for name in (*QUANTITIES, "count")}
    for document in corpus.documents:
        tokens = tokenise(document, tokeniser)
        found = dict.fromkeys(rows, 0.0)
        for start in range(0, len(tokens.ids), context):
            ids = torch.tensor(tokens.ids[start : start + context])[None]
            keep = torch.tensor(tokens.scored[start : start + context])[1:]
            with torch.no_grad():
                z, y = (logits(ids)[:-1][keep] for logits in (base, tuned))
            z, ln_q = z[:, : y.shape[1]], y.log_softmax(-1)[:, : z.shape[1]]
            ln_p = z.log_softmax(-1)
            target = ids[0, 1:][keep][:, None]
            p, top = ln_p.exp(), ln_p.argmax(-1)
            found["count"] += len(target)
            found["nll"] -= ln_q.gather(1, target).sum().item()
            found["base_nll"] -= ln_p.gather(1, target).sum().item()
            found["cross_entropy"] -= (p * ln_q).sum().item()
            found["hard_cross_entropy"] -= ln_q.gather(1, top[:, None]).sum().item()
            found["base_entropy"] -= (p * ln_p).sum().item()
            found["kl_base_tuned"] += (p * (ln_p - ln_q)).sum().item()
            found["agreement"] += (top == y.argmax(-1)).sum().item()
        found["excess_nll"] = found["nll"] - found["base_nll"]
        for name, value in found.items():
            rows[name].append(value)
    return {name: np.array(values) for name, values in rows.items()}
