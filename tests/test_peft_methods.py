"""Every method that PEFT has, by name: it trains, comes off without a trace, and leaves what was trained."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from holdfast import adapters, models
from holdfast.adapters import _NOT_TRAINED
from holdfast.methods import Peft
from test_adapters import IDS, base_of, states
from test_methods import LINEAR

MAPS: dict[str, Any] = {"target_modules": LINEAR}
NORMS = {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]}
VIRTUAL = {"num_virtual_tokens": 4}
SIZED = {
    "C3A": MAPS | {"block_size": 16}, "CARTRIDGE": VIRTUAL, "FOURIERFT": MAPS | {"n_frequency": 100},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": NORMS, "MISS": MAPS | {"r": 8}, "PREFIX_TUNING": VIRTUAL, "PROMPT_TUNING": VIRTUAL,
    "PSOFT": MAPS | {"r": 8}, "P_TUNING": VIRTUAL, "ROAD": MAPS | {"group_size": 16}, "SHIRA": MAPS | {"r": 8},
    "VBLORA": MAPS | {"num_vectors": 32, "vector_length": 16}, "WAVEFT": MAPS | {"n_frequency": 100},
}  # fmt: skip
"""What fits a model 32 wide, where PEFT's defaults do not."""

BY_ROUNDING = {"DEFT", "FROD", "HRA", "OSF"}
FAR = {"C3A", "CARTRIDGE", "FOURIERFT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "UNILORA", "VBLORA"}
"""That begin elsewhere than the base: by less than 1e-5 of a hidden state, and by more."""
HEADED = {"TRAINABLE_TOKENS"}
"""That change a tied output head, which is refused."""

KNOWN = sorted({kind.value for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING} - _NOT_TRAINED.keys() - HEADED)


def test_what_is_not_trained_is_still_pefts() -> None:
    assert _NOT_TRAINED.keys() <= {kind.value for kind in peft.PeftType}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # FROD's
@pytest.mark.parametrize("kind", KNOWN)
def test_a_method_by_name(kind: str, tiny: Path, tmp_path: Path) -> None:
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="AdaMSS needs scikit-learn")
    method = Peft(method="peft", peft_type=kind, config=SIZED.get(kind, MAPS))
    assert list(adapters._mistakes(method)) == []
    base = base_of(tiny)
    before, weights = states(base), models.weights_fingerprint(base)
    tuned = adapters.attach_adapter(base, method, seed=1)
    start = float((states(tuned.eval()) - before).abs().max())
    assert (start == 0) == (kind not in BY_ROUNDING | FAR), start
    assert (start > 1e-5) == (kind in FAR), start
    tuned.train()
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):
        hidden = models.hidden_states(tuned, ids=IDS, positions=torch.arange(IDS.shape[1])[None])
        loss = torch.nn.functional.cross_entropy(hidden[0, :-1] @ models.output_head(tuned).T, IDS[0, 1:])
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
    expected = states(tuned.eval())
    assert not torch.equal(expected, before)
    adapters.save_adapter(tuned, tmp_path / "adapter")
    loaded = adapters.load_adapter(base_of(tiny), str(tmp_path / "adapter"))
    assert torch.allclose(states(loaded), expected, atol=1e-5)
    adapters.detach_adapter(tuned)
    assert models.weights_fingerprint(base) == weights
    assert torch.equal(states(base), before)
