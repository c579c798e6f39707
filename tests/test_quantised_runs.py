"""QLoRA: adapters trained on a base in 4 bits, and forgetting measured against that base."""

from pathlib import Path

import pytest
import torch

import crashes
import holdfast
from holdfast import counts, models
from holdfast.config import read_study
from holdfast.errors import ConfigError

pytest.importorskip("bitsandbytes")

OVERRIDES = ["dtype=nf4", "steps=6", "measure.points=2", "adapter.lora_dropout=0"]


def test_a_base_in_four_bits_is_trained_on_and_forgotten_against(tiny: Path, tmp_path: Path) -> None:
    study = read_study(crashes.study(tiny, tmp_path), overrides=OVERRIDES)
    table = holdfast.sweep(study, out=tmp_path / "runs")
    assert set(table["state"]) == {"done"}, table["reason"].iloc[0]
    assert set(table["dtype"]) == {"nf4"}
    retained = table[table["role"] == "retain"].set_index(["run", "step"])
    assert (retained.loc[(slice(None), 0), "kl_base_tuned"] == 0).all()
    assert (retained.loc[(slice(None), 6), "kl_base_tuned"] > 0).all()
    whole = models.load_base(str(tiny), dtype="bfloat16", device="cpu")
    assert set(table["base_params"]) == {counts.multiplying_params(whole)}
    run = table["run"].iloc[0]
    text = str(tmp_path / "kelp.jsonl")
    options = {"texts": [text], "context": 32, "documents": 4, "dtype": "bfloat16"}
    found = holdfast.measure(tuned=str(tmp_path / "runs" / run / "adapter"), quantised="4bit", **options)
    measured = retained.loc[(run, 6), "kl_base_tuned"]
    assert found.kl_base_tuned.value == pytest.approx(measured, rel=1e-6)
    other = holdfast.measure(tuned=str(tmp_path / "runs" / run / "adapter"), **options)
    assert any("quantised base" in finding.what for finding in other.checkpoints[0].findings)


def test_a_base_in_four_bits_is_in_four_bits(tiny: Path) -> None:
    base = models.load_base(str(tiny), dtype="nf4", device="cpu")
    assert {weight.dtype for weight in base.model.layers[0].mlp.parameters()} == {torch.uint8}
    assert base.get_output_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["full", "top-layers"])
def test_weights_in_four_bits_are_not_trained_themselves(tiny: Path, tmp_path: Path, method: str) -> None:
    path = crashes.study(tiny, tmp_path)
    layers = ", layers: 1" if method == "top-layers" else ""
    text = path.read_text().replace("dtype: float32", "dtype: nf4").replace("adapter.r:", "seed:")
    lines = [line for line in text.splitlines() if "lora" not in line and line != "adapter:"]
    path.write_text("\n".join([*lines, f"adapter: {{method: {method}{layers}}}"]))
    with pytest.raises(ConfigError, match=r"study.yaml:\d+: dtype: got 'nf4', expected bfloat16 or float32"):
        holdfast.sweep(path, out=tmp_path / "runs")
