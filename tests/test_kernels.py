"""Both kernels against float64, within float32's rounding; and that they stand in for nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, scaled_dot_product_attention

from holdfast.kernels import causal_attention, fast_kernels, fastest_dtype


def states(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As models make them: the heads of a token lie side by side in memory."""
    batch, heads, length, width = shape
    drawn = torch.randn(batch, length, heads, width, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype).transpose(1, 2)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3), groups=st.integers(1, 3), shared=st.sampled_from([1, 2, 3, 8]), length=st.integers(1, 150),
    width=st.sampled_from([4, 16, 20]), values=st.sampled_from([4, 24]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), scale=st.sampled_from([None, 0.7]),
)  # fmt: skip
def test_attention_equals_float64(batch, groups, shared, length, width, values, dtype, scale):  # type: ignore[no-untyped-def]
    query = states(1, batch, groups * shared, length, width, dtype=dtype)
    key = states(2, batch, groups, length, width, dtype=dtype)
    value = states(3, batch, groups, length, values, dtype=dtype)
    scores = query.double() @ key.double().repeat_interleave(shared, 1).transpose(2, 3) * (scale or width**-0.5)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    probabilities = scores.masked_fill(future, -torch.inf).softmax(-1)
    each = value.double().repeat_interleave(shared, 1)
    expected = probabilities @ each
    got = causal_attention(query, key, value, scale=scale or width**-0.5)
    assert got.dtype == dtype
    assert got.shape == expected.shape
    # A score's rounding moves a probability by as much of it. A probability is rounded to bf16 where the CPU has units
    # for it (AMX), and the result is rounded once: each by at most half an eps of itself.
    rounding = 4 * torch.finfo(torch.float32).eps * (1 + scores.abs().max().item()) * value.abs().max().item()
    once = torch.finfo(dtype).eps / 2
    assert ((got.double() - expected).abs() <= once * (probabilities @ each.abs() + expected.abs()) + rounding).all()


def test_a_probe_picks_one_of_two_precisions() -> None:
    assert fastest_dtype("cpu") in ("bfloat16", "float32")


def test_both_are_used_inside_and_not_outside() -> None:
    query, key = states(1, 2, 6, 70, 16), states(2, 2, 2, 70, 16)
    ours = causal_attention(query, key, key, scale=0.25)
    x, weight, bias = torch.randn(3, 50, 192), torch.randn(40, 192), torch.randn(40)
    by_onednn = linear(x.to_mkldnn(), weight, bias).to_dense()
    with torch.no_grad(), fast_kernels():
        inside = scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
        product = linear(x, weight, bias)
    assert torch.equal(inside, ours)
    assert torch.equal(product, by_onednn)
    outside = scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    assert torch.allclose(outside, ours, atol=2e-6)
    assert not torch.equal(outside, ours)


@pytest.mark.parametrize(("tokens", "width", "rows"), [(1, 128, 1), (33, 576, 2048), (50, 700, 31)])
def test_products_are_float64s_within_rounding(tokens: int, width: int, rows: int) -> None:
    g = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(2, tokens, width, generator=g), torch.randn(rows, width, generator=g)
    exact = linear(x.double(), weight.double())
    with torch.no_grad(), fast_kernels():
        got = linear(x, weight)
        strided = linear(x[:, ::2, : width // 2], weight[:, : width // 2])
    summed = linear(x.double().abs(), weight.double().abs())
    # A sum of so many products in any order (Higham 2002, section 3.1).
    assert ((got - exact).abs() <= width * torch.finfo(torch.float32).eps / 2 * summed).all()
    assert torch.allclose(strided, linear(x[:, ::2, : width // 2], weight[:, : width // 2]), atol=1e-3)


def test_whatever_else_is_asked_is_torchs_own() -> None:
    query, short = states(1, 1, 2, 40, 8), states(2, 1, 2, 9, 8)
    mask = torch.rand(40, 40) < 0.5
    mask.fill_diagonal_(True)
    x, weight = torch.randn(5, 256), torch.randn(7, 256)
    calls = {
        "a mask": lambda: scaled_dot_product_attention(query, query, query, attn_mask=mask),
        "no order": lambda: scaled_dot_product_attention(query, query, query),
        "one token after others": lambda: scaled_dot_product_attention(query, short, short),
        "float64": lambda: scaled_dot_product_attention(*[query.double()] * 3, is_causal=True),
        "a product in float64": lambda: linear(x.double(), weight.double()),
        "a product in bfloat16": lambda: linear(x.bfloat16(), weight.bfloat16()),
        "a narrow product": lambda: linear(x[:, :16], weight[:, :16]),
    }
    with torch.no_grad():
        for what, call in calls.items():
            with fast_kernels():
                inside = call()
            assert torch.equal(inside, call()), what


def test_gradients_and_autocast_are_torchs_own() -> None:
    x, weight = torch.randn(5, 256, requires_grad=True), torch.randn(7, 256)
    states_ = states(1, 1, 2, 40, 8)
    with fast_kernels():
        linear(x, weight).sum().backward()
        inside = scaled_dot_product_attention(states_, states_, states_, is_causal=True)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert torch.allclose(x.grad, weight.sum(0).expand(5, -1), atol=1e-5)  # type: ignore[arg-type]
    assert torch.equal(inside, scaled_dot_product_attention(states_, states_, states_, is_causal=True))
