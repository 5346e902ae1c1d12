"""The cache gives back what was put in, at the places that were named."""

import pytest
import torch

from armd_scale.generation.cache import SlotKVCache


def rows(*values, width=4):
    """Rows [2 texts, 3 heads, rows, width] that hold one value each."""
    return torch.tensor(values, dtype=torch.float32).view(2, 1, -1, 1).expand(2, 3, -1, width)


def places(*values):
    return torch.tensor(values).view(2, -1)


def open_round(cache, content, queries, *, keys):
    cache.open_round(content, queries, num_content_keys=keys[0], num_query_keys=keys[1])


def test_rows_of_all_rounds_come_back_at_their_places():
    cache = SlotKVCache(num_slots=6, content_layers=1)
    for layer, width in [(-1, 2), (0, 4), (1, 4)]:
        open_round(cache, places(0, 1, 0, 2), places(0, 1, 0, 2), keys=(3, 3))
        key, value = cache.update(layer, rows(1, 2, 3, 4, width=width), rows(5, 6, 7, 8, width=9))
        assert key[:, 0, :, 0].tolist() == [[1, 2, 0], [3, 0, 4]]
        assert value[:, 2, :, 8].tolist() == [[5, 6, 0], [7, 0, 8]]
        open_round(cache, places(2, 1), places(2, 1), keys=(3, 3))
        key, _ = cache.update(layer, rows(9, 10, width=width), rows(0, 0, width=9))
        assert key[:, 0, :, 0].tolist() == [[1, 2, 9], [3, 10, 4]]


def test_content_and_query_layers_have_places_of_their_own():
    cache = SlotKVCache(num_slots=5, content_layers=1)
    open_round(cache, places(0, 1, 1, 0), places(2, 2), keys=(2, 3))
    assert cache.update(0, rows(1, 2, 3, 4), rows(0, 0, 0, 0))[0][:, 0, :, 0].tolist() == [
        [1, 2],
        [4, 3],
    ]
    key, _ = cache.update(1, rows(5, 6), rows(0, 0))
    assert key[:, 0, :, 0].tolist() == [[0, 0, 5], [0, 0, 6]]


def test_trial_rows_are_taken_back_by_writing_over_them():
    cache = SlotKVCache(num_slots=4, content_layers=1)
    open_round(cache, places(0, 1, 0, 1), places(0, 0), keys=(2, 1))
    cache.update(0, rows(1, 50, 2, 60), rows(1, 50, 2, 60))
    open_round(cache, places(1, 1), places(1, 1), keys=(2, 2))
    assert cache.update(0, rows(3, 4), rows(3, 4))[1][:, 0, :, 0].tolist() == [[1, 3], [2, 4]]


def test_a_place_that_does_not_exist_is_our_mistake():
    cache = SlotKVCache(num_slots=1, content_layers=1)
    open_round(cache, places(1, 0), places(0, 0), keys=(1, 1))
    with pytest.raises((IndexError, RuntimeError), match="index 1 is out of bounds"):
        cache.update(0, rows(1, 2), rows(1, 2))
