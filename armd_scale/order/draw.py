"""The draw: which blocks the tokens of one sample get.

A draw is a pure function of (seed, sample index, order). No state is carried from one sample to the
next, so any process can draw any sample at any time: a resumed run, another number of processes or
a rank that recomputes its neighbour's sample all get the same blocks, and no checkpoint needs to
hold a generator. Randomness is the raw 64-bit output of Philox, a counter-based generator keyed by
(seed, sample index), whose stream NumPy guarantees (unlike that of Generator's methods).
"""

import bisect
import itertools

import numpy as np
from jaxtyping import Int32, UInt64

from armd_scale.order import blocks
from armd_scale.order.policies import (
    Diffusion,
    Groups,
    LeftToRight,
    Mixture,
    Order,
    PermutedGroups,
    Progressive,
    RandomPermutation,
    Strided,
)

WORD_MASK = 2**64 - 1


def sample_blocks(
    order: Order, *, seed: int, sample_index: int, lengths: tuple[int, ...]
) -> Int32[np.ndarray, " P"]:
    """The generation block of every token of a sample, by position.

    Documents are ordered each by itself under the same order: mixtures, numbers of streams and
    group sizes are drawn once a sample. A document's first token is given, block 0; one of a
    single token has no target.

    Args:
        order: the order to draw from.
        seed: seed of the run.
        sample_index: number of the sample in the run.
        lengths: lengths of the documents in the window, in tokens; they sum to P.
    """
    words = _KeyedRng(seed, sample_index)
    settled = _sample_choices(order, words)
    block = np.zeros(sum(lengths), dtype=np.int32)
    begin = 0
    for length in lengths:
        if length > 1:
            block[begin + 1 : begin + length] = _blocks_of(settled, length - 1, words)
        begin += length
    return block


class _KeyedRng:
    """Uniform 64-bit words of one sample; nothing is set up until the first is taken."""

    def __init__(self, seed: int, sample_index: int) -> None:
        self._key = (seed & WORD_MASK, sample_index)
        self._source: np.random.Philox | None = None

    def next_uint64(self, count: int) -> UInt64[np.ndarray, " count"]:
        if self._source is None:
            self._source = np.random.Philox(key=np.array(self._key, dtype=np.uint64))
        return np.asarray(self._source.random_raw(count))

    def randint(self, bound: int) -> int:
        """A uniform integer in 0..bound - 1."""
        return int(self.next_uint64(1)[0]) * bound >> 64


def _sample_choices(order: Order, words: _KeyedRng) -> Order:
    """The order of this sample, where the recipe leaves a choice."""
    match order:
        case Mixture(weights, orders):
            bounds = list(itertools.accumulate(weights))
            # 53 bits make a fraction below 1 exactly representable.
            point = words.randint(2**53) / 2**53 * bounds[-1]
            return _sample_choices(
                orders[min(bisect.bisect(bounds, point), len(orders) - 1)], words
            )
        case Strided(streams, joint):
            return Strided(_choice(streams, words), joint)
        case Groups(sizes):
            return Groups(_choice(sizes, words))
        case PermutedGroups(sizes):
            return PermutedGroups(_choice(sizes, words))
    return order


def _choice(amounts: tuple[int, ...], words: _KeyedRng) -> tuple[int]:
    return (amounts[words.randint(len(amounts)) if len(amounts) > 1 else 0],)


def _blocks_of(order: Order, num_targets: int, words: _KeyedRng) -> np.ndarray:
    """Blocks 1..T of the targets of one document."""
    match order:
        case LeftToRight():
            return blocks.left_to_right_blocks(num_targets)
        case Progressive(shuffled):
            return blocks.progressive_blocks(words.next_uint64(num_targets), shuffled)
        case Strided((streams,), joint):
            return blocks.strided_blocks(num_targets, streams, joint=joint)
        case RandomPermutation():
            return blocks.permuted_group_blocks(words.next_uint64(num_targets), 1)
        case Groups((size,)):
            return blocks.group_blocks(num_targets, size)
        case PermutedGroups((size,)):
            return blocks.permuted_group_blocks(words.next_uint64(num_targets), size)
        case Diffusion(times):
            return blocks.diffusion_blocks(words.next_uint64(num_targets), times)
    raise AssertionError(f"{order} was not settled")
