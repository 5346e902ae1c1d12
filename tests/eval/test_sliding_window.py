"""Sliding windows: every token of a text is scored once, with the promised context."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.eval.likelihood import score_all_windows, score_windows
from armd_scale.eval.sliding_window import SlidingWindows
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position

TOKENS = np.random.default_rng(3).integers(0, 101, size=43)


def make_windows(stride=16):
    return SlidingWindows(
        lambda start, n: TOKENS[start : start + n], len(TOKENS), seq_length=16, stride=stride
    )


@given(st.integers(2, 43), st.integers(1, 20), st.data())
def test_every_token_is_new_in_exactly_one_window(num_tokens, seq_length, data):
    stride = data.draw(st.integers(1, seq_length))
    windows = SlidingWindows(
        lambda start, n: np.arange(start, start + n),
        num_tokens,
        seq_length=seq_length,
        stride=stride,
    )
    scored = []
    for index in range(windows.num_windows):
        window, first = windows.window(index), windows.first_target(index)
        assert len(window) == sum(windows.lengths(index)) == windows.seq_length + 1
        if index and stride < windows.seq_length:
            assert first >= windows.seq_length - stride + 1
        scored += window[first:].tolist()
    assert scored == list(range(1, num_tokens))


def test_overlapping_windows_equal_a_computation_by_hand(groups):
    """Each target is predicted from exactly the tokens before it in its window."""
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = make_windows(stride=5)
    totals = score_all_windows(
        network, windows, parse_spec("l2r"), samples=99, seed=0, micro_batch=4, groups=groups
    )
    nats, num_scored, starts = 0.0, 1, [0, 5, 10, 15, 20, 25, 26]
    for start in starts:
        window = TOKENS[start : start + 17][None]
        (logprob,) = log_probs_by_position(network, batch_of(window, np.arange(17)[None]))
        nats -= sum(logprob[p].item() for p in range(num_scored - start, 17))
        num_scored = start + 17
    assert windows.num_windows == len(starts)
    assert totals[:, 1].sum() == 42
    assert totals[:, 0].sum().item() == pytest.approx(nats, abs=1e-9)


@pytest.mark.parametrize("spec", ["l2r", "random", "strided:2"])
def test_the_rest_of_the_text_is_a_document_of_its_own(groups, spec):
    """42 targets are 16 + 16 + 10; the last 10 do not see the 6 that fill up their window."""
    network = build(LLAMA, groups, dtype=torch.float64)
    order = parse_spec(spec)
    scores = score_windows(network, make_windows(), order, indices=range(2, 3), seed=1)
    assert [math.isnan(value) for value in scores.logprob[0].tolist()] == [True] * 6 + [False] * 10
    block = scores.block.numpy()[:, 6:]
    (expected,) = log_probs_by_position(network, batch_of(TOKENS[None, 32:], block))
    logprob = scores.logprob[0, 6:].tolist()
    assert logprob == pytest.approx([expected[p].item() for p in range(1, 11)], abs=1e-9)
