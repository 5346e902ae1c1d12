"""Random numbers as pure functions of their keys; all randomness of orders and decoding is here.

No generator state is carried from one sample to the next or saved in a checkpoint: a resumed run,
another number of processes, or a rank that recomputes a neighbor's sample all draw the same
numbers. Two sources are used:

* Philox, a counter-based generator keyed by (seed, sample index). Its raw 64-bit output is used
  directly, because NumPy guarantees that stream across versions, unlike the methods of Generator.
* The finalizer of SplitMix64, a 64-bit hash, where single numbers are looked up in any order.

The bits are part of the file format in effect: changing them changes every run in flight and every
published evaluation.
"""

from enum import IntEnum
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, UInt64

UINT64_MASK = 2**64 - 1
Integers = TypeVar("Integers", int, np.ndarray)

# Philox counts 256-bit blocks. The purpose occupies the top 64 bits of the counter and the part the
# second lowest 64, so that no two streams of a sample overlap before 2^64 blocks have been drawn.
_STREAM_SHIFT = 192
_PART_SHIFT = 64


class RngStream(IntEnum):
    """What random numbers of a sample are used for; each purpose has a stream of its own."""

    # The numbers are part of the counter: a change of one changes what all its users draw.
    TRAINING_ORDER = 0
    TOKEN = 1
    ACCEPTANCE = 2
    REPLACEMENT = 3
    ORDER = 4
    DYNAMIC = 5


class KeyedRng:
    """The stream of random numbers that decides the order of one training sample.

    Args:
        seed: seed of the run.
        sample_index: index of the sample in the run.
    """

    def __init__(self, seed: int, sample_index: int) -> None:
        self._key = (seed, sample_index)
        self._philox: np.random.Philox | None = None

    def next_uint64(self, count: int) -> UInt64[np.ndarray, " count"]:
        """Return the next `count` uniform 64-bit integers."""
        # Created at first use: most samples of a left-to-right run draw nothing, and creating a
        # Philox generator takes longer than building their blocks.
        if self._philox is None:
            self._philox = _philox(*self._key, RngStream.TRAINING_ORDER)
        return np.asarray(self._philox.random_raw(count))

    def randint(self, bound: int) -> int:
        """Return a uniform integer in 0..bound - 1, biased by less than bound / 2^64."""
        # The high half of a 128-bit product (Lemire, arXiv 1805.10941). Unlike rejection sampling
        # it takes exactly one number from the stream, whatever the bound.
        return int(self.next_uint64(1)[0]) * bound >> 64


def random_uint64(
    seed: int, sample_index: int, count: int, *, purpose: RngStream, part: int = 0
) -> UInt64[np.ndarray, " count"]:
    """Return uniform 64-bit integers of one sample for one purpose.

    Args:
        seed: seed of the sampling.
        sample_index: index of the sample.
        count: how many integers.
        purpose: what they are used for.
        part: index of the sequence within the purpose, such as a decoding round.
    """
    return np.asarray(_philox(seed, sample_index, purpose, part).random_raw(count))


def uniform_numbers(
    seed: int,
    sample_index: int,
    count: int,
    *,
    purpose: RngStream = RngStream.TOKEN,
    part: int = 0,
) -> Float64[np.ndarray, " count"]:
    """Return numbers in [0, 1) of one sample for one purpose, one per slot.

    Each has 52 random bits, one fewer than float64 holds, so that u * total rounds below total.
    """
    bits = random_uint64(seed, sample_index, count, purpose=purpose, part=part)
    return (bits >> np.uint64(12)) * 2.0**-52


def splitmix64(value: Integers, key: int) -> Integers:
    """Hash 64-bit integers with a key: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014).

    Args:
        value: a Python integer, or an array of uint64, which overflows as intended.
        key: added before mixing.
    """
    value = (value + key) & UINT64_MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & UINT64_MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & UINT64_MASK
    return value ^ (value >> 31)


def _philox(seed: int, sample_index: int, purpose: RngStream, part: int = 0) -> np.random.Philox:
    key = np.array([seed & UINT64_MASK, sample_index], dtype=np.uint64)
    counter = (int(purpose) << _STREAM_SHIFT) + (part << _PART_SHIFT)
    return np.random.Philox(key=key, counter=counter)
