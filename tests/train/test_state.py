"""What survives a restart."""

import json

from armd_scale.train.state import TrainState


def test_steps_add_up() -> None:
    state = TrainState().advance(samples=8, tokens=120).advance(samples=8, tokens=128)
    assert state == TrainState(step=2, consumed_samples=16, consumed_tokens=248)


def test_it_comes_back_from_json() -> None:
    state = TrainState(step=3, consumed_samples=2**60, consumed_tokens=2**62)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state
