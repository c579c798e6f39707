"""What is kept of the base's answers is found again for the same question to the same model, and for no other."""

import json
import os
from pathlib import Path

import pytest

from holdfast import answercache
from holdfast.errors import ResourceError

IDENTITY = {
    "weights": "w", "quantisation": "None", "dtype": "float32", "tokenizer": "t", "hardware": "h", "versions": "v",
    "probe": "choices", "items": "i", "form": "cloze", "plan": "p",
}  # fmt: skip


def refuse() -> list[float]:
    raise AssertionError("made again")


def test_numbers_come_back_bit_for_bit(cache: Path) -> None:
    answers = [[0.1 + 0.2, -1e-320, 1.7976931348623157e308], [-29.653505325317383]]
    assert answercache.kept(IDENTITY, lambda: answers) == answers
    assert answercache.kept(IDENTITY, refuse) == answers
    assert answercache.holds(IDENTITY)


@pytest.mark.parametrize("field", IDENTITY)
def test_another_identity_is_never_answered(cache: Path, field: str) -> None:
    answercache.kept(IDENTITY, lambda: [1])
    assert not answercache.holds(IDENTITY | {field: "other"})
    assert not answercache.holds({k: v for k, v in IDENTITY.items() if k != field})
    assert answercache.kept(IDENTITY | {field: "other"}, lambda: [2]) == [2]
    assert answercache.kept(IDENTITY, refuse) == [1]


def test_what_is_damaged_is_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    answercache.kept(IDENTITY, lambda: [1.5])
    (path,) = (cache / "answers").iterdir()
    whole = path.read_text()
    for damaged in (whole[:40], whole.replace("1.5", "1.6"), "[]", whole.replace('"w"', '"x"')):
        path.write_text(damaged)
        caplog.clear()
        assert answercache.kept(IDENTITY, lambda: [1.5]) == [1.5]
        assert "damaged and is made again" in caplog.text
        assert json.loads(path.read_text()) == json.loads(whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_a_resource(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(ResourceError, match="cannot be written"):
        answercache.kept(IDENTITY, lambda: [1])


def test_a_cache_folder_that_is_a_file_is_a_resource(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        answercache.kept(IDENTITY, lambda: [1])
