"""Blocks of one document under each order: pure constructions, from numbers and random words.

Every function returns the blocks of the n targets of a document in text order, 1..T without gaps.
The document's first token, given, is not among them. Where chance decides, it comes in as `words`,
n uniform 64-bit integers, and sorting them is the random permutation.
"""

import numpy as np
from jaxtyping import Int, UInt64


def left_to_right_blocks(num_targets: int) -> Int[np.ndarray, " n"]:
    """1, 2, 3, ...: text order, one token a block."""
    return np.arange(1, num_targets + 1)


def progressive_blocks(words: UInt64[np.ndarray, " n"], shuffled: int) -> Int[np.ndarray, " n"]:
    """Text order in which `shuffled` random tokens exchange their slots by a random permutation.

    The positions of the m smallest words, listed by word, are both choices at once: which
    positions take part is their set, and who goes where is their sequence.
    """
    block = left_to_right_blocks(len(words))
    drawn = np.argsort(words, kind="stable")[:shuffled]
    block[np.sort(drawn)] = drawn + 1
    return block


def strided_blocks(num_targets: int, streams: int, *, joint: bool) -> Int[np.ndarray, " n"]:
    """Contiguous segments that are generated side by side, one token of each a round.

    Segments are ceil(n / streams) long, the last one shorter where that does not divide n, and its
    rounds end earlier. (Where even that leaves a segment empty, as 5 targets in 4 streams do, there
    are fewer streams.) The heads of the segments come first, one block each, from left to right:
    every later token then has its left neighbour in sight. From then on a round takes the tokens at
    one offset of all segments, as one block if `joint`, else one after another.

    Example: n = 8, streams = 2: heads 1 and 5, then {2, 6}, {3, 7}, {4, 8}.
    """
    target = np.arange(num_targets)
    length = -(-num_targets // min(streams, num_targets))
    segments = -(-num_targets // length)
    segment, offset = target // length, target % length
    if joint:
        return np.where(offset == 0, segment, segments + offset - 1) + 1
    # Before offset o each full segment has produced o tokens, and the last one no more than it has.
    last_length = num_targets - (segments - 1) * length
    produced = (segments - 1) * offset + np.minimum(offset, last_length)
    return produced + segment + 1


def group_blocks(num_targets: int, size: int) -> Int[np.ndarray, " n"]:
    """Contiguous groups of `size` tokens in text order; the last may be smaller."""
    return np.arange(num_targets) // size + 1


def permuted_group_blocks(words: UInt64[np.ndarray, " n"], size: int) -> Int[np.ndarray, " n"]:
    """A uniform permutation cut into groups of `size`; with size 1, the permutation itself."""
    block = np.empty(len(words), dtype=np.int64)
    block[np.argsort(words, kind="stable")] = group_blocks(len(words), size)
    return block


def diffusion_blocks(words: UInt64[np.ndarray, " n"], times: int) -> Int[np.ndarray, " n"]:
    """Masking times of a linear schedule, sorted: what is masked last is generated first.

    With alpha_t = 1 - t / T a token is masked at t with probability alpha_{t-1} - alpha_t = 1 / T:
    its time is uniform on 1..T. Times that nobody drew make no block.
    """
    # Multiply-shift on the upper half of a word: exact integers, biased by less than T / 2^32.
    time = ((words >> np.uint64(32)) * np.uint64(times)) >> np.uint64(32)
    _, from_first = np.unique(time, return_inverse=True)
    return from_first.max() + 1 - from_first
