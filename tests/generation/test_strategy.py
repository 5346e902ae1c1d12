"""Strategies and specs: the blocks of a text, and which strategies are refused."""

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


def random_words(count):
    return random_uint64(0, 0, count, purpose=RngStream.ORDER)


def test_prompt_is_left_to_right_and_streams_share_the_rest():
    spec = continuation_spec(np.array([9, 4, 5]), Strategy(streams=2), random_words(8))
    assert spec.block.tolist() == [0, 1, 2, 3, 5, 6, 7, 4, 5, 6, 7]
    assert spec.known.tolist() == [True] * 3 + [False] * 8
    assert spec.tokens[:3].tolist() == [9, 4, 5]


def test_everything_but_holes_is_given():
    text = np.array([7, TO_GENERATE, 3, TO_GENERATE, TO_GENERATE, 5])
    spec = infill_spec(text, Strategy(), random_words(3))
    assert spec.block.tolist() == [0, 1, 0, 2, 3, 0]
    assert spec.known.tolist() == [True, False, True, False, False, True]
    assert spec.tokens[spec.known].tolist() == [7, 3, 5]


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
    assert strategy.make_blocks(random_words(5)).tolist() == blocks


@pytest.mark.parametrize("speculative", [None, 3])
def test_random_orders_sort_by_the_random_words(speculative):
    block = Strategy(random_order=True, speculative=speculative).make_blocks(random_words(50))
    assert (block == np.argsort(np.argsort(random_words(50))) + 1).all()
    groups = Strategy(random_order=True, group=4).make_blocks(random_words(50))
    assert (groups == (np.argsort(np.argsort(random_words(50)))) // 4 + 1).all()


@pytest.mark.parametrize("rule", ["confidence", "entropy", "margin", "random"])
def test_confidence_schedules_are_parsed(rule):
    assert ConfidenceSchedule.parse(f"{rule}:4") == ConfidenceSchedule(rule, 4)


@pytest.mark.parametrize("text", ["confidence", "best:2", "entropy:x", "margin:", ":3"])
def test_invalid_confidence_schedules_are_refused(text):
    with pytest.raises(GenerationError, match=f"confidence:k, entropy:k.* \\(got '{text}'\\)"):
        ConfidenceSchedule.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 0}, "number of streams must be at least 1 .got 0"),
        ({"group": 0}, "number of tokens per group must be at least 1 .got 0"),
        ({"group": -3}, "number of tokens per group must be at least 1 .got -3"),
        ({"speculative": 1}, "at least 2 tokens per round .got 1"),
        ({"streams": 2, "group": 2}, "one decoding strategy can be used .got streams and group"),
        (
            {"group": 2, "speculative": 2},
            "one decoding strategy can be used .got group and speculative",
        ),
        ({"streams": 2, "random_order": True}, "got streams and random order"),
        (
            {"dynamic": ConfidenceSchedule("random", 1), "speculative": 2},
            "got dynamic and speculative",
        ),
        (
            {"streams": 2, "random_order": True, "speculative": 2},
            "streams and random order and speculative",
        ),
    ],
)
def test_invalid_strategies_are_refused(arguments, message):
    with pytest.raises(GenerationError, match=message):
        Strategy(**arguments)


@pytest.mark.parametrize("size", [0, -2])
def test_at_least_one_token_per_round(size):
    with pytest.raises(GenerationError, match=f"must be at least 1 .got {size}"):
        ConfidenceSchedule.parse(f"entropy:{size}")


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "streams", "message"),
    [
        ([], 4, 1, "at least the token that starts a document .got none"),
        ([0], 0, 1, "number of tokens to generate must be at least 1 .got 0"),
        ([0], 4, 5, "streams must be between 1 and the 4 tokens to generate .got 5"),
    ],
)
def test_invalid_continuations_are_refused(prompt, num_tokens, streams, message):
    with pytest.raises(GenerationError, match=message):
        continuation_spec(
            np.array(prompt, dtype=int), Strategy(streams=streams), random_words(num_tokens)
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([TO_GENERATE, 3], "the token that starts a document"),
        ([0, 3], "number of tokens to generate must be at least 1 .got 0"),
    ],
)
def test_invalid_infills_are_refused(text, message):
    with pytest.raises(GenerationError, match=message):
        infill_spec(np.array(text), Strategy(), random_words(text.count(TO_GENERATE)))
