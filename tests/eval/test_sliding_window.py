"""Windows over one text: all of it scored, once, with the context that was promised."""

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


def stream(stride=16):
    return SlidingWindows(
        lambda start, n: TOKENS[start : start + n], len(TOKENS), seq_length=16, stride=stride
    )


@given(st.integers(2, 43), st.integers(1, 20), st.data())
def test_every_token_is_new_in_one_window(count, seq_length, data):
    stride = data.draw(st.integers(1, seq_length))
    windows = SlidingWindows(
        lambda start, n: np.arange(start, start + n), count, seq_length=seq_length, stride=stride
    )
    scored = []
    for index in range(windows.num_windows):
        window, first = windows.window(index), windows.first_target(index)
        assert len(window) == sum(windows.lengths(index)) == windows.seq_length + 1
        if index and stride < windows.seq_length:
            assert first >= windows.seq_length - stride + 1
        scored += window[first:].tolist()
    assert scored == list(range(1, count))


def test_strided_windows_by_hand(groups):
    """Each target from exactly the tokens that its window holds before it."""
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = stream(stride=5)
    totals = score_all_windows(
        network, windows, parse_spec("l2r"), samples=99, seed=0, micro_batch=4, groups=groups
    )
    nats, done, begins = 0.0, 1, [0, 5, 10, 15, 20, 25, 26]
    for begin in begins:
        window = TOKENS[begin : begin + 17][None]
        (found,) = log_probs_by_position(network, batch_of(window, np.arange(17)[None]))
        nats -= sum(found[p].item() for p in range(done - begin, 17))
        done = begin + 17
    assert windows.num_windows == len(begins)
    assert totals[:, 1].sum() == 42
    assert totals[:, 0].sum().item() == pytest.approx(nats, abs=1e-9)


@pytest.mark.parametrize("spec", ["l2r", "random", "strided:2"])
def test_the_rest_is_a_document_of_its_own(groups, spec):
    """42 targets are 16 + 16 + 10, and the ten do not see the six that fill their window."""
    network = build(LLAMA, groups, dtype=torch.float64)
    order = parse_spec(spec)
    scores = score_windows(network, stream(), order, numbers=range(2, 3), seed=1)
    assert [math.isnan(value) for value in scores.logprob[0].tolist()] == [True] * 6 + [False] * 10
    block = scores.block.numpy()[:, 6:]
    (expected,) = log_probs_by_position(network, batch_of(TOKENS[None, 32:], block))
    found = scores.logprob[0, 6:].tolist()
    assert found == pytest.approx([expected[p].item() for p in range(1, 11)], abs=1e-9)
