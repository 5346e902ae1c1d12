"""JSON of strangers: refused in a few words, and never written where others cannot read it."""

import json
import math
from pathlib import Path

import pytest

from armd_scale.errors import ArmdError, CheckpointError
from armd_scale.json_files import atomic_write_json, json_sha256, parse_json, read_json_object

JSON_ERRORS = {
    "": "Expecting value",
    "[]": "its value is not a mapping",
    "[" * 100_000: "nested too deeply",
    '{"a": ' * 100_000: "nested too deeply",
    '{"a": ' + "9" * 5000 + "}": "a number in it has 5000 digits",
    '{"a": 1e400}': "1e400 is not a finite number",
    '{"a": NaN}': "NaN is not a finite number",
    '{"a": -Infinity}': "-Infinity is not a finite number",
    '{"a": "\\ud800"}': "half a surrogate pair",
    '{"\\uD800": 1}': "half a surrogate pair",
    "\ufeff{}": "BOM",
}


@pytest.mark.parametrize(("text", "reason"), JSON_ERRORS.items(), ids=range(len(JSON_ERRORS)))
def test_json_of_a_stranger(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=reason) as refused:
        read_json_object(path, error_class=CheckpointError)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 500


def test_json_is_read_with_numbers_and_texts_as_they_are(tmp_path: Path) -> None:
    value = {"a": 10**200, "b": [1.5, None, True], "\\ud": "\U0001f600 \\ud800"}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert read_json_object(tmp_path / "a.json") == value
    assert parse_json('[1e400, NaN, "x"]', allow_nan=True)[0] == math.inf


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ArmdError, match="its byte 7 is not UTF-8 text"):
        read_json_object(tmp_path / "a.json")


def test_the_hash_of_json_depends_on_its_values_only() -> None:
    assert json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1})
    assert json_sha256({"a": 1}) != json_sha256({"a": 2})


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_write_json(tmp_path / "a.json", {"a": math.nan})
    assert list(tmp_path.iterdir()) == []
