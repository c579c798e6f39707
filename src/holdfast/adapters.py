"""The only file that puts PEFT adapters on models: fresh or trained, merged, saved, taken off again.

What is trained without an adapter (`Thawed`) is put on and saved here too, so that a run need not know which it is.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import typing
import warnings
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from holdfast import files
from holdfast.config import Study, refusal
from holdfast.errors import ModelError, StoreError, as_ours, first_line
from holdfast.folders import read_files
from holdfast.lora import quicken
from holdfast.methods import Adapter, Full, Ia3, Lora, Peft, TopLayers
from holdfast.mistakes import Key, alike, show
from holdfast.models import Adapted, Base, Tokenizer, Tuned, causal, check_finite, check_head, prompted, quiet
from holdfast.sources import read_json
from holdfast.thawed import Thawed, blocks

# Methods of PEFT's that one loop over the loss does not train, or not as their authors do.
_NOT_TRAINED = {
    "ADALORA": "its ranks are allotted by calls of its own between updates",
    "ADAPTION_PROMPT": "it cannot be taken off its base again",
    "CPT": "its loss is another one",
    "MULTITASK_PROMPT_TUNING": "it needs to be told of several tasks",
    "POLY": "it needs to be told of several tasks",
    "SHADOW": "it works outside the layers",
    "XLORA": "it needs adapters that are trained already",
}
_NOT_FIELDS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
"""Of a method's config in PEFT, what is not its user's to say."""

_REWRITES = ("pissa", "olora")
"""Values of `init_lora_weights` that change the base's own weights, and are done again when the adapter is loaded."""
_NOT_INITS = ("pissa_niter", "corda", "eva", "loftq", "lora_ga")
"""Those that need more than the base, or whose result PEFT does not load as it was trained."""


def check_methods(study: Study) -> None:
    """Refuse what PEFT does not know of the methods that a study names, before anything is made.

    Raises:
        ConfigError: an unknown method, field or value, each at the place where it was written, or weights of a base in
            4 bits to be trained themselves.
    """
    methods = dict.fromkeys(run.adapter for run in study.runs if isinstance(run.adapter, Peft))
    found = [mistake for method in methods for mistake in _mistakes(method)]
    if any(run.dtype == "nf4" and isinstance(run.adapter, Full | TopLayers) for run in study.runs):
        found.append(
            (("dtype",), "'nf4'", "bfloat16 or float32: weights in 4 bits are not trained, adapters on them are")
        )
    if found:
        raise refusal(study, list(dict.fromkeys(found)))


def _mistakes(adapter: Peft) -> Iterator[tuple[Key, str, str]]:
    known = sorted(kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in _NOT_TRAINED)
    if adapter.peft_type not in known:
        why = _NOT_TRAINED.get(adapter.peft_type)
        meant = alike(adapter.peft_type, [name.lower() for name in known])
        meant = next((f"; did you mean '{name}'?" for name in known if f"'{name.lower()}'" in meant), "")
        expected = f"one of {', '.join(known)}{meant}"
        expected = f"a method that one loop over the loss trains: {why}" if why else expected
        yield ("adapter", "peft_type"), show(adapter.peft_type), expected
        return
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(adapter.peft_type)]
    fields = [field.name for field in dataclasses.fields(kind) if field.name not in _NOT_FIELDS]
    types, wrong = typing.get_type_hints(kind), False
    for name, value in adapter.config.items():
        key = ("adapter", "config", name)
        if name not in fields:
            wrong = True
            yield key, "an unknown key", f"a field of {kind.__name__} in PEFT {peft.__version__}{alike(name, fields)}"
        elif isinstance(value, str) and name == "init_lora_weights" and value.startswith(_NOT_INITS):
            wrong = True
            yield key, show(value), "an initialisation that needs the base alone, and that PEFT can repeat"
        elif expected := _unlike(value, types[name]):
            wrong = True
            yield key, show(value), expected
    if not wrong:
        try:
            with quiet():
                _peft_config(adapter)
        except (ValueError, TypeError, ImportError) as error:
            yield ("adapter", "config"), f"fields that PEFT refuses ({first_line(error)})", "ones it takes"


def _unlike(value: Any, kind: Any) -> str:
    """What was expected of a value, by the type that PEFT's own dataclass gives the field; nothing where it fits."""
    config = None if dataclasses.is_dataclass(kind) else ConfigDict(arbitrary_types_allowed=True)
    try:
        TypeAdapter(kind, config=config).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        said = dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in error.errors(include_url=False))
        return ", or ".join(said)
    return ""


def _peft_config(adapter: Lora | Ia3 | Peft) -> peft.PeftConfig:
    if isinstance(adapter, Peft):
        kind: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(adapter.peft_type)]
        made: peft.PeftConfig = kind(task_type="CAUSAL_LM", **copy.deepcopy(adapter.config))
        return made
    if isinstance(adapter, Ia3):
        return peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=list(adapter.target_modules),
            feedforward_modules=list(adapter.feedforward_modules),
        )
    modules = adapter.target_modules
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=int(adapter.lora_alpha) if adapter.lora_alpha.is_integer() else adapter.lora_alpha,  # type: ignore[arg-type]
        use_rslora=adapter.use_rslora,
        lora_dropout=adapter.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def attach_adapter(base: Base, adapter: Adapter, *, seed: int) -> Tuned:
    """Make a base ready to be trained as a method has it, in place; take it off again with `detach_adapter`.

    A method that would change the base's own weights is put on a copy.

    The model's function does not change until it is trained, but by some of PEFT's other methods, which begin
    elsewhere. What is trained is float32 whatever the base's precision. Initialised from `seed` alone.

    Raises:
        ModelError: the base has none of the named modules or not so many layers, or the method would train the output
            head by an adapter, or something in the base's own precision.
    """
    if isinstance(adapter, Full | TopLayers):
        return Thawed(base, _own_weights(base, adapter))
    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            config = _peft_config(adapter)
            if getattr(config, "layer_replication", None):
                raise ValueError("layer_replication makes another model of it, and nothing forgotten can be told")
            tuned: Adapted = peft.get_peft_model(copy.deepcopy(base) if _changes_base(config) else base, config)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise ModelError(f"adapter cannot be put on {base.config.model_type}: {first_line(error)}") from error
    try:
        _check_head_frozen(tuned)
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and torch.finfo(parameter.dtype).bits < 32:
                got = str(parameter.dtype).removeprefix("torch.")
                raise ModelError(f"got {name} to be trained in {got}, expected float32; set dtype: float32")
    except ModelError:
        detach_adapter(tuned)
        raise
    quicken(tuned)
    return tuned


def same_weights(base: Base) -> Base:
    """Another model of the same weights: modules of its own, so that an adapter can be put on each, and no memory."""
    weights = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(weight): weight for weight in weights})


def _changes_base(config: Any) -> bool:
    """Whether PEFT writes into the base's own weights, or leaves trained copies there: then it is put on a copy."""
    rewritten = str(getattr(config, "init_lora_weights", "")).startswith(_REWRITES)
    biases = getattr(config, "bias", "none") not in (None, "none", False)
    return bool(rewritten or biases or getattr(config, "modules_to_save", None))


def _own_weights(base: Base, adapter: Full | TopLayers) -> list[str]:
    """Names of the base's weights that are trained."""
    if isinstance(adapter, Full):
        return [name for name, _ in base.named_parameters()]
    layers = blocks(base)
    if adapter.layers > len(layers):
        raise ModelError(
            f"got {adapter.layers} layers, expected at most the {len(layers)} there are, at adapter.layers"
        )
    chosen = {id(weight) for block in layers[-adapter.layers :] for weight in block.parameters()}
    return [name for name, weight in base.named_parameters() if id(weight) in chosen]


def load_adapter(base: Base, folder: str) -> Adapted:
    """Put a trained PEFT adapter folder on a base, in place, frozen; whatever method PEFT knows.

    Raises:
        ModelError: not an adapter folder, made for other shapes, not finite, it works where we could not see it, or one
            of our runs made it and it has changed since.
    """
    check_unchanged(Path(folder))
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
    quicken(tuned)
    return tuned


def check_unchanged(folder: Path) -> None:
    """The result in the folder of a finished run is what the run left there.

    Raises:
        ModelError: naming the file that is not.
    """
    done = folder.parent / "done.json"
    if folder.name not in RESULTS or not done.is_file():
        return
    try:
        expected = files.read_json(done).get(folder.name, {})
    except StoreError:
        return  # somebody else's file of that name
    for name, digest in expected.items():
        path = folder / name
        if name != "README.md" and (not path.is_file() or sha256(path.read_bytes()).hexdigest() != digest):
            raise ModelError(f"got a file that is missing or changed since the run was finished, at {path}")


def _check_head_frozen(tuned: Adapted) -> None:
    """An adapter's run is measured under the base's own head: a wrapped one is an adapter's or a trained copy."""
    head = causal(tuned).get_output_embeddings()
    if type(head).__module__.startswith("peft") or head.weight.requires_grad:
        raise ModelError("got an adapter that changes the output head at adapter, expected the base's own head")


def merged(tuned: Adapted) -> Base | None:
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


RESULTS = ("adapter", "model")
"""Names of the folder that a run leaves: an ordinary PEFT folder, or a whole model's."""


def result_of(tuned: Tuned) -> str:
    """Which of `RESULTS` a fine-tuned model is saved as."""
    return "model" if isinstance(tuned, Thawed) else "adapter"


def result_bytes(tuned: Tuned) -> int:
    """What its weights take on disk."""
    weights = tuned.base.parameters() if isinstance(tuned, Thawed) else _saved(tuned).values()
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _saved(tuned: Adapted) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return state


def save_adapter(tuned: Tuned, folder: Path, *, tokenizer: Tokenizer | None = None) -> dict[str, str]:
    """Write an ordinary PEFT folder, or a whole model's with its tokenizer, on disk whole or not at all.

    Gives the SHA-256 of each file. A whole model is saved in the precision it was trained and measured in.
    """
    digests: dict[str, str] = {}

    def contents(making: Path) -> Iterator[tuple[str, bytes]]:
        for path in sorted(making.iterdir()):
            content = path.read_bytes()
            digests[path.name] = sha256(content).hexdigest()
            yield path.name, content

    with tempfile.TemporaryDirectory(prefix="holdfast-") as making, quiet():
        if isinstance(tuned, Thawed):
            tuned.base.save_pretrained(making, state_dict=tuned.whole(), max_shard_size="2GB")
            if tokenizer is not None:
                tokenizer.save_pretrained(making)
        else:
            tuned.save_pretrained(making, save_embedding_layers=False)
        files.write_folder(folder, contents(Path(making)))
    return digests


def detach_adapter(tuned: Tuned) -> None:
    """Take off what `attach_adapter` put on: the base is bit for bit as it was; nothing is merged or un-merged."""
    if isinstance(tuned, Adapted) and not prompted(tuned):
        unload: Any = tuned.unload
        unload()
    causal(tuned).requires_grad_(False).eval()
