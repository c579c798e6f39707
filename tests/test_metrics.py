"""Every quantity against naive float64 NumPy, and the properties that make it what it says it is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.metrics import (
    BaseCache,
    BaseStates,
    Head,
    TokenQuantities,
    base_cache,
    paired_quantities,
    token_quantities,
)  # fmt: skip

NAMES = list(TokenQuantities.__dataclass_fields__)


def naive(base: np.ndarray, tuned: np.ndarray, head: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Full logits of both models in float64: what everything must equal."""
    z, y = base.astype(np.float64) @ head.T.astype(np.float64), tuned.astype(np.float64) @ head.T.astype(np.float64)
    ln_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    ln_q = y - np.log(np.exp(y - y.max(-1, keepdims=True)).sum(-1, keepdims=True)) - y.max(-1, keepdims=True)
    p, rows = np.exp(ln_p), np.arange(len(targets))
    return {
        "nll": -ln_q[rows, targets],
        "base_nll": -ln_p[rows, targets],
        "cross_entropy": -(p * ln_q).sum(-1),
        "hard_cross_entropy": -ln_q[rows, z.argmax(-1)],
        "base_entropy": -(p * ln_p).sum(-1),
        "kl_base_tuned": (p * (ln_p - ln_q)).sum(-1),
        "agreement": z.argmax(-1) == y.argmax(-1),
        "top": y.argmax(-1),
        "top_nll": -ln_q.max(-1),
        "base_top": z.argmax(-1),
        "base_top_nll": -ln_p.max(-1),
    }


def drawn(seed: int, *, tokens: int, vocabulary: int, width: int, moved: float) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    head = torch.randn(vocabulary, width, generator=g) * 3 / width**0.5  # logits of the size a language model has
    base = torch.randn(tokens, width, generator=g)
    tuned = base + moved * torch.randn(tokens, width, generator=g)
    return base, tuned, head, torch.randint(0, vocabulary, (tokens,), generator=g)


def measured(base: torch.Tensor, tuned: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> TokenQuantities:
    cache = base_cache(hidden=base, head=head, targets=targets)
    return token_quantities(hidden=tuned, head=head, base=cache, targets=targets)


# A vocabulary below one slice, exactly one, one more, and several with a remainder.
@pytest.mark.parametrize("vocabulary", [2, 257, 8192, 8193, 20001])
@pytest.mark.parametrize(("tokens", "width", "moved"), [(1, 8, 0.5), (7, 16, 0.05), (33, 64, 1.0)])
def test_equals_naive_float64(tokens: int, width: int, moved: float, vocabulary: int) -> None:
    base, tuned, head, targets = drawn(vocabulary, tokens=tokens, vocabulary=vocabulary, width=width, moved=moved)
    got = measured(base, tuned, head, targets)
    expected = naive(base.numpy(), tuned.numpy(), head.numpy(), targets.numpy())
    z, y = base @ head.T, tuned @ head.T
    same_precision = (z.softmax(-1) * (z.log_softmax(-1) - y.log_softmax(-1))).sum(-1).double().numpy()
    naive_error = np.abs(same_precision - expected["kl_base_tuned"]).max()
    for name in NAMES:
        error = np.abs(getattr(got, name).double().numpy() - expected[name]).max()
        assert error <= max(naive_error, 1e-5 * max(1.0, np.abs(expected[name]).max())), name


def test_bf16_inputs_lose_nothing_after_the_hidden_states() -> None:
    base, tuned, head, targets = (x.bfloat16() if x.is_floating_point() else x for x in drawn(
        3, tokens=64, vocabulary=9000, width=32, moved=0.3))  # fmt: skip
    got = measured(base, tuned, head, targets)
    expected = naive(*(x.float().numpy() for x in (base, tuned, head)), targets.numpy())
    assert np.abs(got.kl_base_tuned.numpy() - expected["kl_base_tuned"]).max() < 2e-5


def test_an_unchanged_model_has_forgotten_exactly_nothing() -> None:
    base, _, head, targets = drawn(1, tokens=50, vocabulary=10_000, width=48, moved=0)
    got = measured(base, base.clone(), head, targets)
    assert torch.equal(got.kl_base_tuned, torch.zeros(50))
    assert bool(got.agreement.all())
    assert torch.equal(got.nll, got.base_nll)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), moved=st.floats(0.001, 3), vocabulary=st.integers(2, 600), tokens=st.integers(1, 20))
def test_properties(seed: int, moved: float, vocabulary: int, tokens: int) -> None:
    base, tuned, head, targets = drawn(seed, tokens=tokens, vocabulary=vocabulary, width=12, moved=moved)
    got = measured(base, tuned, head, targets)
    size = 1 + got.cross_entropy.abs().max()
    rounding = torch.finfo(torch.float32).eps * (tuned @ head.T).abs().max()
    assert got.kl_base_tuned.min() >= -(1e-6 + rounding)
    assert torch.allclose(got.cross_entropy - got.base_entropy, got.kl_base_tuned)
    # The base's likeliest token is at least as likely as an average one, so its loss under the base is at most H(p).
    same = measured(base, base, head, targets)
    assert (same.hard_cross_entropy <= same.base_entropy + 1e-4).all()
    # Adding one vector to every row of the head adds a constant to a token's logits, which changes no distribution.
    shifted = measured(base, tuned, head + torch.randn(12, generator=torch.Generator().manual_seed(seed)), targets)
    for name in ("nll", "cross_entropy", "hard_cross_entropy", "kl_base_tuned"):
        assert torch.allclose(getattr(shifted, name), getattr(got, name), atol=2e-4 * float(size)), name


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 19))
def test_any_split_of_the_tokens_gives_the_same(seed: int, cut: int) -> None:
    base, tuned, head, targets = drawn(seed, tokens=20, vocabulary=300, width=12, moved=0.5)
    whole = measured(base, tuned, head, targets)
    parts = [measured(base[part], tuned[part], head, targets[part]) for part in (slice(cut), slice(cut, None))]
    for name in NAMES:
        assert torch.allclose(
            torch.cat([getattr(p, name) for p in parts]).double(), getattr(whole, name).double(), atol=1e-4
        ), name


def test_direction_of_the_divergence() -> None:
    """Two tokens to choose from and hand arithmetic: p = (0.8, 0.2), q = (0.5, 0.5)."""
    head = torch.eye(2)
    p, q = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    got = measured(p.log(), q.log(), head, torch.tensor([1]))
    assert got.kl_base_tuned.item() == pytest.approx(0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5), abs=1e-6)
    assert got.hard_cross_entropy.item() == pytest.approx(np.log(2), abs=1e-6)
    assert got.base_nll.item() == pytest.approx(-np.log(0.2), abs=1e-6)


def paired(
    base: torch.Tensor, base_head: Head, tuned: torch.Tensor, tuned_head: Head, targets: torch.Tensor
) -> TokenQuantities:
    states = BaseStates(hidden=base, head=base_head)
    return paired_quantities(hidden=tuned, head=tuned_head, base=states, targets=targets)


def plain(weight: torch.Tensor) -> Head:
    return Head(weight=weight, bias=None, softcap=None)


@pytest.mark.parametrize("vocabulary", [2, 300, 9001])
def test_two_heads_equal_naive_float64(vocabulary: int) -> None:
    """A trained head, a bias and soft-capping: full logits of both models in float64 as logits of unit vectors."""
    base, tuned, weight, targets = drawn(4, tokens=9, vocabulary=vocabulary, width=16, moved=0.4)
    other = weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
    bias = torch.randn(vocabulary, generator=torch.Generator().manual_seed(8))
    got = paired(base, plain(weight), tuned, Head(weight=other, bias=bias, softcap=5.0), targets)
    z = base.double() @ weight.double().T
    y = 5 * ((tuned.double() @ other.double().T + bias.double()) / 5).tanh()
    ln_p, ln_q = z.log_softmax(-1), y.log_softmax(-1)
    rows = torch.arange(len(targets))
    assert torch.allclose(got.kl_base_tuned, (ln_p.exp() * (ln_p - ln_q)).sum(-1), atol=1e-5)
    assert torch.allclose(got.base_entropy, -(ln_p.exp() * ln_p).sum(-1), atol=1e-5)
    assert torch.allclose(got.nll, -ln_q[rows, targets], atol=1e-5)
    assert torch.allclose(got.base_nll, -ln_p[rows, targets], atol=1e-5)
    assert torch.allclose(got.hard_cross_entropy, -ln_q[rows, z.argmax(-1)], atol=1e-5)
    assert torch.equal(got.agreement, z.argmax(-1) == y.argmax(-1))
    assert torch.allclose(got.top_nll, -ln_q.amax(-1), atol=1e-5)


def test_with_one_head_both_ways_are_the_same() -> None:
    base, tuned, weight, targets = drawn(5, tokens=40, vocabulary=3000, width=24, moved=0.3)
    one, other = measured(base, tuned, weight, targets), paired(base, plain(weight), tuned, plain(weight), targets)
    for name in NAMES:
        assert torch.allclose(getattr(one, name).double(), getattr(other, name).double(), atol=1e-5), name


@pytest.mark.parametrize("head", [
    lambda w: Head(weight=w, bias=None, softcap=None), lambda w: Head(weight=w, bias=w[:, 0].clone(), softcap=None),
    lambda w: Head(weight=w.bfloat16(), bias=None, softcap=30.0),
])  # fmt: skip
def test_an_unchanged_model_has_forgotten_exactly_nothing_by_hidden_states_either(head: Callable[..., Head]) -> None:
    base, _, weight, targets = drawn(6, tokens=30, vocabulary=5000, width=24, moved=0)
    base = base.to(head(weight).weight.dtype)
    got = paired(base, head(weight), base.clone(), head(weight.clone()), targets)
    assert not got.kl_base_tuned.any()
    assert bool(got.agreement.all())


def test_rows_that_only_one_head_has() -> None:
    """New rows of the tuned head take mass, which counts as moved; rows it lacks are left out of p, renormalised."""
    base, tuned, weight, targets = drawn(7, tokens=20, vocabulary=50, width=8, moved=0.2)
    targets = targets % 40
    for p_rows, q_rows in ((40, 50), (50, 40)):
        got = paired(base, plain(weight[:p_rows]), tuned, plain(weight[:q_rows]), targets)
        ln_p = (base.double() @ weight[:40].double().T).log_softmax(-1)
        ln_q = (tuned.double() @ weight[:q_rows].double().T).log_softmax(-1)[:, :40]
        assert torch.allclose(got.kl_base_tuned, (ln_p.exp() * (ln_p - ln_q)).sum(-1), atol=1e-5)


def test_a_head_is_known_again_by_its_fingerprint() -> None:
    weight = torch.randn(30, 8)
    heads = [
        plain(weight), plain(weight + 1e-6), plain(weight.bfloat16()), plain(weight[:29]),
        Head(weight=weight, bias=torch.zeros(30), softcap=None), Head(weight=weight, bias=None, softcap=30.0),
    ]  # fmt: skip
    assert len({head.fingerprint for head in heads}) == len(heads)
    assert plain(weight.clone()).fingerprint == plain(weight).fingerprint


def test_the_cache_is_one_vector_and_four_numbers_a_token() -> None:
    base, _, head, targets = drawn(2, tokens=5, vocabulary=100, width=16, moved=0)
    cache = base_cache(hidden=base, head=head, targets=targets)
    sizes = [getattr(cache, name).numel() for name in BaseCache.__dataclass_fields__]
    assert sorted(sizes) == [5, 5, 5, 5, 5 * 16]


def test_no_full_logits_exist() -> None:
    """With 30,000 tokens of vocabulary and 512 of text, (t, v) floats are 61 MB; nothing near that may be allocated."""
    base, tuned, head, targets = drawn(2, tokens=512, vocabulary=30_000, width=16, moved=0.1)
    cache = base_cache(hidden=base, head=head, targets=targets)
    with torch.profiler.profile(profile_memory=True) as profile:
        token_quantities(hidden=tuned, head=head, base=cache, targets=targets)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < largest < 30_000 * 512 * 4 * 0.7
