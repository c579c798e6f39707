"""What two models' settings make them compute differently from the same weights.

Settings are compared with their classes' defaults filled in, so one that only one of two files names is not lost, and
one that a file names with its default is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from holdfast import models
from holdfast.errors import ModelError, as_ours

# The last two are `_rope`'s.
_FUNCTION = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_act",
    "hidden_activation", "activation_function", "max_position_embeddings", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "attention_chunk_size", "partial_rotary_factor", "rms_norm_eps",
    "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "attn_logit_softcapping", "final_logit_softcapping",
    "query_pre_attn_scalar", "logits_scaling", "logit_scale", "embedding_multiplier", "residual_multiplier",
    "attention_multiplier", "num_experts_per_tok", "norm_topk_prob", "rope theta", "rope scaling",
)  # fmt: skip
_APART = "so it is not a fine-tune of this base as far as the files tell, and the number compares two different models"
_LAYOUT = {
    "model_type": f"it is another architecture, {_APART}",
    "hidden_size": f"its layers have another width, {_APART}",
    "tie_word_embeddings": "only one of the two predicts with its input embeddings; what that changed is in the number",
}


def read(path: Path) -> dict[str, Any]:
    """A language model's settings, of a folder or GGUF file.

    Raises:
        ModelError: there are none, or none that transformers knows.
    """
    config = models.read_config(path)
    with as_ours(ModelError, lambda why: f"got a text_config that is of no use ({why}), at {path}"):
        filled: dict[str, Any] = config.get_text_config().to_dict()
    return filled


def differences(*, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What differs between two models' settings, and what that means for a number of the pair."""
    before, after = _rope(base), _rope(tuned)
    changed = [key for key in (*_LAYOUT, *_FUNCTION) if before.get(key) != after.get(key)]
    for key in (key for key in _LAYOUT if key in changed):
        yield f"{key} is {after.get(key)!r} in the tuned model and {before.get(key)!r} in the base", _LAYOUT[key]
    differ = [f"{key} {after.get(key)!r} instead of {before.get(key)!r}" for key in changed if key not in _LAYOUT]
    if differ and "model_type" not in changed:
        consequence = "such a setting can change predictions without any training, and that counts as forgetting"
        yield f"the configs differ: {', '.join(differ)}", consequence


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with rotary positions' base frequency and scaling, wherever it keeps them, and floats to six digits."""
    found = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in config.items()}
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    scaling = dict(scaling) if isinstance(scaling, dict) else {}
    theta = scaling.pop("rope_theta", config.get("rope_theta"))
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    rope = {"rope theta": theta, "rope scaling": None if kind == "default" else {"rope_type": kind, **scaling}}
    return found if theta is None else found | rope
