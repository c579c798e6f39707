"""Tuned models of every kind, made from a tiny base as their users make them, and what a report is compared with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from holdfast.evidence import CorpusReport
from holdfast.store import QUANTITIES

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LM = {"task_type": "CAUSAL_LM"}


def shaken(model: torch.nn.Module, *, std: float, only: Callable[[str], bool] = lambda _: True) -> None:
    """Move parameters as training would."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and only(name):
                parameter.add_(std * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype))


def adapter(base: Path, config: peft.PeftConfig, folder: Path, *, std: float = 0.2) -> Path:
    """A trained-looking PEFT adapter of any method, saved as its users save it."""
    torch.manual_seed(3)
    tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    shaken(tuned, std=std)
    tuned.save_pretrained(folder)
    return folder


def compared(report: CorpusReport, expected: dict[str, np.ndarray], *, tolerance: float = 1e-5) -> None:
    tokens = report.count.sum()
    assert report.count.tolist() == expected["count"].tolist()
    for name in QUANTITIES:
        assert getattr(report, name).value == pytest.approx(expected[name].sum() / tokens, abs=tolerance), name
    assert np.abs(report.sums["kl_base_tuned"] - expected["kl_base_tuned"]).max() < 10 * tolerance * tokens


def tuned_model(base: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    change(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_gguf(
    folder: Path, path: Path, *, kinds: Mapping[str, int] = {}, settings: Mapping[str, Any] = {},
    template: str | None = None, end: int = 0, without: str | None = None,
) -> Path:  # fmt: skip
    """A Llama folder as a GGUF by llama.cpp's own library, heads interleaved as llama.cpp has them.

    Float32, but for tensors whose names contain one of `kinds`; `settings` replace the folder's, `template` and `end`
    its tokenizer's; without the tensors whose names contain `without`.
    """
    config = json.loads((folder / "config.json").read_text()) | dict(settings)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = {index: token for token, index in tokenizer["model"]["vocab"].items()} | added
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([vocabulary[index] for index in range(len(vocabulary))])
    writer.add_token_types([3 if index in added else 1 for index in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(end)
    if template is not None or (folder / "chat_template.jinja").is_file():
        writer.add_chat_template(template or (folder / "chat_template.jinja").read_text())
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}

    def add(name: str, weight: np.ndarray) -> None:
        kind = next((kind for part, kind in kinds.items() if part in name and weight.ndim > 1), 0)
        if without is None or without not in name:
            kind = gguf.GGMLQuantizationType(kind)
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)

    for name, weight in load_file(folder / "model.safetensors").items():
        if name == "model.embed_tokens.weight":
            add("token_embd.weight", weight)
        elif name == "model.norm.weight":
            add("output_norm.weight", weight)
        elif name.startswith("model.layers."):
            _, _, layer, inside = name.removesuffix(".weight").split(".", 3)
            if inside in heads:
                halves = weight.reshape(config[heads[inside]], 2, -1, weight.shape[1])
                weight = halves.swapaxes(1, 2).reshape(weight.shape)  # noqa: PLW2901
            add(f"blk.{layer}.{names[inside]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
