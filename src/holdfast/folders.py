"""What a model's or an adapter's files say of it, read and found sound before any library loads them.

JSON, names, shapes and types: no weights. A file that is damaged, missing or a pickle is refused by its name, in
milliseconds, where a library would take it for something else, or try to build what it describes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
from safetensors import SafetensorError, safe_open

from holdfast.errors import ModelError, first_line
from holdfast.mistakes import show
from holdfast.sources import read_json

Header: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Each tensor's type and shape."""

# Bits of precision of the types that safetensors names.
MANTISSA = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}

_JSON = (
    "config", "adapter_config", "generation_config", "tokenizer", "tokenizer_config", "special_tokens_map",
    "added_tokens", "vocab",
)  # fmt: skip
_LAYER = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(\d{1,9})\.")
_BUFFER = re.compile(r"inv_freq$|(attn|attention)\.(masked_)?bias$|position_ids$")


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a model's files say; `config` is the language model's part of it. A GGUF file has none."""

    path: Path
    config: Mapping[str, Any]
    tensors: Header

    def rows(self) -> int | None:
        """Of the vocabulary."""
        size = self.config.get("vocab_size", *self.tensors.get("token_embd.weight", ("", ()))[1][:1])
        return size if isinstance(size, int) else None

    def quantised(self) -> str | None:
        """By what method, or in which of GGUF's types."""
        if self.path.is_file():
            return ", ".join(sorted({kind for kind, _ in self.tensors.values()} - set(MANTISSA))) or None
        config = self.config.get("quantization_config")
        return str(config.get("quant_method", "bitsandbytes")) if isinstance(config, dict) else None


def read_files(path: Path, *, adapter: bool) -> Files:
    """The files of a model's or an adapter's folder, or a GGUF file.

    Raises:
        ModelError: a file is damaged, missing or a pickle, or they contradict each other.
    """
    if path.is_file():
        return Files(path=path, config={}, tensors=_header(path))
    check_json(path)
    if not adapter and (path / "adapter_config.json").is_file():
        raise ModelError(f"got an adapter, expected a whole model as the base, at {path / 'adapter_config.json'}")
    config = {} if adapter and not (path / "config.json").is_file() else read_json(path / "config.json")
    inner = config.get("text_config")
    files = _weight_files(path, "adapter_model.safetensors" if adapter else "model.safetensors")
    tensors = {name: entry for file in files for name, entry in _header(file).items()}
    hollow = [name for name, (_, shape) in tensors.items() if 0 in shape]  # a sharded trainer's parts, never gathered
    if hollow or not tensors:
        raise ModelError(f"got no values in {hollow[0] if hollow else 'any tensor'}, expected weights, at {files[0]}")
    found = Files(path=path, config=config | inner if isinstance(inner, dict) else config, tensors=tensors)
    _check_numbers(found, files[0])
    if not adapter:
        _check_layers(found)
    return found


def check_json(folder: Path) -> None:
    """Refuse a folder in which one of the JSON files that libraries read is no JSON object.

    Raises:
        ModelError: naming it.
    """
    for file in (folder / f"{name}.json" for name in _JSON):
        if file.exists():
            read_json(file)


def _check_numbers(found: Files, place: Path) -> None:
    """Whole numbers would be read as weights, rounded to nothing, and no library objects."""
    whole = [name for name, (kind, _) in found.tensors.items() if kind[0] in "IUB" and kind not in MANTISSA]
    whole = [name for name in whole if name.endswith(".weight") and not _BUFFER.search(name)]
    if whole and found.quantised() is None:
        kind = found.tensors[whole[0]][0]
        raise ModelError(f"got {kind} numbers in {whole[0]}, expected floating-point weights, at {place}")


def _check_layers(found: Files) -> None:
    """A config can ask for a million layers, and a library would begin to make them; or for fewer than were saved."""
    if "num_hidden_layers" not in found.config:
        return
    layers, place = found.config["num_hidden_layers"], found.path / "config.json"
    if not isinstance(layers, int) or not 1 <= layers <= len(found.tensors):
        expected = f"1 to {len(found.tensors)}, as many as there are tensors"
        raise ModelError(f"got num_hidden_layers {show(layers)}, expected {expected}, at {place}")
    more = found.config.get("num_nextn_predict_layers")  # kept behind the others, and not used for the next token
    last = layers + (more if isinstance(more, int) else 0)
    beyond = [name for name in found.tensors if (at := _LAYER.match(name)) and int(at[1]) >= last]
    if beyond:
        raise ModelError(f"got num_hidden_layers {layers}, expected as many as weights such as {beyond[0]}, at {place}")


def _weight_files(folder: Path, name: str) -> list[Path]:
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [folder / name]
    if not index.is_file():
        pickles = [f.name for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth"} and "model" in f.name]
        got = f"only pickled weights ({min(pickles)}), which can run code" if pickles else "no weights"
        raise ModelError(f"got {got}, expected safetensors, at {folder / name}")
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()) or not parts:
        raise ModelError(f"got no weight_map, expected the weights' files by name, at {index}")
    for part in set(parts.values()):
        if Path(part).name != part or not (folder / part).is_file():
            raise ModelError(f"got no file {part!r}, expected it as {index.name} names it, at {folder}")
        absent = {tensor for tensor in parts if parts[tensor] == part} - set(_header(folder / part))
        if absent:
            raise ModelError(f"got no tensor {min(absent)}, expected it as {index.name} says, at {folder / part}")
    return [folder / part for part in sorted(set(parts.values()))]


def _header(file: Path) -> Header:
    """Opening a safetensors file checks that its header is sound and covers the file to the last byte."""
    try:
        if file.suffix == ".gguf":
            found = gguf.GGUFReader(file).tensors
            return {t.name: (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape))) for t in found}
        with safe_open(file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (not a mapping)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ModelError(f"got unreadable weights ({first_line(error)}), expected whole, at {file}") from error
