"""Numbers as the summary of runs shows them."""

import pytest

from armd_scale.report.summary import abbreviate


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999.4, "999"), (999_600, "1 M"), (1_254_000, "1.25 M"), (3e9, "3 B"), (None, "–")],
)
def test_three_digits_and_a_letter(value: float | None, text: str) -> None:
    assert abbreviate(value) == text
