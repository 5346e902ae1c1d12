"""The training state: counting, and the way to JSON and back."""

import json

import pytest

from armd_scale.errors import CheckpointError
from armd_scale.train.state import TrainState


def test_steps_add_up() -> None:
    state = TrainState().advance(samples=8, tokens=120).advance(samples=8, tokens=128)
    assert state == TrainState(step=2, consumed_samples=16, consumed_tokens=248)


def test_round_trip_through_json() -> None:
    state = TrainState(
        step=3, consumed_samples=2**60, consumed_tokens=2**62, recent_losses=(2.5, 0.1)
    )
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_keys_of_another_format_are_rejected() -> None:
    with pytest.raises(CheckpointError, match=r"\(unknown: bad_in_a_row, left_out\): start from"):
        TrainState.from_json({"step": 3, "left_out": 1, "bad_in_a_row": 0})
