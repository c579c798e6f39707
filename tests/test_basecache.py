"""What is kept of the base: given back bit for bit, never for another identity, and never when damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from holdfast import basecache
from holdfast.basecache import Batch, Kind
from holdfast.errors import ResourceError
from holdfast.metrics import BaseCache, BaseStates, Head, base_cache

IDENTITY = {
    "weights": "a", "quantisation": "None", "dtype": "float32", "tokenizer": "b", "context": "512",
    "batch_tokens": "2048", "hardware": "c", "versions": "d", "text": "e", "part": "answer", "plan": "f",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


def head_of(dtype: torch.dtype = torch.float32) -> Head:
    return Head(
        weight=torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).to(dtype), bias=None, softcap=None
    )


def batches(kind: Kind, dtype: torch.dtype = torch.float32) -> list[Batch]:
    """Three, of 4, 1 and 7 tokens."""
    head, g = head_of(dtype), torch.Generator().manual_seed(2)
    found: list[Batch] = []
    for rows in (4, 1, 7):
        hidden = torch.randn(rows, 6, generator=g).to(dtype)
        targets = torch.randint(0, 50, (rows,), generator=g)
        cached = base_cache(hidden=hidden, head=head.weight, targets=targets)
        found.append(cached if kind == "vectors" else BaseStates(hidden=hidden, head=head))
    return found


def same(left: Batch, right: Batch) -> bool:
    if isinstance(left, BaseStates):
        assert isinstance(right, BaseStates)
        return torch.equal(left.hidden, right.hidden) and torch.equal(left.head.weight, right.head.weight)
    return all(
        torch.equal(getattr(left, name), getattr(right, name))
        and getattr(left, name).dtype == getattr(right, name).dtype
        for name in BaseCache.__dataclass_fields__
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["vectors", "states"])
def test_given_back_bit_for_bit(kind: Kind, dtype: torch.dtype) -> None:
    kept = batches(kind, dtype)
    assert basecache.find(IDENTITY, kind=kind, device="cpu") is None
    basecache.keep(IDENTITY, iter(kept), kind=kind, head=head_of(dtype))
    stored = basecache.find(IDENTITY, kind=kind, device="cpu")
    assert stored is not None
    assert len(stored) == 3
    assert all(same(a, b) for a, b in zip(kept, stored, strict=True))
    assert same(stored[-1], kept[-1])
    assert len(stored[1:]) == 2
    assert stored.fingerprint == head_of(dtype).fingerprint
    with pytest.raises(IndexError):
        stored[3]


def test_a_head_with_bias_and_soft_capping_comes_back_whole() -> None:
    head = Head(weight=torch.randn(50, 6), bias=torch.randn(50), softcap=30.0)
    kept = [BaseStates(hidden=torch.randn(3, 6), head=head)]
    basecache.keep(IDENTITY, kept, kind="states", head=head)
    stored = basecache.find(IDENTITY, kind="states", device="cpu")
    assert stored is not None
    assert stored.head is not None
    assert stored.head.fingerprint == head.fingerprint
    assert stored.head.softcap == 30.0


@pytest.mark.parametrize("field", IDENTITY)
def test_another_identity_is_always_a_miss(field: str) -> None:
    basecache.keep(IDENTITY, batches("vectors"), kind="vectors", head=head_of())
    assert basecache.find({**IDENTITY, field: IDENTITY[field] + "x"}, kind="vectors", device="cpu") is None
    assert basecache.find(IDENTITY, kind="states", device="cpu") is None
    assert basecache.find(dict(IDENTITY), kind="vectors", device="cpu") is not None


def test_it_is_a_few_numbers_a_token(cache: Path) -> None:
    basecache.keep(IDENTITY, batches("vectors"), kind="vectors", head=head_of())
    (blocks,) = cache.glob("*/blocks.bin")
    assert blocks.stat().st_size == 12 * (4 * 6 + 32)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, lengthen, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["*/blocks.bin", "*/manifest.json", "*.safetensors"])
def test_what_is_damaged_is_named_and_made_again(
    file: str, damage: Callable[[Path], None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind: Kind = "states" if file == "*.safetensors" else "vectors"
    basecache.keep(IDENTITY, batches(kind), kind=kind, head=head_of())
    (path,) = cache.glob(file)
    damage(path)
    assert basecache.find(IDENTITY, kind=kind, device="cpu") is None
    assert "damaged" in caplog.text
    basecache.keep(IDENTITY, batches(kind), kind=kind, head=head_of())
    assert basecache.find(IDENTITY, kind=kind, device="cpu") is not None


def test_a_failure_midway_leaves_nothing_behind(cache: Path) -> None:
    def broken() -> object:
        yield batches("vectors")[0]
        raise RuntimeError("the base failed")

    with pytest.raises(RuntimeError, match="the base failed"):
        basecache.keep(IDENTITY, broken(), kind="vectors", head=head_of())  # type: ignore[arg-type]
    assert basecache.find(IDENTITY, kind="vectors", device="cpu") is None
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="cannot be kept"):
        basecache.keep(IDENTITY, batches("vectors"), kind="vectors", head=head_of())
