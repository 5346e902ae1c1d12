"""Tests of the types of command-line options."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from armd_scale.arguments import (
    MAX_INT,
    integer,
    natural_int,
    number,
    path,
    path_text,
    positive_int,
    positive_number,
    process_count,
)
from tests.support.cli import run

NINES = "9" * 5000


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (integer, "-3", -3),
        (natural_int, "0", 0),
        (positive_int, str(MAX_INT), MAX_INT),
        (positive_int, "0007", 7),
        (number, "-1e-3", -1e-3),
        (positive_number, "2", 2.0),
    ],
)
def test_what_a_type_accepts(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive_int, "0", "must be a whole number >= 1 .got '0'"),
        (natural_int, "-1", "must be a whole number >= 0 .got '-1'"),
        (process_count, "1001", "must be at most 1000 processes .got '1001'"),
        (integer, "1.5", "must be a whole number .got '1.5'"),
        (integer, "1_000", "must be a whole number"),
        (integer, " 1", "must be a whole number"),
        (integer, "٣", "must be a whole number"),
        (integer, "", "must be a whole number"),
        (integer, NINES, "must be between -281474976710656 and .* and 4960 more characters"),
        (number, "nan", "must be a finite number .got 'nan'"),
        (number, "1e400", "must be a finite number"),
        (number, NINES, "must be a finite number .* and 4960 more characters"),
        (positive_number, "0", "must be a finite number above 0"),
        (positive_number, "-inf", "must be a finite number above 0"),
    ],
)
def test_what_a_type_refuses(kind: Callable[[str], float], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message) as refused:
        kind(text)
    assert len(str(refused.value)) < 200


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("UNSET", raising=False)
    assert path("~/a") == Path("/home/ann/a")
    assert path_text("train:sentencepiece:8000") == "train:sentencepiece:8000"
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"are set \(got '\$UNSET/a', and UNSET is"
    ):
        path("$UNSET/a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("armd_scale.train", ["$UNSET/a.yaml"]),
        ("tools/bench.py", ["decode", "--checkpoint", "$UNSET"]),
        ("tools/convert_ar_to_armd.py", ["--hf", "$UNSET", "--output", "a"]),
        ("tools/evaluate.py", ["--checkpoint", "$UNSET", "--data", "a", "--order", "l2r"]),
        ("tools/evaluate.py", ["--hf", "a", "--data", "$UNSET", "--order", "l2r"]),
        ("tools/export_hf.py", ["--checkpoint", "$UNSET", "--output", "a"]),
        ("tools/generate.py", ["--hf", "${UNSET}"]),
        ("tools/paper_tables.py", ["generative", "--eval-model", "$UNSET"]),
        ("tools/plan.py", ["$UNSET/a.yaml"]),
        ("tools/preprocess.py", ["--input", "$UNSET/*", "--output", "a", "--tokenizer", "b"]),
        ("tools/preprocess.py", ["--verify", "$UNSET"]),
        ("tools/report.py", ["$UNSET"]),
        ("tools/submit.py", ["$UNSET/a.yaml"]),
        ("tools/train_llama.py", ["--tokenizer", "$UNSET"]),
        ("tools/upgrade_checkpoint.py", ["$UNSET"]),
    ],
)
def test_every_command_expands_its_paths(
    tool: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    done = run(tool, *arguments, folder=tmp_path)
    assert done.status == 2, done.errors
    assert "must use environment variables that are set" in done.errors
    assert "Traceback" not in done.errors
