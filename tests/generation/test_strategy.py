"""Strategies and outlines: what is generated when."""

import numpy as np
import pytest

from armd_scale.errors import GenerationError
from armd_scale.generation import (
    TO_GENERATE,
    ConfidenceSchedule,
    Strategy,
    continuation_spec,
    infill_spec,
)
from armd_scale.order.rng import RngStream, random_uint64


def words(count):
    return random_uint64(0, 0, count, purpose=RngStream.ORDER)


def test_a_prompt_is_read_left_to_right_and_streams_share_the_rest():
    outline = continuation_spec(np.array([9, 4, 5]), Strategy(streams=2), words(8))
    assert outline.block.tolist() == [0, 1, 2, 3, 5, 6, 7, 4, 5, 6, 7]
    assert outline.known.tolist() == [True] * 3 + [False] * 8
    assert outline.tokens[:3].tolist() == [9, 4, 5]


def test_what_is_not_a_hole_is_given():
    text = np.array([7, TO_GENERATE, 3, TO_GENERATE, TO_GENERATE, 5])
    outline = infill_spec(text, Strategy(), words(3))
    assert outline.block.tolist() == [0, 1, 0, 2, 3, 0]
    assert outline.known.tolist() == [True, False, True, False, False, True]
    assert outline.tokens[outline.known].tolist() == [7, 3, 5]


@pytest.mark.parametrize(
    ("strategy", "blocks"),
    [
        (Strategy(), [1, 2, 3, 4, 5]),
        (Strategy(streams=2), [1, 3, 4, 2, 3]),
        (Strategy(streams=2, speculative=2), [1, 3, 5, 2, 4]),
        (Strategy(speculative=3), [1, 2, 3, 4, 5]),
        (Strategy(group=2), [1, 1, 2, 2, 3]),
        (Strategy(dynamic=ConfidenceSchedule("confidence", 2)), [1, 1, 1, 1, 1]),
    ],
)
def test_blocks_of_each_strategy(strategy, blocks):
    assert strategy.blocks(words(5)).tolist() == blocks


@pytest.mark.parametrize("lossless", [None, 3])
def test_random_orders_are_the_words(lossless):
    block = Strategy(random_order=True, speculative=lossless).blocks(words(50))
    assert (block == np.argsort(np.argsort(words(50))) + 1).all()
    groups = Strategy(random_order=True, group=4).blocks(words(50))
    assert (groups == (np.argsort(np.argsort(words(50)))) // 4 + 1).all()


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin", "random"])
def test_dynamic_rules_are_read(rule):
    assert ConfidenceSchedule.parse(f"{rule}:4") == ConfidenceSchedule(rule, 4)


@pytest.mark.parametrize("text", ["confidence", "best:2", "entropy:x", "margin:", ":3"])
def test_other_rules_are_not(text):
    with pytest.raises(GenerationError, match=f"confidence:k, entropy:k.* got '{text}'"):
        ConfidenceSchedule.parse(text)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"streams": 0}, "number of streams must be at least 1, got 0"),
        ({"group": 0}, "number of tokens of a group must be at least 1, got 0"),
        ({"group": -3}, "number of tokens of a group must be at least 1, got -3"),
        ({"lossless": 1}, "at least 2 tokens a round, got 1"),
        ({"streams": 2, "group": 2}, "one strategy, got --streams and --group"),
        ({"group": 2, "lossless": 2}, "one strategy, got --group and --lossless"),
        ({"streams": 2, "random_order": True}, "got --streams and --random-order"),
        (
            {"dynamic": ConfidenceSchedule("random", 1), "lossless": 2},
            "got --dynamic and --lossless",
        ),
        ({"streams": 2, "random_order": True, "lossless": 2}, "--random-order and --lossless"),
    ],
)
def test_what_is_no_strategy(wanted, message):
    with pytest.raises(GenerationError, match=message):
        Strategy(**wanted)


@pytest.mark.parametrize("size", [0, -2])
def test_a_round_keeps_at_least_a_token(size):
    with pytest.raises(GenerationError, match=f"must be at least 1, got {size}"):
        ConfidenceSchedule.parse(f"entropy:{size}")


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "streams", "message"),
    [
        ([], 4, 1, "at least the token that opens a document, got none"),
        ([0], 0, 1, "number of tokens must be at least 1, got 0"),
        ([0], 4, 5, "streams must be between 1 and the 4 tokens to generate, got 5"),
    ],
)
def test_what_cannot_be_continued(prompt, num_tokens, streams, message):
    with pytest.raises(GenerationError, match=message):
        continuation_spec(np.array(prompt, dtype=int), Strategy(streams=streams), words(num_tokens))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([TO_GENERATE, 3], "the token that opens a document"),
        ([0, 3], "number of tokens must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_infilled(text, message):
    with pytest.raises(GenerationError, match=message):
        infill_spec(np.array(text), Strategy(), words(text.count(TO_GENERATE)))
