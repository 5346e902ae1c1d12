"""Samples by index: sources by weight, windows by epoch, orders by step."""

from pathlib import Path

import numpy as np
import pytest

from armd_scale.config.schema import BlendSource, DataConfig
from armd_scale.data.sample_stream import SampleStream, collate, draw_sample, open_sample_stream
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import ShardError
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import LeftToRight, OrderStage, RandomPermutation, Stages
from armd_scale.order.spec import parse_spec
from tests.support.shards import write_pair

RANDOM = RandomPermutation()


def windows(folder: Path, name: str, num_windows: int, *, first_token: int = 0) -> TokenWindows:
    """A source whose window w of 4 targets opens with token `first_token` + 4 w."""
    tokens = range(first_token, first_token + 4 * num_windows + 1)
    return TokenWindows(write_pair(folder / name, [list(tokens)]), 4)


def test_each_epoch_visits_each_window_once(tmp_path: Path) -> None:
    stream = SampleStream([windows(tmp_path, "a", 13)], [1.0], order=RANDOM, seed=1)
    epochs = [
        [int(stream.sample(13 * epoch + k, step=0).tokens[0]) // 4 for k in range(13)]
        for epoch in range(4)
    ]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_sources_mix_by_weight_and_keep_epochs_of_their_own(tmp_path: Path) -> None:
    small = windows(tmp_path, "small", 5)
    large = windows(tmp_path, "large", 40, first_token=1000)
    stream = SampleStream([small, large], [0.25, 0.75], order=RANDOM, seed=1)
    opening = [int(stream.sample(k, step=0).tokens[0]) for k in range(40)]
    from_small = [token // 4 for token in opening if token < 1000]
    from_large = [token for token in opening if token >= 1000]
    assert (len(from_small), len(set(from_large))) == (10, 30)
    assert sorted(from_small[:5]) == sorted(from_small[5:]) == [0, 1, 2, 3, 4]


def test_blocks_are_drawn_by_sample_index_under_the_order_of_the_step(tmp_path: Path) -> None:
    order = Stages(
        stages=(OrderStage(until_step=2, order=LeftToRight()), OrderStage(order=RANDOM)),
    )
    stream = SampleStream([windows(tmp_path, "a", 9)], [1.0], order=order, seed=6)
    assert stream.sample(7, step=1).block.tolist() == [0, 1, 2, 3, 4]
    expected = sample_blocks(RandomPermutation(), seed=6, sample_index=7, lengths=(5,))
    np.testing.assert_array_equal(stream.sample(7, step=2).block, expected)


def test_a_window_under_a_chosen_order(tmp_path: Path) -> None:
    source = windows(tmp_path, "a", 3)
    sample = draw_sample(source, 2, order=parse_spec("strided-ar:2"), seed=0, index=11)
    assert sample.tokens.tolist() == [8, 9, 10, 11, 12]
    assert sample.block.tolist() == [0, 1, 3, 2, 4]
    batch = collate([sample, sample])
    assert batch.labels.tolist() == [[9, 11, 10, 12]] * 2
    assert batch.sample_index.tolist() == [11, 11]


def test_a_recipe_s_data_section_opens(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", [list(range(20)), list(range(20, 33))])
    one = DataConfig(train=prefix, seq_length=8, packing="documents")
    stream = open_sample_stream(one, order=LeftToRight(), seed=0, vocab_size=33)
    lengths = {stream.sample(k, step=0).lengths for k in range(4)}
    assert lengths == {(9,), (4, 5)}
    parts = (BlendSource(path=prefix, weight=2.0), BlendSource(path=prefix, weight=1.0))
    two = DataConfig(train=parts, seq_length=8)
    stream = open_sample_stream(two, order=LeftToRight(), seed=0)
    assert stream.sample(0, step=0).lengths == (9,)
    with pytest.raises(ShardError, match=r"data\.seq_length \+ 1 = 41 tokens, got 33"):
        open_sample_stream(DataConfig(train=prefix, seq_length=40), order=RANDOM, seed=0)
