"""What a terminal shows of a text that fills up."""

import logging

import numpy as np
import pytest

from armd_scale.data.tokenizer import train_sentencepiece
from armd_scale.generation import TO_GENERATE, GenerationSpec, RoundResult
from armd_scale.generation.live_view import LiveText, live_progress


def landed(positions, tokens):
    return RoundResult(1, np.array([positions]), np.array([tokens]))


def test_tokens_show_where_they_land():
    text = LiveText(np.array([0, 7, TO_GENERATE, TO_GENERATE, 8, TO_GENERATE]), None, (80, 24))
    drawn = text.render(landed([0, 3], [9, 5]))
    assert drawn.plain == "7 ·5 8 ·"
    spans = [(drawn.plain[span.start : span.end], span.style) for span in drawn.spans]
    assert spans == [
        ("7 ", "dim"), ("·", "yellow"), ("5 ", "black on green"), ("8 ", "dim"), ("·", "yellow"),
    ]  # fmt: skip
    drawn = text.render(landed([2, 5], [4, 6]))
    assert drawn.plain == "7 4 5 8 6 "
    assert drawn.spans[2].style == "default"


def test_neighbours_are_decoded_together():
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    (ids,) = tokenizer.encode_batch(["def main():\n    return 0"])
    text = LiveText(np.concatenate(([0], ids)), tokenizer, (80, 24))
    assert text.render(landed([0], [0])).plain == "def main():\n    return 0"


def test_of_a_long_text_the_surroundings_of_the_first_hole_show():
    tokens = np.arange(1000)
    tokens[600] = TO_GENERATE
    drawn = LiveText(tokens, None, (20, 11)).render(landed([0], [0]))
    shown = drawn.plain.replace("·", "600 ").split()
    assert len(shown) == 50
    assert shown == [str(token) for token in range(575, 625)]


def test_without_a_terminal_progress_is_told(caplog, monkeypatch):
    monkeypatch.setattr("armd_scale.log.LINE_INTERVAL_SECONDS", 0.0)
    logger = logging.getLogger("armd_scale")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.INFO)
    known = np.array([True, False, False])
    outline = GenerationSpec(np.zeros(3, dtype=int), np.arange(3), known)
    with live_progress([outline], None) as on_round:
        on_round(landed([0, 1], [0, 4]))
    assert "generating 1/2 tokens" in caplog.text


@pytest.mark.parametrize("count", [0, 2])
def test_the_most_tokens_that_a_text_got(count):
    positions = np.zeros((3, 4), dtype=int)
    positions[1, 4 - count :] = 5
    assert RoundResult(1, positions, positions).max_committed == count
