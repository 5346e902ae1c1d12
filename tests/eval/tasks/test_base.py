"""Files of examples, read or refused with the line that is wrong."""

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.base import read_examples


def test_examples_come_with_their_location(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text('{"n": 1}\n{"n": "line\u2028separator"}\n', encoding="utf-8")
    examples = read_examples(path, lambda record: record["n"], expected="a value")
    assert examples == [(f"{path}, line 1", 1), (f"{path}, line 2", "line\u2028separator")]


@pytest.mark.parametrize("line", ["{", "[1]", '{"m": 1}', ""])
def test_an_invalid_line_is_named(tmp_path, line):
    path = tmp_path / "examples.jsonl"
    path.write_text(f'{{"n": 1}}\n{line}\n')
    with pytest.raises(ArmdError, match=r"line 2 must be an n \(got '.*'\): fix or remove"):
        read_examples(path, lambda record: record["n"], expected="an n")


def test_an_empty_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text("")
    with pytest.raises(ArmdError, match="at least one line, but it is empty: give another file"):
        read_examples(path, str, expected="a string")
    with pytest.raises(ArmdError, match="none must be a UTF-8 file of JSON lines, but it cannot"):
        read_examples(tmp_path / "none", str, expected="a string")
