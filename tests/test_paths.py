"""Paths with `~` and environment variables."""

import pytest

from armd_scale.paths import expand_path


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("A_1", "/scratch")
    monkeypatch.setenv("MINE", "~/mine")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "/home/ann"),
        ("~/a", "/home/ann/a"),
        ("a/~", "a/~"),
        ("$A_1/a", "/scratch/a"),
        ("x/${A_1}b", "x//scratchb"),
        ("$MINE", "/home/ann/mine"),
        ("a$", "a$"),
        ("a/$-b", "a/$-b"),
        ("plain/*", "plain/*"),
        ("", ""),
    ],
)
def test_what_is_expanded(text: str, expanded: str) -> None:
    assert expand_path(text) == expanded


@pytest.mark.parametrize("text", ["$UNSET/a", "${UNSET}", "a/${}", "$A_1/$UNSET"])
def test_a_variable_that_is_not_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must use environment variables"):
        expand_path(text)
