"""Tests of the types of command-line options."""

import argparse
from collections.abc import Callable

import pytest

from armd_scale.arguments import (
    MAX_INT,
    integer,
    natural_int,
    number,
    positive_int,
    positive_number,
    process_count,
)

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
