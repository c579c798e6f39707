"""LoRA's map against PEFT's own, in float64 and as it is used; and that everything else stays PEFT's."""

import copy

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear

from holdfast.lora import quicken


class Two(torch.nn.Module):
    """Two maps, the first with a bias, the way PEFT finds them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(6, 10, dtype=dtype), torch.nn.Linear(10, 6, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))  # type: ignore[no-any-return]


def pair(dtype: torch.dtype, **config: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model with LoRA as PEFT computes it, and a copy as we do; both factors have been trained."""
    torch.manual_seed(0)
    made = peft.get_peft_model(
        Two(dtype),
        peft.LoraConfig(r=3, lora_alpha=2, **{"target_modules": ["up", "down"], **config}),
        autocast_adapter_dtype=True,
    )  # type: ignore[arg-type]
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ours = copy.deepcopy(made)
    quicken(ours)
    return made, ours


def quick(model: torch.nn.Module) -> int:
    """Maps that are ours."""
    return sum("forward" in vars(layer) for layer in model.modules() if isinstance(layer, Linear))


@pytest.mark.parametrize("rslora", [False, True])
def test_values_and_gradients_are_pefts(rslora: bool) -> None:
    theirs, ours = pair(torch.float64, use_rslora=rslora)
    assert quick(ours) == 2
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for model in (theirs, ours):
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        made = model(x)
        found.append([made, *torch.autograd.grad(made.square().sum(), [x, *learned])])
    assert len(found[0]) == 6
    for mine, other in zip(*found, strict=True):
        assert mine.dtype == other.dtype
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-12)


def test_bf16_maps_learn_in_float32() -> None:
    theirs, ours = pair(torch.bfloat16)
    x = torch.randn(40, 6)
    gradients = []
    for model in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            model(x).float().square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for mine, other in zip(*gradients, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()  # bf16 has 8 bits


def test_what_is_smaller_than_a_rounding_step_is_not_lost() -> None:
    """A tenth of bf16's last place on average: the sum of two rounded numbers, PEFT's, would hardly move at all."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(64, 256, bias=False, dtype=torch.bfloat16))
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(std=2e-4)
        x = torch.randn(400, 64, dtype=torch.bfloat16)
        exact = (
            x.double()
            @ (
                layer.scaling["default"]
                * layer.lora_B["default"].weight.double()
                @ layer.lora_A["default"].weight.double()
            ).T
        )
        plain = layer.get_base_layer()(x)
        lost = (layer(x) - plain).double()
        quicken(model)
        kept = (layer(x) - plain).double()

    def share(moved: torch.Tensor) -> float:
        return float((moved * exact).sum() / exact.square().sum())

    assert exact.abs().mean() < 0.2 * plain.abs().mean() / 256
    assert share(lost) < 0.7
    assert share(kept) == pytest.approx(1, abs=0.05)


def test_an_untrained_adapter_changes_nothing() -> None:
    _, ours = pair(torch.bfloat16)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    x = torch.randn(40, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), ours.base_model(x))
        with ours.disable_adapter():
            assert torch.equal(ours(x), ours.base_model(x))


@pytest.mark.parametrize(
    "config", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True, "target_modules": ["up"]}]
)
def test_what_is_more_than_lora_stays_pefts(config: dict[str, object]) -> None:
    _, ours = pair(torch.float32, **config)
    assert quick(ours) == 0


def test_merged_disabled_and_second_adapters_are_pefts() -> None:
    theirs, ours = pair(torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    for model in (theirs, ours):
        model.merge_adapter()
    assert torch.equal(ours(x), theirs(x))
    for model in (theirs, ours):
        model.unmerge_adapter()
        torch.manual_seed(1)
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    assert torch.allclose(ours(x), theirs(x), rtol=1e-12)
    assert torch.allclose(ours.merge_and_unload()(x), theirs.merge_and_unload()(x), rtol=1e-12)
