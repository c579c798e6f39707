"""Every mistake in a study found at once; nothing written there explodes. Single mistakes are in `hostile_studies`."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.config import read_study
from holdfast.errors import ConfigError, ResourceError
from test_config import BODY, read


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "Traceback" not in message
    assert "pydantic" not in message
    return message.replace(f"{folder / 'study.yaml'}:", "line ").splitlines()


def test_every_mistake_at_once_in_the_order_of_the_file_and_once_over_all_cells(tmp_path: Path) -> None:
    text = (
        BODY.replace("dtype: float32", "dtype: f32").replace("r: 16", "rank: 16").replace("context: 128", "context: 1")
    )
    text += "grid:\n  seed: [1, 2, -3]\n  optimizer.learning_rate: [1e-3, 1e-4]\n  steps: []\nseed: 4\n"
    found = mistakes(tmp_path, text, "batch_size=0", "oops")
    assert [line.split(": got")[0] for line in found] == [
        "line 2: dtype",
        "line 7: adapter.r",
        "line 8: adapter.rank",
        "line 15: context",
        "line 18: grid.seed",
        "line 20: grid.steps",
        "line 21: seed",
        "--set oops",
        "--set batch_size=0: batch_size",
    ]


def test_a_mistake_in_something_unwritten_is_placed_around_it(tmp_path: Path) -> None:
    (line,) = mistakes(tmp_path, BODY.replace("steps: 64\n", ""))
    assert line == "line 1: steps: got nothing, expected a value: Update steps"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            read_study(path)
        return str(caught.value)

    latin, long = tmp_path / "latin.yaml", tmp_path / "long.yaml"
    latin.write_bytes(b"model: a\nseed: 0 # caf\xe9\n")
    long.write_text("#" * 100_001)
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: got no such file, expected a YAML file"
    assert message(latin / "below") == f"{latin}/below: got no such file, expected a YAML file"
    assert message(Path("a\0b")) == "a\\x00b: got no such file, expected a YAML file"
    assert message(tmp_path) == f"{tmp_path}: got a folder, expected a YAML file"
    assert message(latin) == f"{latin}:2: got the byte 0xe9, expected UTF-8"
    assert message(long).startswith(f"{long}: got more than 100,000 bytes, expected")
    (tmp_path / "utf16.yaml").write_text(BODY, encoding="utf-16")
    assert message(tmp_path / "utf16.yaml").endswith(":1: got the byte 0xff, expected UTF-8")
    with pytest.raises(ResourceError, match="expected a file that can be read"):
        read_study(tmp_path / ("x" * 300))


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + BODY.replace("\n", "\r\n").encode())
    assert read_study(tmp_path / "bom.yaml").runs == read(tmp_path, BODY).runs


BOMBS = {
    "brackets": "a: " + "[" * 99_000,
    "braces": "a: " + "{" * 99_000,
    "nested keys": "? " * 49_000,
    "unknown keys": "\n".join(f"k{n}: 1" for n in range(9_000)),
    "a long list": f"{BODY}grid:\n  seed: [{'1,' * 49_000}]",
    "a long axis": f"{BODY}grid:\n  seed: {[*range(9_000)]}",
    "a large product": BODY + "grid:\n" + "".join(f"  {k}: {[*range(99)]}\n" for k in ("seed", "steps", "context")),
    "a long word": "a" * 99_000 + ": 1",
    "a long number": f"{BODY}context2: {'1_' * 40_000}",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_hostile_files_are_answered_in_seconds(tmp_path: Path, text: str) -> None:
    start = time.perf_counter()
    try:
        study = read(tmp_path, text)
    except ConfigError:
        study = None
    assert (study is not None) == (text == BOMBS["a long axis"])
    assert time.perf_counter() - start < 10


soup = st.lists(
    st.sampled_from([*BODY.splitlines(), "grid:", "  seed: [1]", "  adapter.r: [x", "- a", "? b", "\tc: 1"])
)


@settings(deadline=None)  # files
@given(soup.map("\n".join) | st.text(st.characters(codec="utf-8")), st.lists(st.text(max_size=12) | soup.map("=".join)))
def test_any_text_gives_a_study_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, overrides: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("soup")
    try:
        assert read(folder, text, *overrides).runs
    except ConfigError as error:
        lines = str(error).splitlines()
        assert all(", expected " in line and line.isprintable() for line in lines)
        assert len(set(lines)) == len(lines)
