"""Points from anyone's table: what is read, and what is refused by name, file and row."""

import numpy as np
import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.points import read_points


def written(tmp_path, text):
    path = tmp_path / "scaling.csv"
    path.write_text(text)
    return path


def test_columns_keep_their_names_and_a_group_is_a_run(tmp_path):
    path = written(tmp_path, "who,size,tokens,loss\na,1e6,100,3.5\na,1e6,200,3.1\nb,2e6,100,3.2\n")
    grouped = read_points(path, x=["size", "tokens"], y="loss", group="who")
    assert grouped["run"].tolist() == ["a", "a", "b"]
    assert grouped["loss"].tolist() == [3.5, 3.1, 3.2]
    assert set(grouped["corpus"]) == {"scaling"}
    assert read_points(path, x=["size"], y="loss")["run"].nunique() == 3
    assert grouped["size"].dtype == np.float64


@pytest.mark.parametrize(
    ("text", "asked", "error", "words"),
    [
        ("a,b\n1,2\n", {"x": ["c"], "y": "b"}, ConfigError, "no column 'c', expected one of a, b"),
        ("a,b\n1,2\n", {"x": ["a"], "y": "a"}, ConfigError, "expected at least one x, a y and a group that differ"),
        ("a,b\n1,2\n", {"x": [], "y": "a"}, ConfigError, "expected at least one x"),
        ("a,b\n1,2\n3,\n", {"x": ["a"], "y": "b"}, DataError, r"'nan' in column b, expected a number, .*row 3"),
        ("a,b\n1,2\nx,4\n", {"x": ["a"], "y": "b"}, DataError, r"'x' in column a, expected a number, .*row 3"),
        ("a,b\n1,inf\n", {"x": ["a"], "y": "b"}, DataError, "'inf' in column b"),
        ("", {"x": ["a"], "y": "b"}, DataError, "expected a CSV file with a header"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, asked, error, words):
    with pytest.raises(error, match=words):
        read_points(written(tmp_path, text), **asked)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected a CSV file with a header, at .*none.csv"):
        read_points(tmp_path / "none.csv", x=["a"], y="b")
