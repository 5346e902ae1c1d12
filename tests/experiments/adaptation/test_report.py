"""Findings follow from the curves; table and plot show them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from armd_scale.errors import TrainingError
from armd_scale.experiments.adaptation.report import (
    ORDERS,
    Point,
    Results,
    collect,
    compute_findings,
    table,
    tokens_to,
    write,
)


def curve(*points: tuple[int, float, float]) -> list[Point]:
    """Build a curve from (tokens, nats left to right, nats of strided-ar:4)."""
    others = dict.fromkeys(ORDERS, 9.0)
    return [Point(t, {**others, "l2r": l2r, "strided-ar:4": four}) for t, l2r, four in points]


CURVES = {
    "anchor": curve((0, 1.5, 1.7), (40, 1.53, 1.65), (90, 1.51, 1.6), (200, 1.4, 1.5)),
    "learned": curve((0, 3.0, 4.0), (200, 2.0, 2.0), (400, 1.5, 1.5)),
    "scratch": curve((100, 4.0, 4.0), (900, 1.8, 1.8)),
}


@pytest.fixture
def results() -> Results:
    findings = compute_findings(CURVES, llama_tokens=1000, llama_nats=1.49)
    return Results(llama_tokens=1000, llama_l2r_nats=1.49, curves=CURVES, findings=findings)


def test_findings_are_computed_from_the_curves(results: Results) -> None:
    findings = results.findings
    assert findings.parity_nats == pytest.approx(0.01)
    assert (findings.level_tokens, findings.level_nats) == (90, 1.6)
    assert findings.learned_tokens == pytest.approx(360)
    assert findings.scratch_tokens is None
    assert findings.worst_l2r_nats == pytest.approx(0.04)


def test_a_level_is_reached_between_evaluations_or_never() -> None:
    falling = CURVES["anchor"]
    assert tokens_to(falling, "strided-ar:4", 1.7) == 0
    assert tokens_to(falling, "strided-ar:4", 1.625) == pytest.approx(65)
    assert tokens_to(falling, "strided-ar:4", 1.4) is None


def test_the_table_says_which_level_was_not_reached(results: Results) -> None:
    text = table(results)
    assert "learned query: 360 tokens, 4.0 times as many" in text
    assert "from scratch: not within 900 tokens, 10.0 times as many" in text
    assert "after 90 tokens (9% of the Llama's): 1.600 nats" in text
    assert "| converted, anchor query | 200 | 1.400 | 9.000 | 1.500 | 9.000 |" in text


def test_the_plot_is_small_and_reproducible(results: Results, tmp_path: Path) -> None:
    write(results, tmp_path)
    first = (tmp_path / "adaptation.svg").read_bytes()
    write(results, tmp_path)
    assert (tmp_path / "adaptation.svg").read_bytes() == first
    assert len(first) < 150_000
    texts = "".join(ElementTree.fromstring(first).itertext())
    for words in ("validation nats per byte", "strided-ar:4", "from scratch", "learned query"):
        assert words in texts
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json", "results.md", "adaptation.svg",
    }  # fmt: skip


def test_an_unfinished_experiment_is_named(tmp_path: Path) -> None:
    message = r"training\.json must exist before the report .* to its end"
    with pytest.raises(TrainingError, match=message):
        collect(tmp_path)
