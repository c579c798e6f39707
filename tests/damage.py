"""Changes to a model's or an adapter's folder, each to one file of it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], object]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def copied(source: Path, tmp_path: Path, *changes: Change) -> Path:
    folder = Path(shutil.copytree(source, tmp_path / "copied"))
    for change in changes:
        change(folder)
    return folder


def raw(name: str, edit: Callable[[bytes], bytes]) -> Change:
    return lambda f: (f / name).write_bytes(edit((f / name).read_bytes() if (f / name).is_file() else b""))


def gone(name: str) -> Change:
    return lambda f: (f / name).unlink()


def parsed(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(content: bytes) -> bytes:
        entries = json.loads(content or b"{}")
        edit(entries)
        return json.dumps({key: value for key, value in entries.items() if value is not ...}).encode()

    return raw(name, change)


def entries(name: str, **new: Any) -> Change:
    """Entries of a JSON file; `...` takes one out."""
    return parsed(name, lambda content: content.update(new))


def tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str = WEIGHTS) -> Change:
    return lambda f: save_file(edit(load_file(f / name)), f / name, metadata={"format": "pt"})


def each(edit: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]], name: str = WEIGHTS) -> Change:
    """Every tensor's name and values; those that come out without a name go."""
    return tensors(lambda w: {k: v for k, v in (edit(*item) for item in w.items()) if k}, name)


config, tokens = partial(entries, "config.json"), partial(entries, "tokenizer_config.json")
vocabulary = partial(parsed, "tokenizer.json")
index = partial(entries, f"{WEIGHTS}.index.json")
claims = partial(entries, "adapter_config.json")


def swap(one: str, two: str) -> Change:
    """Two tokens' numbers, in the vocabulary and among the special tokens."""

    def change(tokenizer: dict[str, Any]) -> None:
        vocab, other = tokenizer["model"]["vocab"], {one: two, two: one}
        vocab[one], vocab[two] = vocab[two], vocab[one]
        for token in tokenizer["added_tokens"]:
            token["content"] = other.get(token["content"], token["content"])

    return vocabulary(change)
