"""Policy `strided`: segments and rounds, compared with the definition written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.order.policies.strided import strided_blocks
from tests.order.policies.rounds import rounds


def strided_by_hand(num_targets: int, streams: int) -> list[list[int]]:
    """The sets of positions of joint strided blocks, from the words of the definition."""
    length = -(-num_targets // min(streams, num_targets))
    positions = list(range(1, num_targets + 1))
    segments = [positions[start : start + length] for start in range(0, num_targets, length)]
    heads = [[segment[0]] for segment in segments]
    return heads + [
        [segment[offset] for segment in segments if offset < len(segment)]
        for offset in range(1, length)
    ]


def test_example_of_two_streams_from_the_paper() -> None:
    assert rounds(strided_blocks(8, 2, joint=True)) == [[1], [5], [2, 6], [3, 7], [4, 8]]
    singletons = [[1], [5], [2], [6], [3], [7], [4], [8]]
    assert rounds(strided_blocks(8, 2, joint=False)) == singletons


@given(num_targets=st.integers(1, 80), streams=st.integers(1, 90))
def test_equals_the_definition(num_targets: int, streams: int) -> None:
    expected = strided_by_hand(num_targets, streams)
    assert rounds(strided_blocks(num_targets, streams, joint=True)) == expected
    flat = [[position] for positions in expected for position in positions]
    assert rounds(strided_blocks(num_targets, streams, joint=False)) == flat


@pytest.mark.parametrize(("streams", "count"), [(1, 1024), (2, 513), (4, 259), (8, 135)])
def test_number_of_rounds(streams: int, count: int) -> None:
    assert strided_blocks(1024, streams, joint=True).max() == count == streams + 1024 // streams - 1


def test_a_shorter_last_segment_ends_earlier() -> None:
    assert rounds(strided_blocks(5, 2, joint=True)) == [[1], [4], [2, 5], [3]]
    assert rounds(strided_blocks(5, 4, joint=True)) == [[1], [3], [5], [2, 4]]


def test_more_streams_than_targets_give_each_target_a_stream() -> None:
    assert rounds(strided_blocks(3, 7, joint=True)) == [[1], [2], [3]]


def test_joint_and_chain_rule_visit_the_same_slots() -> None:
    joint, chain = (strided_blocks(12, 3, joint=joint) for joint in (True, False))
    np.testing.assert_array_equal(
        np.argsort(joint, kind="stable"), np.argsort(chain, kind="stable")
    )
