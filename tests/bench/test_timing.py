"""Timings of cases in turn."""

import pytest

from armd_scale.bench.timing import Timings, ratio, time_interleaved


def test_a_ratio_is_the_median_over_turns() -> None:
    timings = {"a": Timings(seconds=(2.0, 9.0, 3.0)), "b": Timings(seconds=(1.0, 3.0, 1.0))}
    assert ratio(timings, "a", "b") == 3.0


def test_cases_are_warmed_up_and_then_timed_in_turn() -> None:
    calls: list[str] = []
    timings = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3
    assert [len(timing.seconds) for timing in timings.values()] == [2, 2]


def test_a_row_has_milliseconds() -> None:
    row = Timings(seconds=(0.003, 0.001, 0.002)).row("a")
    assert row == pytest.approx({"case": "a", "median ms": 2, "min ms": 1, "max ms": 3})
