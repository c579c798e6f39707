"""Costs by hand, and operations against torch's own count of what training with an adapter multiplies."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from holdfast.costs import Cost, cost, flop_per_token
from holdfast.errors import ConfigError


def counted(*, layers, d, r, tokens):
    """Operations per token of one training step through frozen layers with trainable products of rank r beside them."""
    generator = torch.Generator().manual_seed(0)
    frozen = [torch.randn(d, d, generator=generator) for _ in range(layers)]
    adapters = [
        [torch.randn(shape, generator=generator).requires_grad_() for shape in ((d, r), (r, d))] for _ in range(layers)
    ]
    # As in a deep model, where all but the first layer pass the gradient on.
    x = torch.randn(tokens, d, generator=generator).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        for weight, (down, up) in zip(frozen, adapters, strict=True):
            x = x @ weight + (x @ down) @ up
        x.sum().backward()
    return counter.get_total_flops() / tokens


@pytest.mark.parametrize("r", [1, 4, 16])
def test_operations_are_those_that_torch_counts(r):
    layers, d = 5, 48
    found = flop_per_token(base_params=layers * d * d, trainable_params=layers * 2 * d * r)
    assert found == counted(layers=layers, d=d, r=r, tokens=7)


def test_full_fine_tuning_is_six_per_parameter_and_adapters_two_thirds_of_it():
    assert flop_per_token(base_params=0, trainable_params=7e9) == 6 * 7e9
    assert flop_per_token(base_params=1, trainable_params=1, forward_params=1) == 4 + 6 + 2
    assert flop_per_token(base_params=7e9, trainable_params=7e6) == pytest.approx(6 * 7e9 * 2 / 3, rel=2e-3)


def test_a_cost_by_hand():
    found = cost(steps=100, tokens_per_step=512, trainable_params=1000, base_params=1e6, seconds_per_token=0.01)
    assert found == Cost(tokens=51_200, flop=51_200 * (4e6 + 6000), seconds=512.0)
    assert str(found) == "51,200 tokens, 2.1e11 FLOP, 9 min at the measured speed"


@pytest.mark.parametrize(
    ("unknown", "told"),
    [
        ({"base_params": None}, "5,120 tokens, 51 s at the measured speed"),
        ({"seconds_per_token": None}, "5,120 tokens, 3.1e08 FLOP"),
        ({"base_params": None, "seconds_per_token": None}, "5,120 tokens"),
        ({"tokens_per_step": None}, "unknown"),
    ],
)
def test_what_is_not_known_is_none_and_not_a_number(unknown, told):
    known = {"tokens_per_step": 512, "base_params": 1e4, "seconds_per_token": 0.01}
    found = cost(steps=10, trainable_params=3500, **known | unknown)
    assert (found.flop is None) == bool({"base_params", "tokens_per_step"} & set(unknown))
    assert (found.seconds is None) == bool({"seconds_per_token", "tokens_per_step"} & set(unknown))
    assert str(found) == told
    assert None in json.loads(json.dumps(found.to_dict())).values()


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.6, "1 s"), (89, "89 s"), (600, "10 min"), (5399, "1 h 30 min"), (9000, "2 h 30 min")]
)
def test_a_time_is_told_as_a_person_says_it(seconds, told):
    assert str(Cost(tokens=None, flop=None, seconds=seconds)) == f"{told} at the measured speed"


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["tokens_per_step", "base_params", "seconds_per_token"])
def test_sizes_and_speeds_that_cannot_be_are_refused(name, value):
    if name == "base_params" and value == 0:  # nothing is frozen in full fine-tuning
        assert cost(
            steps=1, tokens_per_step=2, trainable_params=3, base_params=0, seconds_per_token=None
        ).flop == 36  # fmt: skip
        return
    known = {"tokens_per_step": 512, "base_params": 1e6, "seconds_per_token": 0.01}
    with pytest.raises(ConfigError, match=f"got {name} {value}, expected a positive number"):
        cost(steps=10, trainable_params=1, **known | {name: value})
