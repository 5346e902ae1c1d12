"""The cache gives back what was put in, at the places that the counters say."""

import pytest
import torch

from armd_scale.sample.cache import SlotCache


def rows(first, count, width=4):
    values = torch.arange(first, first + count, dtype=torch.float32).view(1, 1, count, 1)
    return values.expand(2, 3, count, width)


def test_rows_of_all_rounds_come_back_in_order():
    cache = SlotCache(capacity=6, content_layers=1)
    for layer, width in [(-1, 2), (0, 4), (1, 4)]:
        key, value = cache.extend(layer, rows(0, 2, width), rows(10, 2, width + 1))
        assert torch.equal(key, rows(0, 2, width))
        assert torch.equal(value, rows(10, 2, width + 1))
    cache.advance(content=2, queries=2)
    for layer in (0, 1):
        key, value = cache.extend(layer, rows(2, 4), rows(12, 4, 5))
        assert torch.equal(key, rows(0, 6))
        assert torch.equal(value, rows(10, 6, 5))


def test_content_and_query_layers_count_for_themselves():
    cache = SlotCache(capacity=5, content_layers=1, first_query=2)
    assert cache.extend(0, rows(0, 3), rows(0, 3))[0].shape[2] == 3
    keys, _ = cache.extend(1, rows(0, 1), rows(0, 1))
    # Two places before the first query row stay empty.
    assert keys[0, 0, :, 0].tolist() == [0, 0, 0]
    cache.advance(content=3, queries=1)
    assert (cache.num_content, cache.num_queries) == (3, 3)


def test_rounds_are_taken_back_by_the_counters():
    cache = SlotCache(capacity=4, content_layers=1)
    cache.extend(0, rows(0, 2), rows(0, 2))
    cache.advance(content=2, queries=2)
    cache.extend(0, rows(50, 2), rows(50, 2))
    cache.advance(content=2, queries=2)
    cache.num_content = 2
    keys, _ = cache.extend(0, rows(2, 1), rows(2, 1))
    assert torch.equal(keys, rows(0, 3))


def test_more_rows_than_the_text_has_are_our_mistake():
    cache = SlotCache(capacity=1, content_layers=1)
    with pytest.raises(AssertionError):
        cache.extend(0, rows(0, 2), rows(0, 2))
