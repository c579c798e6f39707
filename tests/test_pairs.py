"""Any pair of models (every PEFT method, whole models, other architectures) against two naive ones in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import holdfast
import naive
from holdfast import audit, models
from holdfast.corpora import read_corpus
from holdfast.errors import ModelError
from tuned import ALL, LM, adapter, compared, shaken, tuned_model

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.filterwarnings("ignore"),  # of the libraries that the naive side uses as anyone would
]


METHODS: dict[str, tuple[peft.PeftConfig, str, bool]] = {
    # name: (config, method expected, merged)
    "lora": (peft.LoraConfig(r=4, target_modules=ALL, **LM), "cached vectors", True),
    "rslora with bias": (peft.LoraConfig(r=4, use_rslora=True, target_modules=ALL, **LM), "cached vectors", True),
    "dora": (peft.LoraConfig(r=4, use_dora=True, target_modules=ALL, **LM), "cached vectors", True),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **LM),
        "cached vectors", True,
    ),
    "oft": (peft.OFTConfig(oft_block_size=8, r=0, target_modules=["q_proj", "v_proj"], **LM), "cached vectors", True),
    "vera": (peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"], **LM), "cached vectors", True),
    "loha": (peft.LoHaConfig(r=4, target_modules=ALL, **LM), "cached vectors", True),
    "no merging": (peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **LM), "cached vectors", False),
    "prompt tuning": (peft.PromptTuningConfig(num_virtual_tokens=5, **LM), "cached vectors", False),
    "prefix tuning": (peft.PrefixTuningConfig(num_virtual_tokens=5, **LM), "cached vectors", False),
    "p-tuning": (peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **LM), "cached vectors", False),
    "lora on the head": (peft.LoraConfig(r=4, target_modules=[*ALL, "lm_head"], **LM), "cached hidden states", False),
    "a trained head": (
        peft.LoraConfig(r=4, target_modules=ALL, modules_to_save=["lm_head"], **LM),
        "cached hidden states",
        False,
    ),
    "trained tokens": (
        peft.LoraConfig(r=4, target_modules=ALL, trainable_token_indices=[5, 9], **LM), "cached hidden states", False,
    ),
    "pissa": (peft.LoraConfig(r=4, init_lora_weights="pissa", target_modules=ALL, **LM), "cached vectors", True),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_any_method_equals_two_naive_models(method: str, tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """Trap 5 among them: a head that was trained is never measured by vectors of the base's."""
    config, expected_method, merged = METHODS[method]
    folder = adapter(tiny, config, tmp_path / "adapter")
    report = holdfast.measure(base=str(tiny), tuned=str(folder), texts=[str(kelp)], context=24, dtype="float32")
    corpus = read_corpus(str(kelp)).sample(None)
    expected = naive.sums(naive.whole(tiny), naive.adapted(tiny, folder), corpus, tokenizer=str(tiny), context=24)
    compared(report["kelp"], expected)
    assert report.kl_base_tuned.value > 1e-3
    (checkpoint,) = report.checkpoints
    assert (checkpoint.method, checkpoint.merged) == (expected_method, merged)


WHOLE: dict[str, tuple[Callable[[Any], None], str]] = {
    "layers alone": (lambda m: shaken(m, std=0.02, only=lambda name: "layers" in name), "cached vectors"),
    "everything, head tied": (lambda m: shaken(m, std=0.02), "cached hidden states"),
    "two tokens more": (lambda m: m.resize_token_embeddings(m.config.vocab_size + 2), "cached hidden states"),
}


@pytest.mark.parametrize("change", WHOLE)
def test_a_whole_model_equals_two_naive_models(change: str, tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """Trap 5: with a tied head, training the embeddings trained the head."""
    make, method = WHOLE[change]
    folder = tuned_model(tiny, tmp_path / "tuned", make)
    report = holdfast.measure(base=str(tiny), tuned=str(folder), texts=[str(kelp)], context=24, dtype="float32")
    expected = naive.sums(
        naive.whole(tiny), naive.whole(folder), read_corpus(str(kelp)).sample(None), tokenizer=str(tiny), context=24
    )
    compared(report["kelp"], expected)
    assert report.checkpoints[0].method == method


@pytest.mark.parametrize("init", ["pissa", "olora", "a trained head"])
def test_the_base_is_itself_and_no_model_with_its_adapter_switched_off(
    init: str, tiny: Path, tmp_path: Path, kelp: Path
) -> None:
    """Trap 2: an adapter that changed the base's own weights, or is kept on a base that did; an adapter is no base."""
    options: dict[str, Any] = (
        {"modules_to_save": ["lm_head"]} if init == "a trained head" else {"init_lora_weights": init}
    )
    folder = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **options, **LM), tmp_path / "adapter")
    on_another = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "another")
    corpus = read_corpus(str(kelp)).sample(None)
    tuned = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), folder
    ).eval()

    def switched_off(ids: torch.Tensor) -> torch.Tensor:
        with tuned.disable_adapter():
            return tuned(ids).logits[0].double()

    false = naive.sums(switched_off, naive.adapted(tiny, folder), corpus, tokenizer=str(tiny), context=24)
    true = naive.sums(naive.whole(tiny), naive.adapted(tiny, folder), corpus, tokenizer=str(tiny), context=24)
    if init != "a trained head":  # its untouched copy is what PEFT switches back to
        assert abs(false["base_nll"].sum() - true["base_nll"].sum()) > 0.1
    report = holdfast.measure(base=str(tiny), tuned=str(folder), texts=[str(kelp)], context=24, dtype="float32")
    compared(report["kelp"], true)
    with pytest.raises(ModelError, match="got an adapter, expected a whole model as the base"):
        holdfast.measure(base=str(on_another), tuned=str(folder), texts=[str(kelp)], dtype="float32")


def test_a_tuned_model_without_the_bases_unused_rows(tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """Bases often have rows that no token uses; some trainers cut them off. Cutting used ones is refused."""
    padded = tuned_model(tiny, tmp_path / "base", lambda m: m.resize_token_embeddings(m.config.vocab_size + 5))
    cut = tuned_model(padded, tmp_path / "cut", lambda m: m.resize_token_embeddings(m.config.vocab_size - 5))
    report = holdfast.measure(base=str(padded), tuned=str(cut), texts=[str(kelp)], context=24, dtype="float32")
    expected = naive.sums(
        naive.whole(padded), naive.whole(cut), read_corpus(str(kelp)).sample(None), tokenizer=str(tiny), context=24
    )
    compared(report["kelp"], expected)
    short = tuned_model(tiny, tmp_path / "short", lambda m: m.resize_token_embeddings(100))
    with pytest.raises(ModelError, match="expected one below the model's 100"):
        holdfast.measure(base=str(tiny), tuned=str(short), texts=[str(kelp)], dtype="float32")


def refusal(model: Path, bits: str) -> str:
    """Why a base of 32 numbers a row is not taken: too narrow for 4 bits, on a CPU with AVX-512. Empty elsewhere."""
    try:
        models.load_base(str(model), dtype="float32", device="cpu", quantisation=bits)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_an_adapter_on_a_quantised_base(bits: str, tiny: Path, tmp_path: Path, kelp: Path) -> None:
    """bitsandbytes for real: quantisation damage and forgetting are two numbers, and nothing is merged."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    told = refusal(tiny, bits)
    assert not told or (bits == "4bit" and "cannot make a forward pass" in told)
    tiny = other_architecture("llama", tmp_path / "wide", tiny)
    folder = adapter(tiny, peft.LoraConfig(r=4, target_modules=ALL, **LM), tmp_path / "adapter")
    report = holdfast.measure(
        base=str(tiny), tuned=str(folder), quantised=bits, texts=[str(kelp)], context=24, dtype="float32"
    )
    assert 1e-5 < report.quantisation["kelp"].kl_base_tuned.value < report["kelp"].kl_base_tuned.value
    assert report.checkpoints[0].merged is False
    if bits == "8bit":  # whose outliers depend on what else is in a batch: no other batch gives the same numbers
        return
    options = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    quantised = AutoModelForCausalLM.from_pretrained(
        tiny, dtype=torch.float32, quantization_config=options, device_map={"": "cpu"}
    ).eval()
    for part in quantised.modules():  # else it multiplies in bf16 on a CPU that has units for it
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    alone = naive.sums(
        naive.whole(tiny), lambda ids: quantised(ids).logits[0].double(), read_corpus(str(kelp)).sample(None),
        tokenizer=str(tiny), context=24,
    )  # fmt: skip
    compared(report.quantisation["kelp"], alone, tolerance=1e-4)


def test_a_quantised_base_without_bitsandbytes_is_said_so(
    tiny: Path, kelp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="needs bitsandbytes: pip install bitsandbytes"):
        holdfast.measure(base=str(tiny), tuned=str(tiny), quantised="4bit", texts=[str(kelp)], dtype="float32")


WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 2}
"""What bitsandbytes' products on a CPU ask for."""


def other_architecture(kind: str, folder: Path, tiny: Path) -> Path:
    """A tiny random model whose head is not the plain matrix of a Llama, with the tiny model's tokenizer."""
    size = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": 0,
        "pad_token_id": None, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**(size | WIDE))),
        "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**size, logits_scaling=3.0)),
        "gemma2": lambda: transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**size, head_dim=16, final_logit_softcapping=5.0, attn_logit_softcapping=50.0)
        ),
        "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**(size | {"num_key_value_heads": 2}))),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        "gpt-neox": lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(**{k: v for k, v in size.items() if k != "num_key_value_heads"})
        ),
    }[kind]()
    shaken(made, std=0.1)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("granite", "cached vectors"), ("gpt2", "cached vectors"), ("gpt-neox", "cached vectors"),
        ("gemma2", "cached hidden states"), ("phi", "cached hidden states"),
    ],
)  # fmt: skip
def test_other_architectures_equal_two_naive_models(
    kind: str, method: str, tiny: Path, tmp_path: Path, kelp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[str] = []
    real = audit.observe
    monkeypatch.setattr(audit, "observe", lambda *a, **k: observed.append(k["kind"]) or real(*a, **k))
    base = other_architecture(kind, tmp_path / "base", tiny)
    layers = ("layers.", ".h.", "layer.")
    folder = tuned_model(
        base, tmp_path / "tuned", lambda m: shaken(m, std=0.03, only=lambda n: any(part in n for part in layers))
    )
    report = holdfast.measure(base=str(base), tuned=str(folder), texts=[str(kelp)], context=24, dtype="float32")
    expected = naive.sums(
        naive.whole(base), naive.whole(folder), read_corpus(str(kelp)).sample(None), tokenizer=str(base), context=24
    )
    compared(report["kelp"], expected)
    assert report.checkpoints[0].method == method
    assert report.kl_base_tuned.value > 1e-4
    assert [f"cached {'hidden states' if kind == 'states' else kind}" for kind in observed] == [method]  # in one pass
