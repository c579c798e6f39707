"""Packed attention against float64 and torch's own gradients, whatever the documents; and which masks it knows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from holdfast.kernels import fast_kernels
from holdfast.packed import PackedAttention, documents_of

Sizes = list[list[int]]


def flat(rows: Sizes) -> list[int]:
    """The rows laid end to end."""
    return [size for row in rows for size in row]


def mask_of(rows: Sizes) -> torch.Tensor:
    """What a model is told of documents of these lengths, a list a row."""
    ids = torch.tensor([[n for n, size in enumerate(row) for _ in range(size)] for row in rows])
    length = ids.shape[1]
    return (ids[:, None, :, None] == ids[:, None, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()


def drawn(rows: Sizes, *, heads: int, groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value as models make them, to be learned from."""
    generator = torch.Generator().manual_seed(len(rows) + heads)
    shape = len(rows), sum(rows[0])
    made = (torch.randn(*shape, each, 8, generator=generator) for each in (heads, groups, groups))
    return [each.to(dtype).transpose(1, 2).requires_grad_() for each in made]


@st.composite
def cut(draw: st.DrawFn) -> Sizes:
    """One to three rows of equal length, each cut into documents."""
    length = draw(st.integers(1, 300))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        borders = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=6)) - {length})
        rows.append([high - low for low, high in zip([0, *borders], [*borders, length], strict=True)])
    return rows


@settings(deadline=None, max_examples=40)
@given(rows=cut(), groups=st.integers(1, 2), shared=st.sampled_from([1, 3]), scale=st.sampled_from([0.3, 8**-0.5]))
def test_values_and_gradients_equal_torchs(rows: Sizes, groups: int, shared: int, scale: float) -> None:
    states = drawn(rows, heads=groups * shared, groups=groups, dtype=torch.float64)
    query, key, value = states
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask_of(rows), scale=scale, enable_gqa=True)
    got = PackedAttention.apply(query, key, value, flat(rows), scale)
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(got, states, upstream), torch.autograd.grad(expected, states, upstream), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@given(rows=cut())
def test_a_mask_says_where_documents_end(rows: Sizes) -> None:
    assert documents_of(mask_of(rows)) == flat(rows)


@pytest.mark.parametrize("what", ["window", "prefix", "padding", "hole"])
def test_other_masks_are_not_taken_for_documents(what: str) -> None:
    mask = mask_of([[20, 12], [32]])
    if what == "window":
        mask &= torch.ones(32, 32, dtype=torch.bool).triu(-15)
    elif what == "prefix":
        mask[0, 0, :5, :5] = True
    elif what == "padding":
        mask[1, 0, :, 30:] = False
    else:
        mask[1, 0, 20, 9] = False
    assert documents_of(mask) is None
    states = drawn([[20, 12], [32]], heads=2, groups=2, dtype=torch.float32)
    with fast_kernels():
        inside = scaled_dot_product_attention(*states, attn_mask=mask)
    assert torch.equal(inside, scaled_dot_product_attention(*states, attn_mask=mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_answers_for_torch_while_a_model_learns(dtype: torch.dtype) -> None:
    rows = [[20, 12], [5, 27]]
    states = drawn(rows, heads=6, groups=6, dtype=dtype)
    mask, whole = mask_of(rows), [[32], [32]]
    with fast_kernels():
        packed = scaled_dot_product_attention(*states, attn_mask=mask)
        causal = scaled_dot_product_attention(*states, is_causal=True)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = scaled_dot_product_attention(*states, attn_mask=mask)
    assert torch.equal(packed, PackedAttention.apply(*states, flat(rows), 8**-0.5))
    assert torch.equal(causal, PackedAttention.apply(*states, flat(whole), 8**-0.5))
    assert narrow.dtype == torch.bfloat16
