"""Folders that are no models or adapters, each with the pattern it is refused with; and odd ones that are."""

import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from damage import (
    ADAPTER,
    WEIGHTS,
    Change,
    claims,
    config,
    each,
    entries,
    gone,
    index,
    parsed,
    raw,
    swap,
    tensors,
    tokens,
    vocabulary,
)  # fmt: skip

Kind = Literal["whole", "base", "adapter"]
"""What the folder is put in the place of: a tuned model, the base (of a measurement, of a study), a tuned adapter."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Changes to a good folder, and how it is then refused."""

    group: str
    name: str
    kinds: tuple[Kind, ...]
    changes: Sequence[Change]
    message: str

    def make(self, folder: Path) -> None:
        for change in self.changes:
            change(folder)


ROW = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.weight"
OPENED, JSON, FIT = (
    r"got unreadable weights \(",
    r"got no readable JSON \(",
    "its weights have other shapes than its co",
)
PLACE = "cannot be put on this base"


def one(name: str, edit: Any, file: str = WEIGHTS) -> Change:
    return each(lambda k, v: (k, edit(v) if k == name else v), file)


def every(edit: Any, file: str = WEIGHTS) -> Change:
    return each(lambda k, v: (k, edit(v)), file)


def header(text: bytes, length: int | None = None) -> Change:
    return raw(WEIGHTS, lambda _: struct.pack("<Q", len(text) if length is None else length) + text)


def replaced(name: str, by: Any) -> list[Change]:
    return [gone(name), lambda folder: by(folder / name)]


def _folders(group: str, kinds: tuple[Kind, ...], cases: dict[str, tuple[list[Change], str]]) -> list[Folder]:
    return [
        Folder(group=group, name=name, kinds=kinds, changes=changes, message=message)
        for name, (changes, message) in cases.items()
    ]


GARBAGE = pickle.dumps({"weights": [1.0]})
FOLDERS = [
    *_folders("weights that are damaged", ("whole", "base"), {
        "cut by a byte": ([raw(WEIGHTS, lambda b: b[:-1])], rf"{OPENED}.*not fully covered.*model\.safetensors"),
        "cut in the header": ([raw(WEIGHTS, lambda b: b[:100])], rf"{OPENED}.*model\.safetensors"),
        "of no bytes": ([raw(WEIGHTS, lambda _: b"")], rf"{OPENED}.*header too small.*model\.safetensors"),
        "too long": ([raw(WEIGHTS, lambda b: b + b"x")], rf"{OPENED}.*not fully covered.*model\.safetensors"),
        "a pointer of Git LFS": ([raw(WEIGHTS, lambda _: b"version https://git-lfs.github.com")], OPENED),
        "a header of 2^64 bytes": ([raw(WEIGHTS, lambda b: b"\xff" * 8 + b[8:])], rf"{OPENED}.*header too large"),
        "a header that is no JSON": ([header(b"not json")], rf"{OPENED}.*model\.safetensors"),
        "a header nested deep": ([header(b"[" * 90_000)], rf"{OPENED}.*model\.safetensors"),
        "overlapping tensors": ([raw(WEIGHTS, lambda b: b.replace(b"[51200,", b"[51100,"))], rf"{OPENED}.*offset"),
        "a shape that does not fit": ([raw(WEIGHTS, lambda b: b.replace(b"[32]", b"[33]", 1))], OPENED),
        "a negative shape": ([raw(WEIGHTS, lambda b: b.replace(b"[32]", b"[-1]", 1))], OPENED),
        "a shape beyond memory": (
            [header(b'{"x":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,0]}}' % (2**62, 2**62))], OPENED),
        "a type nobody knows": ([raw(WEIGHTS, lambda b: b.replace(b"F32", b"Q32", 1))], OPENED),
        "a pickle by another name": ([raw(WEIGHTS, lambda _: GARBAGE)], OPENED),
        "a zip by another name": ([lambda f: torch.save({"a": torch.ones(2)}, f / WEIGHTS)], OPENED),
        "a link to itself": (replaced(WEIGHTS, lambda p: p.symlink_to(p)), r"no weights.*model\.safetensors"),
        "a link to nothing": (replaced(WEIGHTS, lambda p: p.symlink_to("x")), r"no weights.*model\.safetensors"),
        "a folder": (replaced(WEIGHTS, Path.mkdir), r"no weights, expected safetensors, at .*model\.safetensors"),
    }),
    *_folders("weights that are missing or elsewhere", ("whole", "base"), {
        "none": ([gone(WEIGHTS)], r"got no weights, expected safetensors, at .*model\.safetensors"),
        "no tensors": ([tensors(lambda _: {})], r"no values in any tensor.*model\.safetensors"),
        "a hollow tensor": ([one(ROW, lambda v: v[:0])], rf"no values in {ROW}"),
        "a tensor missing": ([each(lambda k, v: ("" if k == ROW else k, v))], rf"(without|no weights for) {ROW}"),
        "a layer missing": (
            [each(lambda k, v: ("" if ".1." in k else k, v))], "(without|no weights for) model.layers.1"),
        "a pickle": ([gone(WEIGHTS), raw("pytorch_model.bin", lambda _: GARBAGE)], r"pickled .*\(pytorch_model\.bin\)"),
        "a pickle in parts": (
            [gone(WEIGHTS), raw("pytorch_model-1.bin", lambda _: GARBAGE),
             entries("pytorch_model.bin.index.json", weight_map={ROW: "pytorch_model-1.bin"})], "only pickled weights"),
        "a part missing": ([gone(WEIGHTS), index(weight_map={"x": "model-1.safetensors"})], "no file 'model-1.*index"),
        "a part above": (
            [lambda f: (f / WEIGHTS).rename(f.parent / "x"), index(weight_map={"x": "../x"})], "no file '../x'"),
        "a part at the root": ([gone(WEIGHTS), index(weight_map={"x": "/etc/passwd"})], "no file '/etc/passwd'"),
        "a part without its tensor": (
            [lambda f: (f / WEIGHTS).rename(f / "1"), index(weight_map={"x": "1"})], "no tensor x"),
        "an index of nothing": ([gone(WEIGHTS), index(weight_map={})], r"no weight_map.*index\.json"),
        "an index of lists": ([gone(WEIGHTS), index(weight_map={"x": ["y"]})], r"no weight_map.*index\.json"),
        "an index that is a list": ([gone(WEIGHTS), raw(f"{WEIGHTS}.index.json", lambda _: b"[]")], r"got \[\].*index"),
    }),
    *_folders("weights that mean nothing", ("whole", "base"), {
        "a NaN": ([one(ROW, lambda v: v.index_fill(0, torch.tensor([3]), torch.nan))], rf"NaN or infinity in {ROW}"),
        "an infinity": ([one(ROW, lambda v: v + torch.inf)], rf"NaN or infinity in {ROW}"),
        "too large for float32": ([every(lambda v: v.double() * 1e300)], "NaN or infinity in model"),
        "whole numbers": ([every(lambda v: v.int())], "got I32 numbers in model.*expected floating-point"),
        "truths": ([one(ROW, lambda v: v > 0)], rf"got BOOL numbers in {ROW}, expected floating-point"),
        "another shape": ([one(ROW, lambda v: v[:, :-1].contiguous())], FIT),
        "one dimension more": ([one(ROW, lambda v: v[None])], FIT),
        "fewer rows": ([one(EMBEDDING, lambda v: v[:-9].contiguous())], FIT),
        "other names": ([each(lambda k, v: (f"x.{k}", v))], "no weights for (lm_head|model)"),
        "a layer too many": ([config(num_hidden_layers=1)], "num_hidden_layers 1, expected as many .*layers.1"),
    }),
    *_folders("config.json", ("whole", "base"), {
        "missing": ([gone("config.json")], r"config\.json"),
        "empty": ([raw("config.json", lambda _: b"")], rf"{JSON}.*config\.json"),
        "cut": ([raw("config.json", lambda b: b[:40])], rf"{JSON}.*config\.json"),
        "a list": ([raw("config.json", lambda _: b"[]")], r"got \[\], expected an object.*config\.json"),
        "null": ([raw("config.json", lambda _: b"null")], r"got null, expected an object.*config\.json"),
        "no text": ([raw("config.json", lambda _: b"\xff\xfe\0")], rf"{JSON}.*config\.json"),
        "nested deep": ([raw("config.json", lambda _: b"[" * 200_000)], rf"{JSON}.*recursion.*config\.json"),
        "a folder": (replaced("config.json", Path.mkdir), r"config\.json"),
        "nothing in it": ([raw("config.json", lambda _: b"{}")], r"model_type.*config\.json"),
        "an unknown kind": ([config(model_type="nope")], r"`nope`.*config\.json"),
        "a kind that is a list": ([config(model_type=["llama"])], r"config that is of no use.*config\.json"),
        "a kind that is a path": ([config(model_type="../../x")], r"config that is of no use.*config\.json"),
        "no language model": ([config(model_type="vit", architectures=["ViTModel"])], "ViTConfig|without|no weights"),
        "width as text": ([config(hidden_size="32")], r"hidden_size.*expected int, got str.*config\.json"),
        "no width": ([config(hidden_size=0)], FIT),
        "width beyond memory": ([config(hidden_size=2**40)], FIT),
        "a million layers": ([config(num_hidden_layers=10**6)], r"num_hidden_layers 1000000, expected 1 to 20"),
        "no layers": ([config(num_hidden_layers=0)], r"num_hidden_layers 0, expected 1 to 20.*config\.json"),
        "layers as text": ([config(num_hidden_layers="two")], r"num_hidden_layers 'two', expected|expected int"),
        "no heads": ([config(num_attention_heads=0)], r"config that is of no use.*config\.json"),
        "heads that do not fit": ([config(num_attention_heads=3)], r"config that is of no use.*config\.json"),
        "an unknown activation": ([config(hidden_act="nope")], "cannot be loaded: 'nope'"),
        "NaN in its norm": ([config(rms_norm_eps=float("nan"))], "a prediction that is NaN"),
        "a norm of a root below 0": ([config(rms_norm_eps=-99.0)], "a prediction that is NaN"),
        "rotary positions unknown": (
            [config(rope_parameters={"rope_type": "x", "rope_theta": 1.0})], "cannot be loaded"),
        "an unknown type": ([config(dtype="os.system")], r"config that is of no use.*config\.json"),
        "a cap that is text": ([config(final_logit_softcapping="x")], "cannot make a forward pass"),
        "a scale that is text": ([config(logits_scaling="x")], "cannot make a forward pass"),
        "a scale that is NaN": ([config(logit_scale=float("nan"))], "logits that are not its final hidden states"),
        "an attention unknown": (
            [config(_attn_implementation="x", attn_implementation="org/kernel")], "cannot be loaded"),
        "code of its own": ([config(model_type="x", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"})],
                            r"config\.json"),
        "a classifier": ([config(architectures=["BertModel"], model_type="bert")], "without|no weights"),
    }),
    *_folders("tokenizers", ("whole", "base"), {
        "cut": ([raw("tokenizer.json", lambda b: b[:500])], rf"{JSON}.*tokenizer\.json"),
        "nothing in it": ([raw("tokenizer.json", lambda _: b"{}")], "expected a readable tokenizer"),
        "of no bytes": ([raw("tokenizer.json", lambda _: b"")], rf"{JSON}.*tokenizer\.json"),
        "an unknown model": ([vocabulary(lambda t: t.update(model={"type": "x"}))], "expected a readable tokenizer"),
        "a merge of unknown pieces": ([parsed("tokenizer.json", lambda t: t["model"]["vocab"].pop("a"))],
                                      "out of vocabulary.*expected a readable tokenizer"),
        "its config cut": ([raw("tokenizer_config.json", lambda b: b[:20])], rf"{JSON}.*tokenizer_config\.json"),
        "a class that is a number": ([tokens(tokenizer_class=3)], "expected a readable tokenizer"),
        "an end that is a number": ([tokens(eos_token=5)], "expected a readable tokenizer"),
        "code of its own": ([tokens(tokenizer_class="X", auto_map={"AutoTokenizer": ["x.X", None]})], "custom code"),
        "special tokens cut": ([raw("special_tokens_map.json", lambda _: b"{")], rf"{JSON}.*special_tokens_map\.json"),
        "generation config cut": ([raw("generation_config.json", lambda _: b"{{")], rf"{JSON}.*generation_config"),
        "generation config a list": ([raw("generation_config.json", lambda _: b"[1]")], r"got \[1\], .*generation_c"),
        "an end beyond the rows": ([tokens(eos_token="<nope>")], "'<nope>' numbered 400, expected one below"),
    }),
    *_folders("no tokenizer", ("base",), {
        "neither file": ([gone("tokenizer.json"), gone("tokenizer_config.json")], "expected a readable tokenizer"),
        "only its config": ([gone("tokenizer.json")], "expected a readable tokenizer"),
    }),
    *_folders("another model than the base", ("whole",), {
        "a head missing": ([config(tie_word_embeddings=False)], r"without lm_head\.weight"),
        "a compiled model's names": ([each(lambda k, v: (f"_orig_mod.{k}", v))], r"wrapper's tensor _orig_mod"),
        "an adapter's names": ([each(lambda k, v: (f"base_model.model.{k}", v))], r"wrapper's tensor base_model"),
        "two tokens swapped": ([swap("a", "b")], r"2 of the base's 400 tokens differently \('a' is \d+, not \d+"),
        "special tokens swapped": ([swap("<|im_start|>", "<|im_end|>")], r"2 of the base's 400 tokens.*im_start"),
        "a classifier": ([config(architectures=["LlamaForSequenceClassification"])], r"got a LlamaForS.*config\.json"),
    }),
    *_folders("adapters' weights", ("adapter",), {
        "cut short": ([raw(ADAPTER, lambda b: b[:-1])], rf"{OPENED}.*adapter_model\.safetensors"),
        "no bytes": ([raw(ADAPTER, lambda _: b"")], rf"{OPENED}.*adapter_model\.safetensors"),
        "none at all": ([gone(ADAPTER)], r"no weights.*adapter_model\.safetensors"),
        "a folder": (replaced(ADAPTER, Path.mkdir), r"no weights.*adapter_model\.safetensors"),
        "only a pickle": ([gone(ADAPTER), raw("adapter_model.bin", lambda _: GARBAGE)], r"\(adapter_model\.bin\)"),
        "a pickle renamed": ([raw(ADAPTER, lambda _: GARBAGE)], rf"{OPENED}.*adapter_model\.safetensors"),
        "no tensor": ([tensors(lambda _: {}, ADAPTER)], r"no values in any tensor"),
        "half a pair": ([each(lambda k, v: ("" if k == LORA_A else k, v), ADAPTER)], "without .*lora_A"),
        "a module missing": (
            [each(lambda k, v: ("" if "0.self_attn.q" in k else k, v), ADAPTER)], "no place on this base"),
        "a layer more": ([tensors(lambda w: w | {k.replace(".1.", ".9."): v * 1 for k, v in w.items()}, ADAPTER)],
                         "layers.9.*has no place on this base"),
        "a tensor nobody asked for": ([tensors(lambda w: w | {"junk": torch.zeros(2)}, ADAPTER)], "junk.*no place"),
        "names of another": (
            [each(lambda k, v: (k.replace("model.layers", "model.lm.layers"), v), ADAPTER)], "no place"),
        "other shapes": ([every(lambda v: v[:, :-1].contiguous(), ADAPTER)], PLACE),
        "whole numbers": ([every(lambda v: v.int(), ADAPTER)], "got I32 numbers"),
        "all NaN": ([every(lambda v: v * torch.nan, ADAPTER)], "NaN or infinity in base_model"),
        "an infinity": ([one(LORA_A, lambda v: v + torch.inf, ADAPTER)], "NaN or infinity in base_model"),
        "resized": ([tensors(lambda w: w | {HEAD: torch.zeros(408, 32)}, ADAPTER)], r"\[408, 32\].*400 rows"),
        "a number for a head": ([tensors(lambda w: w | {HEAD: torch.zeros(())}, ADAPTER)], r"shape \[\] of .*lm_head"),
        "another tokenizer": ([swap("a", "b")], "2 of the base's 400 tokens differently"),
    }),
    *_folders("adapter_config.json", ("adapter",), {
        "missing": ([gone("adapter_config.json")], "expected a folder with adapter_config.json"),
        "broken": ([raw("adapter_config.json", lambda _: b"{")], rf"{JSON}.*adapter_config\.json"),
        "a list": ([raw("adapter_config.json", lambda _: b"[]")], r"got \[\], .*adapter_config\.json"),
        "nested deep": ([raw("adapter_config.json", lambda _: b"[" * 99_999)], rf"{JSON}.*adapter_config\.json"),
        "empty": ([raw("adapter_config.json", lambda _: b"{}")], r"got peft_type null.*adapter_config\.json"),
        "a method nobody knows": ([claims(peft_type="EVIL")], r"got peft_type 'EVIL', expected one that PEFT .*config"),
        "a method that is a list": ([claims(peft_type=[])], r"got peft_type \[\], expected one that PEFT"),
        "another method": ([claims(peft_type="PROMPT_TUNING")], PLACE),
        "for a classifier": ([claims(task_type="SEQ_CLS")], r"SEQ_CLS.*adapter_config\.json"),
        "no rank": ([claims(r=...)], r"got r 8, expected 4 as .*lora_A.*adapter_config\.json"),
        "another rank": ([claims(r=2)], r"got r 2, expected 4 as .*lora_A.*adapter_config\.json"),
        "a rank beyond memory": ([claims(r=2**40)], r"got r 1099511627776, expected 4"),
        "rank as text": ([claims(r="4")], r"got r '4', expected 4"),
        "no rank but null": ([claims(r=None)], r"got r null, expected 4"),
        "scale as text": ([claims(lora_alpha="x")], r"got lora_alpha 'x', expected a number.*adapter_config\.json"),
        "scale infinite": ([claims(lora_alpha=1e400)], r"got lora_alpha inf, expected a number"),
        "stability as text": ([claims(use_rslora="no")], r"got use_rslora 'no', expected true or false"),
        "modules nobody has": ([claims(target_modules=["nowhere"])], f"{PLACE}.*nowhere"),
        "no modules": ([claims(target_modules=[])], PLACE),
        "a pattern that is none": ([claims(target_modules="(")], f"{PLACE}: missing"),
        "a pattern of ranks that is none": ([claims(rank_pattern={"(": 3})], f"{PLACE}: missing"),
        "a start that PEFT cannot repeat": ([claims(init_lora_weights="corda")], r"CorDA.*adapter_config\.json"),
        "a start nobody knows": ([claims(init_lora_weights="x")], PLACE),
        "tokens beyond the rows": ([claims(trainable_token_indices=[10**9])], PLACE),
        "a call that is text": ([claims(alora_invocation_tokens=["x"])], "cannot make a forward pass"),
        "a library of choice": ([claims(megatron_config={"a": 1}, megatron_core="os")], f"{PLACE}.*security"),
        "a broken config beside it": ([raw("config.json", lambda _: b"{")], rf"{JSON}.*config\.json"),
        "a broken tokenizer beside it": ([raw("tokenizer.json", lambda _: b"{")], rf"{JSON}.*tokenizer\.json"),
        "a broken state beside it": ([raw("trainer_state.json", lambda _: b"{")], rf"{JSON}.*trainer_state\.json"),
    }),
]  # fmt: skip

# Odd and right, and the numbers the good folder's.
RIGHT: dict[str, tuple[Kind, list[Change]]] = {
    "pickles beside the weights": ("whole", [raw(n, lambda _: GARBAGE) for n in ("pytorch_model.bin", "optimizer.pt")]),
    "weights behind a link": (
        "whole", [lambda f: (f / WEIGHTS).rename(f.parent / "w"), lambda f: (f / WEIGHTS).symlink_to(f.parent / "w")]),
    "an index beside the weights": ("whole", [index(weight_map={"x": "../../etc/passwd"})]),
    "a limit that is text": ("whole", [tokens(model_max_length="x")]),
    "a limit of one": ("whole", [tokens(model_max_length=1)]),
    "a class nobody has": ("whole", [tokens(tokenizer_class="os.system")]),
    "generation settings of no sense": ("whole", [entries("generation_config.json", temperature=-5, num_beams="x")]),
    "an adapter with a pickle beside it": ("adapter", [raw("adapter_model.bin", lambda _: GARBAGE)]),
    "a step that is text": ("adapter", [entries("trainer_state.json", global_step="x")]),
    "a card that is no text": ("adapter", [raw("README.md", lambda _: b"\xff\xfe")]),
    "keys nobody knows": ("adapter", [claims(zzz=1, auto_mapping={"base_model_class": "X", "parent_library": "os"})]),
}  # fmt: skip
