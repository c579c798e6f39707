"""The only core file that imports transformers and peft: load a base, put an adapter on it, count what it trains.

Loading never runs code that comes with a model: safetensors only, remote code never trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import peft
import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from holdfast import builtin
from holdfast.config import Adapter
from holdfast.errors import ModelError

log = logging.getLogger(__name__)

Base: TypeAlias = PreTrainedModel
"""A causal language model without an adapter."""
Tuned: TypeAlias = peft.PeftModel
"""The same with one."""
Tokenizer: TypeAlias = PreTrainedTokenizerBase


def choose_device(device: str) -> str:
    """`auto` as the first CUDA device where there is one, else the CPU; anything else as it is."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def fastest_dtype(device: str) -> str:
    """`bfloat16` where this machine multiplies it faster than float32, else `float32`; one probe of about 50 ms.

    A CPU without native bf16 emulates it tens of times slower, and no flag says so portably: hence the stopwatch. Each
    is timed in turn and its best time counts, so that a busy moment does not decide.
    """
    left, right = torch.randn(256, 576, device=device), torch.randn(576, 1536, device=device)
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(6):
        for dtype, best in seconds.items():
            a, b = left.to(dtype), right.to(dtype)
            start = time.perf_counter()
            (a @ b).sum().item()
            seconds[dtype] = min(best, time.perf_counter() - start)
    return "bfloat16" if seconds[torch.bfloat16] < seconds[torch.float32] else "float32"


def locate(spec: str) -> tuple[str, str | None]:
    """What transformers is to load for a model spec: (folder or hub id, revision or None).

    `builtin:smollm2` is made on first use; `org/name@revision` is a hub id; an existing path is itself.
    """
    if spec.startswith(builtin.PREFIX):
        if spec.removeprefix(builtin.PREFIX) not in builtin.MODELS:
            raise ModelError(f"got model {spec!r}, expected one of {[builtin.PREFIX + m for m in builtin.MODELS]}")
        return str(builtin_folder()), None
    if Path(spec).exists():
        return spec, None
    name, _, revision = spec.partition("@")
    return name, revision or None


def builtin_folder() -> Path:
    """The built-in model as an ordinary safetensors folder in the user's cache, made once and then reused.

    It appears under its final name by one rename, complete or not at all.
    """
    folder = builtin.cache_folder() / "models" / f"smollm2-135m-instruct-{builtin.GGUF_SHA256[:12]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            log.info("fetching the built-in model (93 MB, once) into %s", folder)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
                gguf = builtin.fetch_gguf(Path(making))
                _dequantise(gguf, Path(making) / "model")
                (Path(making) / "model").rename(folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF as an ordinary float32 safetensors folder with its tokenizer and chat template."""
    with _quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting of theirs turns off
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        # A model read from a GGUF keeps a quantisation config and refuses to be saved; a fresh one carries none.
        config = quantised.config
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that belongs to a model spec.

    Raises:
        ModelError: none can be loaded from there.
    """
    name, revision = locate(spec)
    try:
        with _quiet_transformers():
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no tokenizer can be loaded for model {spec!r}: {_first_line(error)}") from error


def load_base(spec: str, *, dtype: str, device: str) -> Base:
    """The untuned model of a spec, frozen, in evaluation mode, with a plain linear head.

    Raises:
        ModelError: it cannot be loaded, holds a NaN or infinity, or its logits are not hidden states times a matrix.
    """
    name, revision = locate(spec)
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                name, config=config, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True,
                trust_remote_code=False,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model {spec!r} cannot be loaded: {_first_line(error)}") from error
    for parameter_name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"model {spec!r}: got NaN or infinity in {parameter_name}, expected finite weights")
    torch.nn.Module.to(model, device)
    model.requires_grad_(False).eval()
    _check_plain_head(model, spec)
    return model


def _check_plain_head(model: Base, spec: str) -> None:
    """Refuse a head that is more than a matrix (bias, soft-capping, scaling): the metrics would be wrong, silently."""
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        positions = torch.arange(8, device=model.device)[None]
        hidden = hidden_states(model, ids=ids, positions=positions)
        expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    got = hidden.float() @ output_head(model).float().T
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.02, atol=0.02 * float(expected.std())):
        raise ModelError(
            f"model {spec!r} ({model.config.model_type}): got logits that are not hidden states times a matrix, "
            "expected a plain linear output head (no bias, soft-capping or scaling)"
        )


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
        with torch.random.fork_rng(), _quiet_transformers():
            torch.manual_seed(seed)
            tuned = peft.get_peft_model(base, config)
    except ValueError as error:
        raise ModelError(f"adapter cannot be put on {base.config.model_type}: {_first_line(error)}") from error
    _check_head_frozen(tuned, "adapter.target_modules")
    return tuned


def load_adapter(base: Base, folder: str) -> Tuned:
    """Put a trained PEFT adapter folder on a base, in place, frozen.

    Raises:
        ModelError: not an adapter folder, made for other shapes, or it changes the output head.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ModelError(f"got {folder!r}, expected a PEFT adapter folder with an adapter_config.json in it")
    try:
        with _quiet_transformers():
            tuned = peft.PeftModel.from_pretrained(base, folder, is_trainable=False)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"adapter {folder!r} cannot be put on this base: {_first_line(error)}") from error
    for name, parameter in tuned.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"adapter {folder!r}: got NaN or infinity in {name}, expected finite weights")
    _check_head_frozen(tuned, folder)
    return tuned.eval()


def _check_head_frozen(tuned: Tuned, place: str) -> None:
    """Measuring without the base rests on a shared head: a wrapped one is an adapter's or a trained copy."""
    head = _causal(tuned).get_output_embeddings()
    if type(head).__module__.startswith("peft") or head.weight.requires_grad:
        raise ModelError(f"got an adapter that changes the output head at {place}, expected the base's own head")


def save_adapter(tuned: Tuned, folder: Path) -> None:
    """Write an adapter as an ordinary PEFT folder; it is complete once this returns, and only then."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        tuned.save_pretrained(making, save_embedding_layers=False)
        Path(making).rename(folder)
        Path(making).mkdir()  # for the context manager to remove


def detach_adapter(tuned: Tuned) -> Base:
    """Take the adapter off again and give back the base, bit for bit as it was; nothing is merged or un-merged."""
    unload: Any = tuned.unload
    base: Base = unload()
    base.requires_grad_(False).eval()
    return base


def adafactor(
    parameters: list[torch.nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adafactor as Trainer's `optim="adafactor"` has it: second moments factored, no relative step, no scaling by size.

    torch's own scales every step by the parameter's size, so its learning rate would mean something else.
    """
    return transformers.Adafactor(
        parameters, lr=learning_rate, weight_decay=weight_decay, relative_step=False, scale_parameter=False
    )


def trainable_params(model: torch.nn.Module) -> int:
    """The law's P: how many numbers training may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def hidden_states(
    model: Base | Tuned, *, ids: Int[Tensor, "b t"], positions: Int[Tensor, "b t"]
) -> Float[Tensor, "b t d"]:
    """Final hidden states, after the last norm, of a plain forward pass without the head.

    `positions` restart at 0 where a new document starts inside a row; attention never crosses such a border. Right
    padding needs no mask, because a causal model's earlier positions cannot see it. A bf16 model multiplies in bf16 and
    keeps float32 adapters' weights in float32 (autocast); everything else follows the weights' own precision.
    """
    head = output_head(model)
    body: Any = _causal(model).get_decoder()
    with torch.autocast(head.device.type, torch.bfloat16, enabled=head.dtype == torch.bfloat16):
        states: Tensor = body(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    return states


def output_head(model: Base | Tuned) -> Float[Tensor, "v d"]:
    """The output head's matrix."""
    weight: Tensor = _causal(model).get_output_embeddings().weight
    return weight


def _causal(model: Base | Tuned) -> Any:
    """The language model itself, inside an adapter's wrapper or not."""
    return model.get_base_model() if isinstance(model, Tuned) else model


def weights_fingerprint(model: Base) -> str:
    """Hex SHA-256 over names, shapes and bytes of a model's parameters, in name order: which base this is."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Transformers' and peft's own progress bars, notices and deprecations off; their errors still raise."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one library's use of another's old names, and advice about training
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
