"""The only file that puts PEFT adapters on models: fresh or trained, merged, saved, taken off again."""

from __future__ import annotations

import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import torch

from holdfast import files
from holdfast.config import Adapter
from holdfast.errors import ModelError, StoreError, as_ours, first_line
from holdfast.folders import read_files
from holdfast.mistakes import show
from holdfast.models import Base, Tuned, causal, check_finite, check_head, prompted, quiet
from holdfast.sources import read_json


def attach_adapter(base: Base, adapter: Adapter, *, seed: int) -> Tuned:
    """Put a fresh, trainable adapter on a base, in place; the model's function does not change until it is trained.

    Adapter weights are float32 whatever the base's precision. Initialised from `seed` alone.

    Raises:
        ModelError: the base has none of the named modules.
    """
    modules = adapter.target_modules
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=int(adapter.lora_alpha) if adapter.lora_alpha.is_integer() else adapter.lora_alpha,  # type: ignore[arg-type]
        use_rslora=adapter.use_rslora,
        lora_dropout=adapter.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            tuned = peft.get_peft_model(base, config)
    except ValueError as error:
        raise ModelError(f"adapter cannot be put on {base.config.model_type}: {first_line(error)}") from error
    _check_head_frozen(tuned, "adapter.target_modules")
    return tuned


def load_adapter(base: Base, folder: str) -> Tuned:
    """Put a trained PEFT adapter folder on a base, in place, frozen; whatever method PEFT knows.

    Raises:
        ModelError: not an adapter folder, made for other shapes, not finite, it works where we could not see it, or one
            of our runs made it and it has changed since.
    """
    _check_unchanged(Path(folder))
    place = Path(folder) / "adapter_config.json"
    if not place.is_file():
        raise ModelError(f"got {folder!r}, expected a PEFT adapter folder with an adapter_config.json in it")
    if not (Path(folder) / "adapter_model.safetensors").is_file():  # PEFT would unpickle an adapter_model.bin
        raise ModelError(
            f"got {folder!r} without adapter_model.safetensors, expected safetensors; pickles are not read"
        )
    kind = read_json(place).get("peft_type")
    if kind not in [known.value for known in peft.PeftType]:
        raise ModelError(f"got peft_type {show(kind)}, expected one that PEFT {peft.__version__} knows, at {place}")
    with (
        as_ours(ModelError, lambda why: f"adapter {folder!r} cannot be put on this base: {why}"),
        torch.random.fork_rng(),
        quiet(),
        warnings.catch_warnings(record=True) as heard,
    ):
        warnings.simplefilter("always")
        tuned = peft.PeftModel.from_pretrained(base, folder, is_trainable=False)
    # PEFT only warns where an adapter's weights found no place: it would do nothing, and forget exactly nothing.
    if unplaced := [str(said.message) for said in heard if "missing adapter keys" in str(said.message)]:
        raise ModelError(f"adapter {folder!r}: got weights that have no place on this base: {unplaced[0]:.200}")
    placed = peft.get_peft_model_state_dict(tuned, save_embedding_layers=True)
    if left := sorted(read_files(Path(folder), adapter=True).tensors.keys() - placed.keys()):
        raise ModelError(f"adapter {folder!r}: got {left[0]}, which has no place on this base, expected none such")
    check_finite(tuned, f"adapter {folder!r}")
    tuned.requires_grad_(False).eval()
    check_head(tuned, f"adapter {folder!r}")
    return tuned


def _check_unchanged(folder: Path) -> None:
    """An adapter in the folder of a finished run is what the run left there."""
    done = folder.parent / "done.json"
    if folder.name != "adapter" or not done.is_file():
        return
    try:
        expected = files.read_json(done).get("adapter", {})
    except StoreError:
        return  # somebody else's file of that name
    for name, digest in expected.items():
        path = folder / name
        if name != "README.md" and (not path.is_file() or sha256(path.read_bytes()).hexdigest() != digest):
            raise ModelError(f"got a file that is missing or changed since the run was finished, at {path}")


def _check_head_frozen(tuned: Tuned, place: str) -> None:
    """Training computes its loss under the base's own head: a wrapped one is an adapter's or a trained copy."""
    head = causal(tuned).get_output_embeddings()
    if type(head).__module__.startswith("peft") or head.weight.requires_grad:
        raise ModelError(f"got an adapter that changes the output head at {place}, expected the base's own head")


def merged(tuned: Tuned) -> Base | None:
    """The model with its adapter merged into its weights, in place; None where that cannot be done exactly.

    Merging spends the model: its weights are the base's no longer, and it is never un-merged. Not merged are virtual
    tokens, adapters on a quantised base (merging would quantise anew), on the output head (a tied embedding would
    change with it), and in 16-bit weights, whose rounding swallows small updates.
    """
    model = causal(tuned)
    wrapped_head = type(model.get_output_embeddings()) is not torch.nn.Linear
    rounded = model.get_input_embeddings().weight.dtype != torch.float32
    if prompted(tuned) or wrapped_head or rounded or getattr(model, "is_quantized", False):
        return None
    try:
        with quiet():
            whole: Any = tuned.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        if isinstance(error, ValueError) or any(getattr(module, "merged", False) for module in model.modules()):
            raise ModelError(f"adapter cannot be merged: {first_line(error)}") from error
        return None  # a method without merging, and nothing was touched
    plain: Base = whole.requires_grad_(False).eval()
    return plain


def save_adapter(tuned: Tuned, folder: Path) -> dict[str, str]:
    """Write an adapter as an ordinary PEFT folder, on disk whole or not at all; gives the SHA-256 of each file."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as making:
        tuned.save_pretrained(making, save_embedding_layers=False)
        contents = [(path.name, path.read_bytes()) for path in sorted(Path(making).iterdir())]
    files.write_folder(folder, contents)
    return {name: sha256(content).hexdigest() for name, content in contents}


def detach_adapter(tuned: Tuned) -> Base:
    """Take the adapter off again and give back the base, bit for bit as it was; nothing is merged or un-merged."""
    unload: Any = tuned.unload
    base: Base = unload()
    base.requires_grad_(False).eval()
    return base
