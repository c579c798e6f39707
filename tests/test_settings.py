"""Settings that make two models compute differently, from configs and from the headers of GGUF files."""

import re
from pathlib import Path
from typing import Any

import gguf
import pytest

from holdfast import models, settings, sources
from holdfast.checks import check_pair
from holdfast.errors import ModelError
from tuned import write_gguf


def said_of(base: Path, tuned: Path) -> str:
    (candidate,) = sources.candidates(tuned, spec=str(tuned))
    tokenizer = models.load_tokenizer(str(base))
    pair = check_pair(base=str(base), path=base, candidate=candidate, quantised=None, tokenizer=tokenizer)
    return " ".join(map(str, pair))


def test_defaults_are_filled_in_and_no_weights_needed(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}')
    found = settings.read(tmp_path)
    assert (found["head_dim"], found["hidden_act"], found["num_key_value_heads"]) == (16, "silu", 4)
    (tmp_path / "config.json").write_text('{"model_type": "seaweed"}')
    with pytest.raises(ModelError, match=r"of no use .*seaweed.*, at"):
        settings.read(tmp_path)


def test_a_setting_of_one_model_alone_is_a_difference() -> None:
    base = {"model_type": "llama", "hidden_size": 64, "rope_theta": 1e4}
    assert list(settings.differences(base=base, tuned=base | {"use_cache": True})) == []
    for one, two in (({}, {"sliding_window": 64}), ({"sliding_window": 64}, {})):
        ((what, consequence),) = settings.differences(base=base | one, tuned=base | two)
        assert f"sliding_window {two.get('sliding_window')} instead of {one.get('sliding_window')}" in what
        assert "counts as forgetting" in consequence


GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "as it is": ({}, ""),
    "quantised": (
        {"kinds": {"token_embd": gguf.GGMLQuantizationType.Q8_0}},
        r"weights are quantised \(Q8_0\): .*mixes",
    ),
    "half precision": ({"kinds": {"": gguf.GGMLQuantizationType.F16}}, r"saved in F16, the base in F32"),
    "rope theta": ({"settings": {"rope_parameters": {"rope_theta": 1e6}}}, r"rope theta 1000000\.0 instead of 10000"),
    "a norm's": (
        {"settings": {"rms_norm_eps": 1e-4}},
        r"rms_norm_eps 0\.0001 instead of 1e-06: .*counts as forgetting",
    ),
    "positions": ({"settings": {"max_position_embeddings": 4096}}, r"max_position_embeddings 4096 instead of 2048"),
    "a template": ({"template": "{{ messages }}"}, r"chat templates differ: .*unfamiliar form"),
    "an end": ({"end": 2}, r"eos_token is '<\|im_end\|>' .*'<\|end\|>' in the base"),
}


@pytest.mark.parametrize("case", GGUF)
def test_gguf_files_are_checked_against_folders_and_each_other(case: str, tiny: Path, tmp_path: Path) -> None:
    options, message = GGUF[case]
    base, tuned = write_gguf(tiny, tmp_path / "base.gguf"), write_gguf(tiny, tmp_path / "tuned.gguf", **options)
    for one in (tiny, base):
        said = said_of(one, tuned)
        assert re.search(message, said) if message else not said, said


def test_gguf_files_that_lack_something_are_refused(tiny: Path, tmp_path: Path) -> None:
    base = write_gguf(tiny, tmp_path / "base.gguf")
    tuned = write_gguf(tiny, tmp_path / "tuned.gguf", without="blk.1.ffn_up")
    with pytest.raises(ModelError, match=r"without blk\.1\.ffn_up\.weight \(1 missing\), .*tuned\.gguf"):
        said_of(base, tuned)
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight.*tuned\.gguf"):
        models.load_base(str(tuned), dtype="float32", device="cpu")
    content = base.read_bytes()
    for end in (0, 3, 20, 300, len(content) // 2, len(content) - 1):
        base.write_bytes(content[:end])
        with pytest.raises(ModelError, match=r"unreadable weights .*whole, at .*base\.gguf"):
            said_of(tiny, base)
