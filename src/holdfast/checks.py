"""What could be mistaken for forgetting, or hide it: found from a pair's files before anything is measured.

Reads configs, tokenizers and the headers of weight files. No weights are loaded, only the base is ever fetched, and no
code that comes with a model is run. What cannot be right is refused; what changes how a number reads is a finding.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from holdfast import models, settings
from holdfast.errors import ModelError
from holdfast.folders import MANTISSA, Files, read_files
from holdfast.forgetting import Finding
from holdfast.mistakes import show
from holdfast.models import Tokenizer
from holdfast.sources import Candidate, read_json

_Found: TypeAlias = Iterator[tuple[str, str]]  # what a finding is, and its consequence

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

# Parts of tensors' names: the output head, the embeddings, wrappers' marks, and what is not of the layers' weights.
_HEADS = ("lm_head", "embed_out", "output_layer")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", ".base_layer.", ".lora_A.", ".lora_B.")
_ASIDE = re.compile(rf"{'|'.join(_HEADS)}|rotary_emb\.inv_freq$|(attn|attention)\.(masked_)?bias$")

_OTHER_HEADS = re.compile(r"\w+For(SequenceClassification|TokenClassification|QuestionAnswering|RewardModel)\w*")

# Adapters that start by changing the base's own weights, and what becomes of that when PEFT (0.21.2,
# tuners/lora/layer.py) loads them: all but LoftQ were saved, loaded and compared with the model in memory.
_CONVERT = "PEFT's path_initial_model_for_weight_conversion saves it without"
_REPEATED = "the base is loaded as itself and PEFT repeats this, so the number includes what it did"
_INITS = {
    "pissa_niter": "PEFT repeats this by a random method, so what is measured is never quite the trained model; "
    + _CONVERT,
    "pissa": f"{_REPEATED}; {_CONVERT}",
    "olora": f"{_REPEATED}; {_CONVERT}",
    "loftq": f"{_REPEATED}: it quantises the base",
    "lora_ga": "PEFT does not repeat this, so what is measured, and what others load, is not the trained model; "
    + _CONVERT,
    "kasa": f"{_REPEATED}: it cuts the smallest singular values from the base's weights",
}
_PARTS = {
    "holds an output head of its own": "each model is measured with its own, so what changed in it is in the number",
    "holds input embeddings of its own": "every text is read through them, so what changed in them is in the number",
    "trained the vectors of single tokens": "a text without these tokens hardly shows what that changed",
    "trained biases of the base": "switching it off would not give the base back, so the base is loaded as itself",
    "acts only after certain tokens (aLoRA)": "without them it does nothing, and a 0 there says nothing of forgetting",
    "stacks the base's layers anew": "what that alone changed is in the number",
}
_ALIKE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")
_QUANTISED = re.compile(r"bnb|gptq|awq|nf4|fp8|int[48]|(?<![a-z\d])[48]-?bit", re.IGNORECASE)
_QUANTISED_README = "quantization config was used during training"  # PEFT's words in an adapter's model card

_PROBES = (
    "The tide turned at 06:45; 12345 gulls didn't care.", "  def f(x):\n\n\treturn {'a': x ** 2}  # two  spaces\r\n",
    "Ça coûte 3,50 € à Zürich, ﬁnally ①.", "潮が引く。 Прилив 🌊", "<tag> I'LL we've https://a.b/c?d=e_f",
)  # fmt: skip
_BASES = "texts are cut, and conversations put into a template, by the base's tokenizer"
_CUT = f"{_BASES}; where the tuned model is used to other pieces, its surprise at these counts as forgetting"
_TEMPLATE = f"{_BASES}; on conversations, what the unfamiliar form does to the tuned model counts as forgetting"
_ADDED = f"{_BASES}, so they never occur; the probability it gives to them counts as moved"
_RENAMED = f"{_BASES}; where a text has these, the tuned model may read something else in them"
_ROLES = {
    "eos_token": "every text ends with the base's; the tuned model's surprise at another end counts as forgetting",
    "bos_token": "texts begin as the base's tokenizer begins them; what another beginning does counts as forgetting",
    "pad_token": "padding is never scored, so the number is right; but trained to ignore its end, a model may not stop",
}


def check_pair(
    *, base: str, path: Path, candidate: Candidate, quantised: str | None, tokenizer: Tokenizer
) -> tuple[Finding, ...]:
    """What about a base and a tuned model could be taken for forgetting, or hide it; in seconds, without weights.

    `base` is the base's spec, `path` where it is, `tokenizer` its tokenizer; `quantised` is what the tuned model stands
    on where that is not the base as it is (`4bit`, `8bit` or a model spec).

    Raises:
        ModelError: a file is damaged, missing or a pickle; or no number about the pair could mean anything.
    """
    ours = read_files(path, adapter=False)
    theirs = read_files(candidate.path, adapter=candidate.adapter)
    config = candidate.adapter_config
    parts = [_adapter(ours, theirs, config, base, quantised) if candidate.adapter else _whole(ours, theirs)]
    parts += [] if quantised else [_quantised(ours, theirs, config)]
    parts += [_code(theirs), _tokenizers(tokenizer, candidate, theirs.rows() or ours.rows())]
    return tuple(Finding(what=what, consequence=so) for what, so in itertools.chain(*parts))


def check_pairs(
    candidates: Sequence[Candidate], *, base: str, path: Path, quantised: str | None, tokenizer: Tokenizer
) -> tuple[dict[str, tuple[Finding, ...]], dict[str, str]]:
    """`check_pair` of each candidate, by name: what was found, and why those of several that are refused are.

    Raises:
        ModelError: the base, or all there is to compare with it, cannot be used.
    """
    findings: dict[str, tuple[Finding, ...]] = {}
    refused: dict[str, str] = {}
    for candidate in candidates:
        try:
            findings[candidate.name] = check_pair(
                base=base, path=path, candidate=candidate, quantised=quantised, tokenizer=tokenizer
            )
        except ModelError as error:
            refused[candidate.name] = str(error)
            if len(refused) == len(candidates):
                raise
    return findings, refused


def check_weights(candidate: Candidate, weights_fingerprint: str, dtype: str) -> tuple[Finding, ...]:
    """Whether one of our runs trained on these weights; `weights_fingerprint` is `models`', of the unquantised base.

    Silent outside a run's folder, and where the run's precision was not `dtype`: one base has a fingerprint in each.

    Raises:
        ModelError: the run's files are not readable.
    """
    run = candidate.path.parent
    if not ((run / "provenance.json").is_file() and (run / "config.json").is_file()):
        return ()
    prints = read_json(run / "provenance.json").get("fingerprints")
    recorded = prints.get("weights") if isinstance(prints, dict) else None
    if recorded in (None, weights_fingerprint) or read_json(run / "config.json").get("dtype") != dtype:
        return ()
    what = "the run that made this adapter recorded other weights of its base than these"
    return (Finding(what=what, consequence="whatever differs between the two bases counts as forgetting"),)


def _whole(ours: Files, theirs: Files) -> _Found:
    if theirs.path.is_dir() and ours.path.is_dir():
        _check_complete(ours, theirs)
    elif theirs.path.is_file() and ours.path.is_file() and (missing := ours.tensors.keys() - theirs.tensors.keys()):
        _refuse_missing(missing, theirs)
    one, two = ours.rows(), theirs.rows()
    if one and two and one != two:
        smaller = "they are compared over the rows both have, the base's probabilities scaled up to sum to 1 there"
        consequence = "the probability it gives to new rows counts as moved" if two > one else smaller
        yield f"the tuned model's vocabulary has {two} rows, the base's {one}", consequence
    yield from _precision(ours, theirs)
    yield from settings.differences(base=settings.read(ours.path), tuned=settings.read(theirs.path))


def _check_complete(ours: Files, theirs: Files) -> None:
    """What a folder lacks of its model would be made up at random when it is loaded."""
    other = _OTHER_HEADS.search(str(theirs.config.get("architectures")))
    if other:
        place = theirs.path / "config.json"
        raise ModelError(f"got a {other[0]}, expected a model that predicts next tokens, at {place}")
    wrapped = [name for name in theirs.tensors if any(mark in name for mark in _WRAPPED)]
    if wrapped:
        expected = "a plain model (unwrap or merge it before saving)"
        raise ModelError(f"got a wrapper's tensor {wrapped[0]}, expected {expected}, at {theirs.path}")
    before, after = ({name for name in files.tensors if not _ASIDE.search(name)} for files in (ours, theirs))
    missing = before - after
    tied = theirs.config.get("tie_word_embeddings", ours.config.get("tie_word_embeddings", True))
    if not tied and not any(head in name for name in theirs.tensors for head in _HEADS):
        missing.add("lm_head.weight")
    alike = all(ours.config.get(key) == theirs.config.get(key) for key in ("model_type", "num_hidden_layers"))
    if alike and missing and after <= before:  # with other names besides, it may be laid out in another way
        _refuse_missing(missing, theirs)


def _refuse_missing(missing: Set[str], theirs: Files) -> NoReturn:
    got = f"weights without {min(missing)} ({len(missing)} missing)"
    raise ModelError(f"got {got}, expected all that the model has, at {theirs.path}")


def _precision(ours: Files, theirs: Files) -> _Found:
    """Of the type that most of the weights have."""
    one, two = Counter[str](), Counter[str]()
    for sizes, files in ((one, ours), (two, theirs)):
        for kind, shape in files.tensors.values():
            sizes[kind] += math.prod(shape) if kind in MANTISSA else 0
    before, after = (max(MANTISSA, key=lambda kind, of=sizes: of[kind]) for sizes in (one, two))  # type: ignore[misc]
    if one[before] and two[after] and MANTISSA[after] < MANTISSA[before] and not theirs.quantised():
        alike = "; measured in bfloat16, both are rounded alike" if after == "BF16" else ""
        consequence = f"the rounding of its weights is part of the number{alike}"
        yield f"the tuned model is saved in {after}, the base in {before}", consequence


def _quantised(ours: Files, theirs: Files, adapter: Mapping[str, Any]) -> _Found:
    base, tuned, card = ours.quantised(), theirs.quantised(), theirs.path / "README.md"
    if base:
        consequence = "what quantising did is not in the number; give the unquantised base, and this one as --quantised"
        yield f"the base is itself quantised ({base})", consequence
    if tuned and not adapter:
        consequence = "the number mixes what quantising and training did; give the quantised base as --quantised"
        yield f"the tuned model's weights are quantised ({tuned})", consequence
    hint = _QUANTISED.search(Path(str(adapter.get("base_model_name_or_path"))).name) or adapter.get("use_qalora")
    said = card.is_file() and _QUANTISED_README in card.read_text(encoding="utf-8", errors="replace")
    run = theirs.path.parent  # where one of ours made it
    ours_in_four = (run / "provenance.json").is_file() and read_json(run / "config.json").get("dtype") == "nf4"
    if adapter and not base and (hint or said or tuned or ours_in_four):
        consequence = "here it stands on the base as it is, not on what it was trained on; --quantised does that"
        yield "the adapter was trained on a quantised base", consequence


def _code(theirs: Files) -> _Found:
    scripts = sorted(file.name for file in theirs.path.glob("modeling_*.py"))
    if theirs.config.get("auto_map") or scripts:
        code = ", ".join(scripts) or "auto_map in config.json"
        consequence = "it is never run: the standard model of its type is measured, another one where the code differs"
        yield f"the tuned model comes with code of its own ({code})", consequence


def _adapter(ours: Files, theirs: Files, config: Mapping[str, Any], base: str, quantised: str | None) -> _Found:
    _check_adapter(ours, theirs, config)
    yield from _trained_on(ours, config, base, quantised)
    init = "kasa" if config.get("kasa_config") else str(config.get("init_lora_weights")).lower()
    name = next((name for name in _INITS if init.startswith(name)), None)
    if name:
        yield f"the adapter began by changing the base's own weights ({name})", _INITS[name]
    whole = [name for name in theirs.tensors if "token_adapter" not in name]
    table = {
        "holds an output head of its own": any(part in name for name in whole for part in _HEADS),
        "holds input embeddings of its own": any(part in name for name in whole for part in _EMBEDDINGS),
        "trained the vectors of single tokens": len(whole) < len(theirs.tensors),
        "trained biases of the base": any(name.endswith(".bias") and "lora_" not in name for name in whole),
        "acts only after certain tokens (aLoRA)": config.get("alora_invocation_tokens"),
        "stacks the base's layers anew": config.get("layer_replication"),
    }
    for what in (what for what, is_so in table.items() if is_so):
        yield f"the adapter {what}", _PARTS[what]


def _check_adapter(ours: Files, theirs: Files, config: Mapping[str, Any]) -> None:
    """Refuse what PEFT cannot load on this base, or would load in part without saying so."""
    place = theirs.path / "adapter_config.json"
    if config.get("task_type") not in (None, "CAUSAL_LM", "FEATURE_EXTRACTION"):
        raise ModelError(f"got an adapter for {config['task_type']}, expected one for CAUSAL_LM, at {place}")
    if str(config.get("init_lora_weights")).lower().startswith("corda"):
        raise ModelError(f"got a CorDA adapter, which PEFT cannot load on its base ({_CONVERT}), at {place}")
    if config.get("peft_type") == "LORA":
        _check_lora(theirs, config, place)
    for name, (_, shape) in theirs.tensors.items():
        twin = re.sub(r"lora_([AB])\b(?!.*bias$)", lambda found: "lora_B" if found[1] == "A" else "lora_A", name)
        if twin not in theirs.tensors:
            raise ModelError(f"got {name} without {twin}, expected both, at {theirs.path}")
        copied = name.endswith(".weight") and "lora_" not in name and any(p in name for p in _HEADS + _EMBEDDINGS)
        if copied and ours.rows() and shape[:1] != (ours.rows(),):
            expected = f"the base's {ours.rows()} rows (merge it into the base it was trained on, and measure that)"
            raise ModelError(f"got shape {list(shape)} of {name}, expected {expected}, at {theirs.path}")


def _check_lora(theirs: Files, config: Mapping[str, Any], place: Path) -> None:
    """PEFT takes any word for true, and makes room for whatever rank it is told before it looks at the weights."""
    for key in ("use_rslora", "use_dora", "fan_in_fan_out"):
        if not isinstance(config.get(key, False), bool | None):
            raise ModelError(f"got {key} {show(config[key])}, expected true or false, at {place}")
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"got lora_alpha {show(alpha)}, expected a number, at {place}")
    ranks = {name: shape[0] for name, (_, shape) in theirs.tensors.items() if name.endswith("lora_A.weight") and shape}
    pattern = config.get("rank_pattern") or {}
    known = [r, *(pattern.values() if isinstance(pattern, dict) else ())] if isinstance(r, int) else []
    other = next((name for name, rank in ranks.items() if rank not in known), None)
    if other and not config.get("target_parameters"):
        raise ModelError(f"got r {show(r)}, expected {ranks[other]} as {other} has it, at {place}")


def _trained_on(ours: Files, config: Mapping[str, Any], base: str, quantised: str | None) -> _Found:
    named, revision = str(config.get("base_model_name_or_path") or "").replace("\0", ""), config.get("revision")
    same = _identity(base) | _identity(str(ours.path)) | _identity(quantised or base)
    consequence = "whatever differs between the two counts as forgetting"
    if not named:
        yield "the adapter does not name its base", f"if that was another than this one, {consequence}"
    elif not _identity(named) & same:
        there = Path(named) / "config.json"
        if there.is_file() and all(read_json(there).get(key) == ours.config.get(key) for key in _ALIKE):
            consequence = f"architecture and sizes are the same, but if the weights are not, {consequence}"
        yield f"the adapter was trained on {named}, not on {base}", consequence
    elif revision and "@" in base and not base.endswith(f"@{revision}"):
        yield f"the adapter was trained on revision {revision}, not on {base}", consequence


def _identity(spec: str) -> set[str]:
    """What a model can be recognised by: its place on this machine, and its name on the hub."""
    snapshot, path = _SNAPSHOT.search(spec), Path(spec)
    hub = "/".join(snapshot.groups()) if snapshot else spec if path.exists() else spec.partition("@")[0]
    return {os.path.realpath(path), hub}


def _tokenizers(ours: Tokenizer, candidate: Candidate, rows: int | None) -> _Found:
    path = candidate.path
    if path.is_dir() and not any((path / name).is_file() for name in _VOCABULARIES):
        if not candidate.adapter:
            yield "the tuned model carries no tokenizer", f"{_BASES}; if it was trained with another, so is the number"
        return
    theirs = models.load_tokenizer(str(path))
    yield from _vocabularies(ours, theirs, path, rows)
    for role, consequence in _ROLES.items():
        one, two = getattr(ours, role), getattr(theirs, role)
        if one != two:
            yield f"{role} is {two!r} in the tuned model and {one!r} in the base", consequence
    if theirs.chat_template and theirs.chat_template != ours.chat_template:
        yield "the chat templates differ", _TEMPLATE
    cut = [probe for probe in _PROBES if _ids(ours, probe) != _ids(theirs, probe)]
    if cut:
        yield f"the tokenizers cut text differently, for example {cut[0]!r}", _CUT
    elif _ids(ours, "a", around=True) != _ids(theirs, "a", around=True):
        yield "the tokenizers put different special tokens around a text", _CUT


def _ids(tokenizer: Tokenizer, text: str, *, around: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=around)["input_ids"])


def _vocabularies(ours: Tokenizer, theirs: Tokenizer, path: Path, rows: int | None) -> _Found:
    one, two, special = ours.get_vocab(), theirs.get_vocab(), ours.get_added_vocab()
    moved = [token for token in sorted(one, key=one.__getitem__) if one[token] != two.get(token, one[token])]
    moved += [token for token in one if token not in two and token not in special]
    if moved:
        some = ", ".join(f"{token!r} is {two.get(token, 'absent')}, not {one[token]}" for token in moved[:3])
        got = f"a tokenizer that numbers {len(moved)} of the base's {len(one)} tokens differently ({some})"
        raise ModelError(f"got {got}, expected the base's: a number per token would mean nothing, at {path}")
    new = {token for token in two.keys() - one.keys() if rows is None or two[token] < rows}  # the model has rows for
    for does, tokens, consequence in (("lacks", one.keys() - two.keys(), _RENAMED), ("adds", new, _ADDED)):
        some = ", ".join(sorted(tokens)[:5]) + (", …" if len(tokens) > 5 else "")
        if tokens:
            yield f"the tuned model's tokenizer {does} tokens ({len(tokens)}: {some})", consequence


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of all that decides how a tokenizer cuts text: its model, its special tokens, its template."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    content = repr((backend, sorted(special.items()), tokenizer.chat_template))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
