"""Draws: valid blocks from every order, equal for equal keys, and uniform."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import (
    Diffusion,
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderPolicy,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)
from armd_scale.order.spec import parse_spec
from tests.support.strategies import lengths, orders, seeds


def chi_square(counts: np.ndarray) -> float:
    """Distance of counts from uniform ones, in standard deviations of the chi-square statistic."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def draws(order: OrderPolicy, count: int, *, num_targets: int) -> np.ndarray:
    """Blocks of the targets of `count` samples of one document."""
    drawn = [
        sample_blocks(order, seed=7, sample_index=k, lengths=(num_targets + 1,))
        for k in range(count)
    ]
    return np.stack(drawn)[:, 1:]


@given(order=orders, seed=seeds, sample_index=st.integers(0, 2**60), lengths=lengths)
def test_blocks_are_valid(
    order: OrderPolicy, seed: int, sample_index: int, lengths: tuple[int, ...]
) -> None:
    block = sample_blocks(order, seed=seed, sample_index=sample_index, lengths=lengths)
    assert block.dtype == np.int32
    assert len(block) == sum(lengths)
    for document in np.split(block, np.cumsum(lengths)[:-1]):
        assert document[0] == 0
        # Dense, so every target is in a block 1..T and no other token is given.
        assert set(document[1:]) == set(range(1, document.max() + 1))


@given(order=orders, seed=seeds, samples=st.permutations(range(6)), lengths=lengths)
def test_a_draw_depends_only_on_its_keys(
    order: OrderPolicy, seed: int, samples: list[int], lengths: tuple[int, ...]
) -> None:
    def draw(sample: int) -> bytes:
        return sample_blocks(order, seed=seed, sample_index=sample, lengths=lengths).tobytes()

    first = {sample: draw(sample) for sample in range(6)}
    np.random.seed(0)
    assert {sample: draw(sample) for sample in samples} == first


def test_different_seeds_and_samples_give_different_draws() -> None:
    keys = [(seed, sample) for seed in (0, 1, 2**63) for sample in (0, 1, 2)]
    drawn = {
        sample_blocks(RandomPermutation(), seed=seed, sample_index=sample, lengths=(33,)).tobytes()
        for seed, sample in keys
    }
    assert len(drawn) == len(keys)


def test_the_draws_never_change() -> None:
    """A change here changes every run in flight and every published evaluation."""
    known = {
        "random": [0, 7, 3, 5, 4, 1, 2, 8, 6],
        "permuted_groups:2,4": [0, 1, 2, 1, 1, 1, 2, 2, 2],
        "diffusion:4": [0, 1, 2, 2, 2, 3, 2, 1, 1],
        "progressive:3": [0, 1, 5, 3, 4, 6, 2, 7, 8],
        "mixture(1*l2r+1*random)": [0, 3, 5, 4, 1, 2, 8, 7, 6],
    }
    for spec, block in known.items():
        drawn = sample_blocks(parse_spec(spec), seed=1234, sample_index=5, lengths=(9,))
        assert drawn.tolist() == block, spec


def test_every_position_is_equally_likely_in_every_slot() -> None:
    block = draws(RandomPermutation(), 4000, num_targets=8)
    counts = np.stack([np.bincount(column, minlength=9)[1:] for column in block.T])
    assert counts.sum(axis=0).tolist() == [4000] * 8
    assert abs(chi_square(counts)) < 4


def test_permutations_are_equally_likely() -> None:
    block = draws(RandomPermutation(), 6000, num_targets=4)
    _, counts = np.unique(block, axis=0, return_counts=True)
    assert len(counts) == 24
    assert abs(chi_square(counts)) < 4


def test_every_position_is_equally_likely_in_every_permuted_group() -> None:
    block = draws(PermutedGroups(sizes=(2,)), 4000, num_targets=6)
    counts = np.stack([np.bincount(column, minlength=4)[1:] for column in block.T])
    assert abs(chi_square(counts)) < 4


def test_progressive_chooses_and_permutes_uniformly() -> None:
    block = draws(Progressive.constant(3), 12000, num_targets=6)
    _, counts = np.unique(block, axis=0, return_counts=True)
    # 3 of 6 tokens stay or move: 20 ways to cycle three (each two ways), 15 to swap two, 1 to stay.
    assert len(counts) == 20 * 2 + 15 + 1
    swaps = (block != np.arange(1, 7)).sum(axis=1) == 2
    # 120 equally likely draws; a swap of two given tokens comes with any of 4 third ones.
    assert abs(swaps.mean() - 15 * 4 / 120) < 4 * (0.25 / 12000) ** 0.5
    moved = (block != np.arange(1, 7)).sum(axis=0)
    assert abs(chi_square(moved)) < 4


def test_diffusion_times_are_uniform() -> None:
    # Two tokens share a block when they drew one time of T.
    block = draws(Diffusion(num_timesteps=5), 10000, num_targets=2)
    together = (block[:, 0] == block[:, 1]).mean()
    assert abs(together - 1 / 5) < 4 * (0.2 * 0.8 / 10000) ** 0.5
    first = (block[:, 0] < block[:, 1]).mean()
    assert abs(first - 2 / 5) < 4 * (0.4 * 0.6 / 10000) ** 0.5


def test_mixture_draws_by_weight() -> None:
    order = Mixture(
        components=(
            MixtureComponent(weight=1.0, order=LeftToRight()),
            MixtureComponent(weight=3.0, order=Strided(streams=(2,))),
        )
    )
    block = draws(order, 4000, num_targets=8)
    strided = (block.max(axis=1) == 5).mean()
    assert abs(strided - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5


def test_numbers_of_streams_are_equally_likely() -> None:
    block = draws(Strided(streams=(1, 2, 4), joint=True), 3000, num_targets=16)
    kinds, counts = np.unique(block.max(axis=1), return_counts=True)
    assert kinds.tolist() == [7, 9, 16]
    assert abs(chi_square(counts)) < 4


def test_all_documents_of_a_sample_have_one_policy() -> None:
    order = Mixture(
        components=(
            MixtureComponent(weight=1.0, order=LeftToRight()),
            MixtureComponent(weight=1.0, order=Strided(streams=(2, 4))),
        )
    )
    lengths = (9, 9, 9)
    drawn = set()
    for sample in range(40):
        block = sample_blocks(order, seed=0, sample_index=sample, lengths=lengths)
        first, second, third = block.reshape(3, 9).tolist()
        assert first == second == third
        drawn.add(max(first))
    assert drawn == {8, 5}  # left to right; two streams or four (both end at block 5)


def test_documents_have_permutations_of_their_own() -> None:
    block = sample_blocks(RandomPermutation(), seed=0, sample_index=0, lengths=(17, 17)).reshape(
        2, 17
    )
    assert block[0].tolist() != block[1].tolist()


@pytest.mark.parametrize("spec", ["random", "progressive:9", "strided-ar:4", "diffusion:3"])
def test_documents_of_one_token_have_no_target(spec: str) -> None:
    block = sample_blocks(parse_spec(spec), seed=0, sample_index=0, lengths=(1, 1, 2, 1))
    assert block.tolist() == [0, 0, 0, 1, 0]
