"""What could be mistaken for forgetting: real tuned folders, each odd in one way, and what is said of them."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from damage import Change, claims, config, copied, each, entries, gone, raw, tensors, tokens, vocabulary
from holdfast import models, sources
from holdfast.checks import check_pair, check_weights
from holdfast.errors import ModelError
from holdfast.forgetting import Finding
from tuned import LM, adapter, tuned_model

# Of peft, in making and loading adapters.
PEFT = "(`is_gradient|Model has `tie_word|Setting `save_embedding|`lora_bias=True`|Adapter .default)"
pytestmark = pytest.mark.filterwarnings(f"ignore:{PEFT}")

LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj"], **LM}


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fully fine-tuned model with its tokenizer, as `save_pretrained` leaves it."""

    def train(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(1.1)

    return tuned_model(tiny, tmp_path_factory.mktemp("whole") / "tuned", train)


@pytest.fixture(scope="module")
def plain(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary LoRA adapter with the tokenizer beside it, as trainers save them."""
    folder = adapter(tiny, peft.LoraConfig(**LORA), tmp_path_factory.mktemp("plain") / "adapter")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def found(base: Path, tuned: Path, *, quantised: str | None = None, spec: str | None = None) -> tuple[Finding, ...]:
    (candidate,) = sources.candidates(tuned, spec=str(tuned))
    tokenizer = models.load_tokenizer(str(base))
    return check_pair(base=spec or str(base), path=base, candidate=candidate, quantised=quantised, tokenizer=tokenizer)


def only(base: Path, tuned: Path, **options: Any) -> str:
    (finding,) = found(base, tuned, **options)
    return str(finding)


@pytest.mark.parametrize("value", [None, "x", [1], {}, {"x": {}}, -1, 1e400, "a\0b", True])
def test_nonsense_is_never_our_bug(value: Any, tiny: Path, whole: Path, plain: Path, tmp_path: Path) -> None:
    more = {"rope_scaling", "text_config", "quantization_config", "auto_map", "kasa_config"}
    for source, name in ((whole, "config.json"), (plain, "adapter_config.json")):
        folder = copied(source, tmp_path / name, gone("tokenizer.json"))
        before = (folder / name).read_bytes()
        for key in {*json.loads(before), *more}:
            entries(name, **{key: value})(folder)
            with contextlib.suppress(ModelError):
                assert all(str(finding) for finding in found(tiny, folder))
            (folder / name).write_bytes(before)


def test_a_clean_pair_has_no_findings(tiny: Path, whole: Path, plain: Path, tmp_path: Path) -> None:
    for tuned in (tiny, whole, plain):
        assert found(tiny, tuned) == found(tiny, tuned, quantised="4bit") == ()
    assert found(tiny, copied(plain, tmp_path, gone("tokenizer.json"), gone("tokenizer_config.json"))) == ()
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert found(tiny, tmp_path / "parts") == ()
    with pytest.raises(ModelError, match=r"got an adapter, expected a whole model as the base"):
        found(plain, plain)


def test_no_weights_are_loaded(tiny: Path, whole: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that makes a model or reads a tensor's values is reached."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were loaded")

    for place in ("holdfast.models.load_base", "safetensors.torch.load_file", "torch.nn.Module.__init__", "torch.load"):
        monkeypatch.setattr(place, never)
    assert found(tiny, whole) == found(tiny, plain) == ()


def begin(tokenizer: dict[str, Any]) -> None:
    one, text = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [one, text], "pair": [one, text, text], "special_tokens": special,
    }  # fmt: skip


HEADED = tensors(lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] * 1})
FOUND: dict[str, tuple[list[Change], str]] = {
    "another layout": ([each(lambda k, v: (k.replace("q_proj", "query"), v))], ""),
    "a larger vocabulary": ([config(vocab_size=408)], r"408 rows, the base's 400: .* new rows counts as moved"),
    "a smaller vocabulary": ([config(vocab_size=392)], r"392 rows, the base's 400: .* over the rows both have"),
    "another width": ([config(hidden_size=48)], r"hidden_size is 48 .* 32 in the base: .*not a fine-tune of this base"),
    "another kind": ([config(model_type="mistral")], r"model_type is 'mistral'.*as far as the files tell"),
    "an untied head": ([config(tie_word_embeddings=False), HEADED], r"tie_word_embeddings is False .*: only one of"),
    "bfloat16": ([each(lambda k, v: (k, v.bfloat16()))], r"in BF16, the base in F32: the rounding .*in bfloat16"),
    "float16": ([each(lambda k, v: (k, v.half()))], r"saved in F16, the base in F32: .* part of the number$"),
    "GPTQ": ([config(quantization_config={"quant_method": "gptq"})], r"weights are quantised \(gptq\): .*--quantised"),
    "bitsandbytes": ([config(quantization_config={"load_in_4bit": True})], r"quantised \(bitsandbytes\)"),
    "rope theta": ([config(rope_parameters=..., rope_theta=1e6)], r"rope theta 1000000\.0 instead of 10000\.0: "),
    "rope scaling": (
        [config(rope_parameters={"type": "linear", "factor": 2.0}, rope_theta=10000.0)],
        r"differ: rope scaling \{'rope_type': 'linear', 'factor': 2\.0\} instead of None: .*counts as forgetting",
    ),
    "rope in old words": ([config(rope_parameters=..., rope_theta=10000.0, rope_scaling=None)], ""),
    "nearly the same": ([config(rms_norm_eps=9.99999997e-07, use_cache=False, transformers_version="4.40.0")], ""),
    "settings": ([config(rms_norm_eps=1e-5, hidden_act="gelu")], r"hidden_act 'gelu' instead of 'silu', rms_norm_eps"),
    "a default left out": ([config(rms_norm_eps=..., head_dim=..., hidden_act=...)], ""),
    "a setting left out": ([config(num_key_value_heads=...)], r"num_key_value_heads 4 instead of 2: "),
    "a setting put in": ([config(sliding_window=64)], r"sliding_window 64 instead of None: .*counts as forgetting"),
    "positions": ([config(max_position_embeddings=4096)], r"max_position_embeddings 4096 instead of 2048: "),
    "code": ([config(auto_map={"AutoModelForCausalLM": "x.Y"})], r"code of its own \(auto_map.*it is never run"),
    "a script": ([raw("modeling_x.py", lambda _: b"exit()")], r"code of its own \(modeling_x\.py\): it is never run"),
    "no tokenizer": ([gone("tokenizer.json")], r"carries no tokenizer: .*base's tokenizer"),
    "a template": ([raw("chat_template.jinja", lambda b: b + b"!")], r"chat templates differ: .*unfamiliar form"),
    "an end": ([tokens(eos_token="<|im_end|>")], r"eos_token is '<\|im_end\|>' .*'<\|end\|>' in the base: every"),
    "a beginning": ([tokens(bos_token="<|end|>")], r"bos_token is '<\|end\|>' .* None in the base: texts begin"),
    "padding": ([tokens(pad_token="<|end|>")], r"pad_token is '<\|end\|>' .*: padding is never scored"),
    "spaces": ([vocabulary(lambda t: t["pre_tokenizer"].update(add_prefix_space=True))], r"cut text differently.*tide"),
    "a token before": ([vocabulary(begin)], r"different special tokens around a text: "),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_could_be_mistaken_for_forgetting_is_said(case: str, tiny: Path, whole: Path, tmp_path: Path) -> None:
    """Trap 4: tokenizers, templates, ends of sequence and vocabularies that differ, and all else that files tell."""
    changes, message = FOUND[case]
    said = " ".join(map(str, found(tiny, copied(whole, tmp_path, *changes))))
    assert re.search(message, said) if message else not said, said
    assert str(tmp_path) not in said  # the same of every checkpoint of a folder, so that it is said once


def test_new_and_renamed_special_tokens_are_said_and_not_refused(tiny: Path, whole: Path, tmp_path: Path) -> None:
    kelp = {"id": 400, "content": "<|kelp|>"}
    new = vocabulary(lambda t: t["added_tokens"].append(t["added_tokens"][0] | kelp))
    more, adds = map(str, found(tiny, copied(whole, tmp_path / "new", new, config(vocab_size=401))))
    assert "vocabulary has 401 rows" in more
    assert adds.startswith("the tuned model's tokenizer adds tokens (1: <|kelp|>): ")
    rename = raw("tokenizer.json", lambda b: b.replace(b"<|im_start|>", b"<|tool|>"))
    lacks, adds = map(str, found(tiny, copied(whole, tmp_path / "renamed", rename)))
    assert lacks.startswith("the tuned model's tokenizer lacks tokens (1: <|im_start|>)")
    assert adds.startswith("the tuned model's tokenizer adds tokens (1: <|tool|>)")


def test_a_quantised_base_is_said_unless_it_was_named_so(tiny: Path, whole: Path, plain: Path, tmp_path: Path) -> None:
    quantised = copied(whole, tmp_path, config(quantization_config={"quant_method": "awq"}))
    assert "the base is itself quantised (awq)" in only(quantised, whole)
    assert found(tiny, quantised, quantised=str(quantised)) == ()
    card = b"The following `bitsandbytes` quantization config was used during training:\n- load_in_4bit: True"
    kept = config(quantization_config={"quant_method": "bitsandbytes"})
    for name, change in (("card", raw("README.md", lambda _: card)), ("config", kept)):
        folder = copied(plain, tmp_path / name, change)
        assert only(tiny, folder).startswith("the adapter was trained on a quantised base: ")
        assert found(tiny, folder, quantised="4bit") == ()


# Made by peft with these settings; or, where the name begins with "says", an ordinary one whose config says so.
ADAPTERS: dict[str, tuple[dict[str, Any] | peft.PeftConfig, str | None]] = {
    "LoRA": ({}, None),
    "DoRA": ({"use_dora": True}, None),
    "rank-stabilised": ({"use_rslora": True}, None),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, None),
    "biases of its own": ({"lora_bias": True}, None),
    "a norm": ({"modules_to_save": ["norm"]}, None),
    "IA3": (peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], **LM), None),
    "prompt": (peft.PromptTuningConfig(num_virtual_tokens=3, **LM), None),
    "PiSSA": ({"init_lora_weights": "pissa"}, r"\(pissa\): the base is loaded as itself"),
    "fast PiSSA": ({"init_lora_weights": "pissa_niter_4"}, r"\(pissa_niter\): .*random method"),
    "OLoRA": ({"init_lora_weights": "olora"}, r"\(olora\): .*PEFT repeats this"),
    "a saved head": ({"modules_to_save": ["lm_head"]}, r"output head of its own: each .*its own"),
    "a trained head": ({"target_modules": ["q_proj", "lm_head"]}, r"output head of its own"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, r"input embeddings of its own"),
    "tokens": ({"trainable_token_indices": [1, 2]}, r"vectors of single tokens: a text without"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, r"aLoRA\): without them it does nothing"),
    "says another": ({"base_model_name_or_path": "org/other"}, r"trained on org/other, not on .*whatever differs"),
    "says none": ({"base_model_name_or_path": None}, r"does not name its base"),
    "says a broken name": ({"base_model_name_or_path": "a\0b"}, r"trained on ab, not on"),
    "says LoftQ": ({"init_lora_weights": "loftq"}, r"\(loftq\): .*quantises the base"),
    "says LoRA-GA": ({"init_lora_weights": "lora_ga"}, r"\(lora_ga\): PEFT does not repeat this"),
    "says KaSA": ({"kasa_config": {"beta": 1e-4}}, r"\(kasa\): .*singular values"),
    "says stacked": ({"layer_replication": [[0, 2], [1, 2]]}, r"stacks the base's layers anew"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_of_peft(case: str, tiny: Path, plain: Path, tmp_path: Path) -> None:
    made, message = ADAPTERS[case]
    if isinstance(made, peft.PeftConfig):
        folder = adapter(tiny, made, tmp_path / "adapter")
    elif case.startswith("says"):
        folder = copied(plain, tmp_path, claims(**made))
    else:
        folder = adapter(tiny, peft.LoraConfig(**LORA | made), tmp_path / "adapter")
    said = " ".join(map(str, found(tiny, folder)))
    assert re.search(message, said) if message else not said, said


def test_what_is_said_of_loading_is_what_peft_does(tiny: Path, tmp_path: Path) -> None:
    ids, base = torch.arange(3, 40)[None], lambda: AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for init, repeats in (("pissa", True), ("olora", True), ("pissa_niter_4", False)):
        trained = peft.get_peft_model(base(), peft.LoraConfig(init_lora_weights=init, **LORA)).eval()
        trained.save_pretrained(tmp_path / init)
        again = peft.PeftModel.from_pretrained(base(), str(tmp_path / init)).eval()
        with torch.no_grad():
            assert torch.allclose(trained(ids).logits, again(ids).logits, atol=1e-4) == repeats


def test_trained_biases_are_said(tiny: Path, tmp_path: Path) -> None:
    base = copied(tiny, tmp_path, config(attention_bias=True))
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(base)
    made = adapter(base, peft.LoraConfig(bias="lora_only", **LORA), tmp_path / "adapter")
    assert only(base, made).startswith("the adapter trained biases of the base: ")


def test_one_base_under_several_names(tiny: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "locate", lambda spec: Path(spec) if Path(spec).exists() else tiny)  # a hub's answer
    folder, link = copied(plain, tmp_path), tmp_path / "link"
    link.symlink_to(tiny)

    def said(name: str, spec: str, **new: Any) -> str:
        claims(base_model_name_or_path=name, **new)(folder)
        return " ".join(map(str, found(tiny, folder, spec=spec)))

    assert said(str(link), str(tiny)) == said(f"{tiny}/", str(tiny)) == ""
    assert said("/hub/models--org--kelp/snapshots/12ab/", "org/kelp") == said("org/kelp", "org/kelp@12ab") == ""
    assert "trained on revision 9f" in said("org/kelp", "org/kelp@12ab", revision="9f")
    assert "trained on a quantised base" in said("org/x-bnb-4bit", "org/x-bnb-4bit")
    twin = str(shutil.copytree(tiny, tmp_path / "twin"))
    assert "architecture and sizes are the same" in said(twin, str(tiny))
    assert found(tiny, folder, quantised=twin) == ()


def test_our_own_runs_know_their_base(plain: Path, tmp_path: Path) -> None:
    (candidate,) = sources.candidates(Path(shutil.copytree(plain, tmp_path / "run/adapter")), spec="run")
    assert check_weights(candidate, "aa", "float32") == ()
    entries("provenance.json", fingerprints={"weights": "aa"})(tmp_path / "run")
    config(dtype="float32")(tmp_path / "run")
    assert check_weights(candidate, "aa", "float32") == check_weights(candidate, "bb", "bfloat16") == ()
    assert "other weights of its base" in str(check_weights(candidate, "bb", "float32")[0])
    raw("provenance.json", lambda _: b"{")(tmp_path / "run")
    with pytest.raises(ModelError, match=r"provenance\.json"):
        check_weights(candidate, "bb", "float32")
