"""Types and values in words."""

from typing import Any, Literal

import pytest

from armd_scale.config.messages import (
    describe_type,
    did_you_mean,
    format_value,
    join,
    raise_rule_error,
)
from armd_scale.config.schema import RunConfig
from armd_scale.errors import RecipeError


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Literal["a", 2], "one of a, 2"),
        (tuple[str, ...], "a list, text each"),
        (tuple[float, float], "a list of 2, a number each"),
        (str | tuple[int, ...], "text or a list, a whole number each"),
        (RunConfig, "a mapping of name, folder, seed"),
    ],
)
def test_types(kind: Any, words: str) -> None:
    assert describe_type(kind) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (False, "false"),
        (1.5, "1.5"),
        ("a\nb", "'a\\nb'"),
        ({"a": 1}, "a mapping"),
        ((1, "x", None), "[1, 'x', null]"),
    ],
)
def test_values(value: object, words: str) -> None:
    assert format_value(value) == words
    assert len(format_value([value] * 100)) <= 60


def test_near_misses() -> None:
    assert did_you_mean("heds", ["layers", "heads"]) == "; did you mean heads?"
    assert did_you_mean("zzz", ["layers", "heads"]) == ""
    assert did_you_mean(True, ["heads"]) == ""


def test_paths_and_refusals() -> None:
    assert join(join("", "a"), 0) == "a.0"
    with pytest.raises(RecipeError, match=r"^a\.b must be even \(got 3\): change it$"):
        raise_rule_error("a.b", 3, requirement="be even", hint="change it")
