"""Draw the generation blocks of a sample, document by document.

A draw is a pure function of (seed, sample index, order), so any process can draw any sample at any
time; `order.rng` explains why.
"""

import numpy as np
from jaxtyping import Int32

from armd_scale.order.policies.base import OrderPolicy
from armd_scale.order.rng import KeyedRng


def sample_blocks(
    order: OrderPolicy, *, seed: int, sample_index: int, lengths: tuple[int, ...]
) -> Int32[np.ndarray, " P"]:
    """Return the generation block of every token of a sample, by position.

    Documents are ordered each by itself, under the same order: components of mixtures, numbers of
    streams and group sizes are drawn once per sample. A document's first token is given, block 0;
    a document of a single token has no target.

    Args:
        order: the order to draw from, of one step (`OrderPolicy.at_step`).
        seed: seed of the run.
        sample_index: index of the sample in the run.
        lengths: lengths of the documents in the window, in tokens; they sum to P.
    """
    rng = KeyedRng(seed, sample_index)
    order = order.choose(rng)
    block = np.zeros(sum(lengths), dtype=np.int32)
    start = 0
    # Documents take random numbers from one stream in turn, so the draw of a document depends on
    # the lengths of those before it in the window.
    for length in lengths:
        if length > 1:
            block[start + 1 : start + length] = order.blocks(length - 1, rng)
        start += length
    return block
