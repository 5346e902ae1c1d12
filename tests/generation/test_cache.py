"""The key/value cache returns the rows that were stored, at the requested slots."""

import pytest
import torch

from armd_scale.generation.cache import SlotKVCache


def rows(*values, width=4):
    """Rows [2 texts, 3 heads, rows, width], each filled with one value."""
    return torch.tensor(values, dtype=torch.float32).view(2, 1, -1, 1).expand(2, 3, -1, width)


def slots(*values):
    """Slots [2 texts, slots]."""
    return torch.tensor(values).view(2, -1)


def begin_round(cache, content, queries, *, num_keys):
    cache.begin_round(content, queries, num_content_keys=num_keys[0], num_query_keys=num_keys[1])


def test_update_returns_the_rows_of_all_rounds():
    cache = SlotKVCache(num_slots=6, content_layers=1)
    for layer, width in [(-1, 2), (0, 4), (1, 4)]:
        begin_round(cache, slots(0, 1, 0, 2), slots(0, 1, 0, 2), num_keys=(3, 3))
        key, value = cache.update(layer, rows(1, 2, 3, 4, width=width), rows(5, 6, 7, 8, width=9))
        assert key[:, 0, :, 0].tolist() == [[1, 2, 0], [3, 0, 4]]
        assert value[:, 2, :, 8].tolist() == [[5, 6, 0], [7, 0, 8]]
        begin_round(cache, slots(2, 1), slots(2, 1), num_keys=(3, 3))
        key, _ = cache.update(layer, rows(9, 10, width=width), rows(0, 0, width=9))
        assert key[:, 0, :, 0].tolist() == [[1, 2, 9], [3, 10, 4]]


def test_content_layers_and_query_layers_use_their_own_slots():
    cache = SlotKVCache(num_slots=5, content_layers=1)
    begin_round(cache, slots(0, 1, 1, 0), slots(2, 2), num_keys=(2, 3))
    assert cache.update(0, rows(1, 2, 3, 4), rows(0, 0, 0, 0))[0][:, 0, :, 0].tolist() == [
        [1, 2],
        [4, 3],
    ]
    key, _ = cache.update(1, rows(5, 6), rows(0, 0))
    assert key[:, 0, :, 0].tolist() == [[0, 0, 5], [0, 0, 6]]


def test_rows_of_rejected_drafts_are_overwritten():
    cache = SlotKVCache(num_slots=4, content_layers=1)
    begin_round(cache, slots(0, 1, 0, 1), slots(0, 0), num_keys=(2, 1))
    cache.update(0, rows(1, 50, 2, 60), rows(1, 50, 2, 60))
    begin_round(cache, slots(1, 1), slots(1, 1), num_keys=(2, 2))
    assert cache.update(0, rows(3, 4), rows(3, 4))[1][:, 0, :, 0].tolist() == [[1, 3], [2, 4]]


def test_slot_out_of_range_raises():
    cache = SlotKVCache(num_slots=1, content_layers=1)
    begin_round(cache, slots(1, 0), slots(0, 0), num_keys=(1, 1))
    with pytest.raises((IndexError, RuntimeError), match="index 1 is out of bounds"):
        cache.update(0, rows(1, 2), rows(1, 2))
