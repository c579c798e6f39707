"""The only file that imports transformers: load a model, its tokenizer, its hidden states and its head.

Loading never runs code that comes with a model: safetensors only, remote code never trusted.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import peft
import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from holdfast import builtin, folders, sources
from holdfast.errors import ConfigError, ModelError, as_ours
from holdfast.metrics import Head
from holdfast.thawed import Thawed

log = logging.getLogger(__name__)

Base: TypeAlias = PreTrainedModel
"""A causal language model without an adapter."""
Adapted: TypeAlias = peft.PeftModel
"""The same with one."""
Tuned: TypeAlias = Adapted | Thawed
"""A fine-tuned model: with an adapter, or with weights of its own that are trained."""
Tokenizer: TypeAlias = PreTrainedTokenizerBase
QUANTISATIONS = ("4bit", "8bit")


def choose_device(device: str) -> str:
    """`auto` as the first CUDA device where there is one, else the CPU; anything else as it is.

    Raises:
        ConfigError: no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    with as_ours(ConfigError, lambda why: f"got {device!r} ({why}), expected auto, cpu, cuda, …, at device"):
        torch.ones(1, device=device).item()
    return device


def locate(spec: str) -> Path:
    """The folder or GGUF file of a model spec; `builtin:smollm2` is made on first use.

    Raises:
        ModelError: nothing there, or the hub cannot be reached.
        ResourceError: the built-in model cannot be fetched.
    """
    if not spec.startswith(builtin.PREFIX):
        return sources.locate(spec)
    if spec.removeprefix(builtin.PREFIX) not in builtin.MODELS:
        raise ModelError(f"got model {spec!r}, expected one of {[builtin.PREFIX + m for m in builtin.MODELS]}")
    return builtin_folder()


def builtin_folder() -> Path:
    """The built-in model as an ordinary safetensors folder in the user's cache, made once and then reused.

    It appears under its final name by one rename, complete or not at all.
    """
    folder = builtin.cache_folder() / "models" / f"smollm2-135m-instruct-{builtin.GGUF_SHA256[:12]}"
    with sources.made_once(folder) as making:
        if making:
            log.info("fetching the built-in model (93 MB, once) into %s", folder)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as fetching:
                gguf = builtin.fetch_gguf(Path(fetching))
                _read_gguf(gguf, torch.float32).save_pretrained(making)
                _read_tokenizer(gguf).save_pretrained(making)
    return folder


def _read_gguf(gguf: Path, dtype: torch.dtype) -> Base:
    """A GGUF file, dequantised, as an ordinary model."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting of theirs turns off
        both: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        quantised = both[0]
        _check_none_missing(both[1], gguf)
        # A model read from a GGUF keeps a quantisation config and refuses to be saved; a fresh one carries none.
        config = quantised.config
        del config.quantization_config
        with torch.random.fork_rng():
            plain: Base = AutoModelForCausalLM.from_config(config, dtype=dtype)
        plain.load_state_dict(quantised.state_dict())
    return plain


def _read_tokenizer(path: Path) -> Tokenizer:
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        if path.is_file():
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that belongs to a model spec.

    Raises:
        ModelError: none can be loaded from there, it ends whatever it cuts, or its end of text has no row in the model.
    """
    path = locate(spec)
    config = _config(path)
    with as_ours(ModelError, lambda why: f"got nothing ({why}), expected a readable tokenizer, at {path}"):
        tokenizer = _read_tokenizer(path)
    tokenizer.model_max_length = int(
        1e30
    )  # as where none is known: windows are ours; a wrong limit would warn, or raise
    rows, end = getattr(config, "vocab_size", None), tokenizer.eos_token_id
    if rows is not None and end is not None and end >= rows:
        got = f"an end of text {str(tokenizer.eos_token)!r} numbered {end}"
        raise ModelError(f"got {got}, expected one below the model's {rows} rows, at {path}")
    cut = tokenizer("a")["input_ids"]
    if cut[1:][-1:] == [end]:  # where a text ends we say: what follows a prompt would follow an end
        tokenizer.add_bos_token, tokenizer.add_eos_token = cut[0] == tokenizer.bos_token_id, False
        if tokenizer("a")["input_ids"] != cut[:-1]:
            raise ModelError(f"got a tokenizer that ends every text with {tokenizer.eos_token!r}, at {path}")
    return tokenizer


def _config(path: Path) -> Any:
    """A model folder's config, None elsewhere; the library reads it for a tokenizer too, and would blame that."""
    if path.is_dir():
        folders.check_json(path)
    usual = (path / "config.json").is_file() and not (path / "adapter_config.json").is_file()
    return read_config(path) if usual else None


def read_config(path: Path) -> Any:
    """The config of a model's folder or GGUF file, its class's defaults filled in; no weights are read.

    Raises:
        ModelError: there is none, or none that transformers knows.
    """
    folder, options = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    place = path if path.is_file() else path / "config.json"
    with as_ours(ModelError, lambda why: f"got a config that is of no use ({why}), at {place}"), quiet():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)


def load_base(spec: str, *, dtype: str, device: str, quantisation: str | None = None) -> Base:
    """The model of a spec, frozen, in evaluation mode; `quantisation` of `QUANTISATIONS` is bitsandbytes'.

    `dtype` "nf4" is bfloat16 on 4 bits. The output head stays unquantised. `hidden_states` have a logit scale in them,
    and `head_of` a bias or soft-capping.

    Raises:
        ModelError: it cannot be loaded, holds a NaN or infinity, its logits are not what its head says, or it is to be
            quantised and bitsandbytes is not installed.
    """
    dtype, quantisation = ("bfloat16", "4bit") if dtype == "nf4" else (dtype, quantisation)
    path = locate(spec)
    folders.read_files(path, adapter=False)
    model = _read(path, spec, getattr(torch, dtype), quantisation, device)
    model.name_or_path = model.config._name_or_path = spec.partition("@")[0]  # what an adapter's config calls its base
    check_finite(model, f"model {spec!r}")
    if quantisation is None:
        torch.nn.Module.to(model, device)
    model.requires_grad_(False).eval()
    check_head(model, f"model {spec!r} ({model.config.model_type})")
    return model


# What the library says instead, and why only to its log.
_MISMATCH = "You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details look at the above report!"
_SHAPES = {_MISMATCH: "its weights have other shapes than its config.json says"}


def _read(path: Path, spec: str, dtype: torch.dtype, quantisation: str | None, device: str) -> Base:
    options: dict[str, Any] = {}
    if quantisation is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(f"got {quantisation} for {spec!r}, which needs bitsandbytes: pip install bitsandbytes")
        bits = {f"load_in_{quantisation}": True}
        if quantisation == "4bit":
            bits |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}  # type: ignore[dict-item]
        options = {"quantization_config": transformers.BitsAndBytesConfig(**bits), "device_map": {"": device}}
    config = _config(path)
    with as_ours(ModelError, lambda why: f"model {spec!r} cannot be loaded: {_SHAPES.get(why, why)}, at {path}"):
        if path.is_file():
            return _read_gguf(path, dtype)
        with quiet():
            both: Any = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, **options,
            )  # fmt: skip
    read: Base = both[0]
    for part in read.modules():  # what bitsandbytes repacks for a CPU's bf16 units passes no gradient, nor small maps
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if quantisation is None:
        _check_none_missing(both[1], path)
    return read


def _check_none_missing(loaded: Mapping[str, Any], path: Path) -> None:
    """Transformers makes up at random what it does not find."""
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"got no weights for {', '.join(missing[:3])}, expected all of them, at {path}")


def check_finite(model: torch.nn.Module, place: str) -> None:
    """Refuse a model that holds a NaN or infinity.

    Raises:
        ModelError: it does, naming the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ModelError(f"{place}: got NaN or infinity in {name}, expected finite weights")


def check_head(model: Base | Adapted, place: str) -> None:
    """Refuse a model whose logits are not its hidden states under its head: every number would be wrong, silently.

    Raises:
        ModelError: they are not, on eight tokens.
    """
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    with as_ours(ModelError, lambda why: f"{place}: cannot make a forward pass: {why}"), torch.no_grad():
        positions = torch.arange(8, device=model.device)[None]
        got = head_of(model).logits(hidden_states(model, ids=ids, positions=positions))
        with autocast(model), quiet():
            expected = model(input_ids=ids).logits[:, -8:].float()
    if not torch.isfinite(expected).all():
        raise ModelError(f"{place}: got a prediction that is NaN or infinite, expected finite ones")
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.02, atol=0.02 * float(expected.std())):
        raise ModelError(
            f"{place}: got logits that are not its final hidden states under its output head (a scale, or an adapter "
            "that works outside the layers); such a model cannot be measured yet"
        )


def adafactor(
    parameters: list[torch.nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adafactor as Trainer's `optim="adafactor"` has it: second moments factored, no relative step, no scaling by size.

    torch's own scales every step by the parameter's size, so its learning rate would mean something else.
    """
    return transformers.Adafactor(
        parameters, lr=learning_rate, weight_decay=weight_decay, relative_step=False, scale_parameter=False
    )


def hidden_states(
    model: Base | Tuned,
    *,
    ids: Int[Tensor, "b t"],
    positions: Int[Tensor, "b t"],
    sees: Bool[Tensor, "b t t"] | None = None,
) -> Float[Tensor, "b t d"]:
    """Final hidden states, after the last norm, of a plain forward pass without the head.

    `positions` restart at 0 where a new document starts inside a row; attention never crosses such a border in models
    that mask by positions (see `losses.keeps_apart`). Right padding needs no mask, because a causal model's earlier
    positions cannot see it. `sees[b, q, k]` says otherwise of every pair of tokens, if given. A bf16 model multiplies
    in bf16 and keeps float32 adapters' weights in float32 (autocast); everything else follows the weights' own
    precision. A model's logit scale is multiplied in. Adapters that put virtual tokens before the text ignore
    `positions`.

    Raises:
        ModelError: a position is past the last that a model with a table of positions has learned.
    """
    body: Any = causal(model).get_decoder()
    _check_positions(model, positions)
    with autocast(model):
        if prompted(model):
            states = _prompted_states(model, body, ids)
        else:
            mask = None if sees is None else _attention_mask(model, sees)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
            run = partial(model.run, body) if isinstance(model, Thawed) else body
            states = run(**inputs).last_hidden_state
    scale = _logit_scale(causal(model))
    return states if scale == 1 else states * scale


def _check_positions(model: Base | Tuned, positions: Int[Tensor, "b t"]) -> None:
    known = getattr(causal(model).config.get_text_config(), "max_position_embeddings", None)
    if known is None or positions.shape[1] <= known or positions.max() < known:
        return
    tables = {part for part in causal(model).modules() if isinstance(part, torch.nn.Embedding)}
    tables -= {causal(model).get_input_embeddings()}
    if any(known <= table.num_embeddings <= known + 2 for table in tables):  # OPT's has two rows to spare
        got = f"got a text of {int(positions.max()) + 1} tokens"
        raise ModelError(f"{got}, expected at most the {known} whose positions the model has learned, at --context")


def _attention_mask(model: Base | Tuned, sees: Bool[Tensor, "b t t"]) -> Tensor:
    """As the model's kind of attention takes it: torch's own a Boolean, others what is added to the logits."""
    if causal(model).config._attn_implementation == "sdpa":
        return sees[:, None]
    dtype = causal(model).get_input_embeddings().weight.dtype
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def _prompted_states(model: Any, body: torch.nn.Module, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
    """Virtual tokens are put in by the adapter's own forward, so what its decoder gives back is caught on the way."""
    caught: list[Tensor] = []
    hook = body.register_forward_hook(lambda _module, _inputs, output: caught.append(output.last_hidden_state))
    try:
        with quiet():
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return caught[-1][:, -ids.shape[1] :]


def prompted(model: Base | Tuned) -> bool:
    """Whether an adapter works by virtual tokens before the text."""
    return isinstance(model, Adapted) and bool(model.active_peft_config.is_prompt_learning)


def autocast(model: Base | Tuned) -> torch.autocast:
    """Products in bf16 where the model's weights are."""
    weight = causal(model).get_input_embeddings().weight
    return torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16)


def _logit_scale(model: Any) -> float:
    config = model.config.get_text_config()
    if getattr(config, "logits_scaling", None):  # Granite divides
        return 1 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1)  # Cohere multiplies


def output_head(model: Base | Tuned) -> Float[Tensor, "v d"]:
    """The output head's own matrix, without any adapter's or bias's part; see `head_of`."""
    weight: Tensor = causal(model).get_output_embeddings().weight
    return model.now(weight) if isinstance(model, Thawed) else weight


def head_of(model: Base | Tuned) -> Head:
    """The head as the model applies it: its own matrix, or what an adapter or trained copy around it amounts to."""
    head = causal(model).get_output_embeddings()
    softcap = getattr(causal(model).config.get_text_config(), "final_logit_softcapping", None)
    if type(head) is torch.nn.Linear:
        now = model.now if isinstance(model, Thawed) else lambda weight: weight
        bias = None if head.bias is None else now(head.bias).detach()
        return Head(weight=now(head.weight).detach(), bias=bias, softcap=softcap)
    # A wrapped linear map is its values at the unit vectors, less its value at 0; float32, lest an update be rounded.
    exact = copy.deepcopy(head).float()
    unit = torch.eye(causal(model).get_input_embeddings().weight.shape[1], device=model.device)
    with torch.no_grad(), torch.autocast(unit.device.type, enabled=False):
        bias = exact(unit[:1] * 0)[0]
        weight = (exact(unit) - bias).T.contiguous()
    narrow = weight.to(output_head(model).dtype)
    weight = narrow if torch.equal(narrow.float(), weight) else weight
    return Head(weight=weight, bias=bias if bias.any() else None, softcap=softcap)


def causal(model: Base | Tuned) -> Any:
    """The language model itself, inside an adapter's wrapper or not."""
    if isinstance(model, Thawed):
        return model.base
    return model.get_base_model() if isinstance(model, Adapted) else model


def weights_fingerprint(model: Base) -> str:
    """Hex SHA-256 over names, shapes and bytes of a model's parameters, in name order: which base this is."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
