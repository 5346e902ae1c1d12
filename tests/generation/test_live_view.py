"""Live view of a text that fills up while it is generated."""

import logging

import numpy as np

from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.generation import TO_GENERATE, GenerationSpec, RoundResult
from armd_scale.generation.live_view import LiveText, live_progress


def round_result(positions, tokens):
    return RoundResult(1, np.array([positions]), np.array([tokens]))


def test_new_tokens_appear_at_their_positions():
    text = LiveText(np.array([0, 7, TO_GENERATE, TO_GENERATE, 8, TO_GENERATE]), None, (80, 24))
    rendered = text.render(round_result([0, 3], [9, 5]))
    assert rendered.plain == "7 ·5 8 ·"
    spans = [(rendered.plain[span.start : span.end], span.style) for span in rendered.spans]
    assert spans == [
        ("7 ", "dim"), ("·", "yellow"), ("5 ", "black on green"), ("8 ", "dim"), ("·", "yellow"),
    ]  # fmt: skip
    rendered = text.render(round_result([2, 5], [4, 6]))
    assert rendered.plain == "7 4 5 8 6 "
    assert rendered.spans[2].style == "default"


def test_neighboring_tokens_are_decoded_together():
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    (ids,) = tokenizer.encode_batch(["def main():\n    return 0"])
    text = LiveText(np.concatenate(([1], ids)), tokenizer, (80, 24))
    assert text.render(round_result([0], [0])).plain == "def main():\n    return 0"


def test_long_text_shows_the_part_around_the_first_missing_token():
    tokens = np.arange(1000)
    tokens[600] = TO_GENERATE
    rendered = LiveText(tokens, None, (20, 11)).render(round_result([0], [0]))
    shown = rendered.plain.replace("·", "600 ").split()
    assert len(shown) == 50
    assert shown == [str(token) for token in range(575, 625)]


def test_progress_is_logged_without_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr("armd_scale.log.LINE_INTERVAL_SECONDS", 0.0)
    logger = logging.getLogger("armd_scale")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.INFO)
    known = np.array([True, False, False])
    spec = GenerationSpec(np.zeros(3, dtype=int), np.arange(3), known)
    with live_progress([spec], None) as on_round:
        on_round(round_result([0, 1], [0, 4]))
    assert "generating 1/2 tokens" in caplog.text
