"""A tiny real model and tokenizer on disk, made once a session; shapes in signatures checked in the tensor code."""

import os

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core, so a thread a process
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook(
    [
        "holdfast.kernels",
        "holdfast.metrics",
        "holdfast.meter",
        "holdfast.evidence",
        "holdfast.losses",
        "holdfast.training",
    ],
    "beartype.beartype",
)

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer Llama (tied head, float32) and a byte-level tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHAT)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=0, bos_token_id=None, pad_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


TEXT = [
    "Kelp grows on rock, and the holdfast keeps it there whatever the current does.",
    "A tide that pulls for an hour may move what a storm did not.",
    "Each diver counted seven stalks; together the three of them counted twenty-one.",
    "In spring the fronds are short and green, by autumn they are long and brown.",
    "The lighthouse was built in 1843 and has been painted eleven times since.",
    "Nothing that is learned in one season is kept without some care in the next.",
]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """(target, retained): JSONL of conversations and of plain texts, distinct documents of several lengths."""
    import json

    target, retained = tmp_path / "sums.jsonl", tmp_path / "kelp.jsonl"
    rows = [
        {"messages": [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {"role": "assistant", "content": f"{a} + {b} = {a + b}."},
        ]}
        for a in range(6) for b in range(6)
    ]  # fmt: skip
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    retained.write_text(
        "".join(json.dumps({"text": " ".join(TEXT[i:] + TEXT[: i // 2])}) + "\n" for i in range(len(TEXT)))
    )
    return target, retained


@pytest.fixture
def kelp(texts: tuple[Path, Path]) -> Path:
    """The retained text alone."""
    return texts[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own, in place of the user's."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
