"""Random streams: fixed bits, one stream per purpose, and a uniform hash."""

import numpy as np
import pytest

from armd_scale.order.rng import (
    KeyedRng,
    RngStream,
    random_uint64,
    splitmix64,
    uniform_numbers,
)


def test_the_bits_never_change() -> None:
    """A change here changes every run in flight and every published evaluation."""
    assert KeyedRng(1234, 5).next_uint64(3).tolist() == [
        10629844388732340119,
        5898735889718136222,
        8765839574701207425,
    ]
    assert random_uint64(1234, 5, 2, purpose=RngStream.TOKEN).tolist() == [
        18287291678970418514,
        5893058923237921551,
    ]
    assert splitmix64(5, 1234) == 5454125327781493563


def test_orders_of_training_are_drawn_from_the_first_stream() -> None:
    rng = KeyedRng(7, 11)
    drawn = [*rng.next_uint64(3).tolist(), *rng.next_uint64(2).tolist()]
    assert drawn == random_uint64(7, 11, 5, purpose=RngStream.TRAINING_ORDER).tolist()


def test_purposes_and_parts_have_streams_of_their_own() -> None:
    streams = [
        random_uint64(0, 0, 64, purpose=purpose, part=part)
        for purpose in RngStream
        for part in (0, 1, 2)
    ]
    assert len(np.unique(np.concatenate(streams))) == 64 * len(streams)


@pytest.mark.parametrize("seed", [-1, 2**64 - 1])
def test_negative_seeds_wrap_to_64_bits(seed: int) -> None:
    expected = random_uint64(2**64 - 1, 3, 4, purpose=RngStream.TOKEN)
    assert random_uint64(seed, 3, 4, purpose=RngStream.TOKEN).tolist() == expected.tolist()


def test_bounded_integers_reach_exactly_their_range() -> None:
    rng = KeyedRng(0, 0)
    drawn = np.bincount([rng.randint(5) for _ in range(5000)], minlength=5)
    assert len(drawn) == 5
    assert (abs(drawn - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5).all()


def test_uniform_numbers_stay_below_one() -> None:
    numbers = uniform_numbers(0, 0, 10_000)
    assert 0 <= numbers.min() < 0.01
    assert 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5


def test_the_hash_is_the_same_for_integers_and_arrays() -> None:
    values = [0, 1, 5, 2**63, 2**64 - 1]
    array = splitmix64(np.array(values, dtype=np.uint64), 99)
    assert array.tolist() == [splitmix64(value, 99) for value in values]


def test_the_hash_is_a_permutation_of_what_it_hashes() -> None:
    hashed = splitmix64(np.arange(100_000, dtype=np.uint64), 3)
    assert len(np.unique(hashed)) == 100_000
