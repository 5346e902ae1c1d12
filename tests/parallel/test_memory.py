"""Tests of the check of free memory."""

import pytest

from armd_scale.errors import GenerationError
from armd_scale.parallel.memory import available_bytes, require_memory


def test_what_fits_passes() -> None:
    require_memory(1 << 10, "a kibibyte", advice="unused")


def test_what_does_not_fit_is_refused_with_both_amounts() -> None:
    assert 1 << 20 < available_bytes() < 1 << 50
    with pytest.raises(
        GenerationError,
        match=r"a petabyte must fit the memory that is free on cpu \([\d.]+ GiB\), and needs at "
        r"least 1.05e\+06 GiB: use less",
    ):
        require_memory(1 << 50, "a petabyte", advice="use less", error_class=GenerationError)
