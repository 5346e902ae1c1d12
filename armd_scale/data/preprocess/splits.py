"""Assign documents to train, valid and test by a hash of their text.

A document's split depends on its text alone: not on its position, the other documents or the number
of workers. So exact duplicates are in the same split, and none leaks from train into valid or test.
"""

from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from itertools import accumulate

from armd_scale.errors import CorpusError

SPLIT_NAMES = ("train", "valid", "test")
_NUM_HASHES = 2**64


def split_bounds(fractions: Sequence[str]) -> tuple[int, ...]:
    """Return for each split the upper end of its range of 64-bit hashes.

    Args:
        fractions: of train, valid and perhaps test, as the user wrote them; empty without a split,
            which gives a single range of all hashes.

    Raises:
        CorpusError: the fractions are not two or three positive numbers of sum 1.
    """
    if not fractions:
        return (_NUM_HASHES,)
    # Exact fractions: 0.98 + 0.01 + 0.01 is not 1 in binary floating point.
    try:
        values = [Fraction(text) for text in fractions]
    except (ValueError, ZeroDivisionError):
        values = []
    if len(values) not in (2, 3) or min(values) <= 0 or sum(values) != 1:
        raise CorpusError(
            "--split must be two or three positive fractions of sum 1 for train, valid and test, "
            f"such as 0.98,0.01,0.01 (got {','.join(fractions)})"
        )
    return tuple(int(bound * _NUM_HASHES) for bound in accumulate(values))


def assign_split(utf8: bytes, bounds: Sequence[int]) -> int:
    """Return the index of the split that a document belongs to.

    Args:
        utf8: the document's text.
        bounds: of `split_bounds`.
    """
    digest = blake2b(utf8, digest_size=8, person=b"armd split").digest()
    value = int.from_bytes(digest)
    return next(index for index, bound in enumerate(bounds) if value < bound)
