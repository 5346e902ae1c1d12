"""Dropout as a pure function: the mask depends on the sample, not on who computes it or when.

A row drops the same channels on every layout, in the recomputation of a backward pass, and after a
resume. The mask is a hash of (run seed, sample index, row index, site, channel), recomputed by
whichever rank holds the row. There is no random state that could differ or would have to be saved.

The row index is the index in the window of the row's rotary position: that of its own token for a
content row, that of the token before its label for a query row. So under left-to-right order query
row p drops what content row p - 1 drops, and one stream still computes the same function as two.

Dropout is applied where GPT-2 and SEDD apply theirs: to the embedded rows and to the outputs of
attention and MLP. Attention probabilities are never dropped: that mask would have to be computed
inside the fused kernels, which draw from a random state that no two layouts share.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from armd_scale.data.batch import ArmdBatch

Branch = Literal["attention", "mlp"]
EMBEDDING_SITE = 0


@dataclass(frozen=True)
class KeyedDropout:
    """Dropout of rows [rows, batch, hidden] at one site of the network.

    Args:
        rate: probability that a channel of a row is dropped.
        keys: key of each row of the whole batch, from `row_keys`.
        layer_site: index of the site: 0 for the embedded rows, then two per layer.
        sp_shard: (rank, size) of this rank's contiguous share of the rows under sequence
            parallelism.
    """

    rate: float
    keys: Int32[Tensor, "rows batch"]
    layer_site: int = EMBEDDING_SITE
    sp_shard: tuple[int, int] = (0, 1)

    @property
    def queries(self) -> "KeyedDropout":
        """The same dropout for the query rows alone, which are the second half."""
        return replace(self, keys=self.keys.chunk(2)[1])

    def in_layer(self, index: int, branch: Branch) -> "KeyedDropout":
        """Return the dropout for the output of a branch of a layer."""
        return replace(self, layer_site=1 + 2 * index + (branch == "mlp"))

    def __call__(
        self, rows: Float[Tensor, "local_rows batch hidden"]
    ) -> Float[Tensor, "local_rows batch hidden"]:
        """Drop channels of this rank's rows and scale the others up to keep the mean."""
        rank, size = self.sp_shard
        # Hashed again: keys of neighboring sites differ by 1, but their masks must be independent.
        keys = hash32(self.keys.chunk(size)[rank] + self.layer_site)
        mask_fn = _compiled_keep_mask() if rows.is_cuda else keep_mask
        # A hash is uniform over [-2^31, 2^31); it is below this threshold with probability `rate`.
        mask = mask_fn(keys, rows.shape[-1], threshold=round(self.rate * 2**32) - 2**31)
        return torch.where(mask, rows / (1 - self.rate), 0)


def row_keys(batch: ArmdBatch, seed: int) -> Int32[Tensor, "rows batch"]:
    """Return a key for each content row, then each query row.

    Args:
        batch: provides the sample indices and the order of the rows.
        seed: the run's seed.
    """
    digest = hashlib.sha256(f"dropout:{seed}".encode()).digest()
    key = int.from_bytes(digest[:4], "little", signed=True)
    # Sample indices have 64 bits: the low 31 and the rest are hashed in one after the other.
    for word in (batch.sample_index & 0x7FFFFFFF, batch.sample_index >> 31):
        key = hash32(word.to(torch.int32) ^ key)
    row_index = torch.cat((batch.order[:, :-1], batch.order[:, 1:] - 1), dim=1)
    return hash32(hash32(row_index.t().to(torch.int32)) ^ key)


def keep_mask(
    keys: Int32[Tensor, "rows batch"], width: int, *, threshold: int
) -> Bool[Tensor, "rows batch width"]:
    """Return which channels of each row stay: those with a signed hash >= `threshold`."""
    channels = hash32(torch.arange(1, width + 1, dtype=torch.int32, device=keys.device))
    return hash32(keys.unsqueeze(-1) ^ channels) >= threshold


def hash32(x: Int32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Hash 32-bit integers: a bijection in which every input bit flips half of the output bits.

    lowbias32 of Wellons, "Prospecting for hash functions" (2018). torch has no unsigned shifts: a
    right shift of a signed integer copies its sign bit, which the masks remove. The second
    multiplier is written as the negative int32 with the same bits.
    """
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


@cache
def _compiled_keep_mask() -> Callable[..., Tensor]:
    """Return `keep_mask` as one fused kernel; eager, each of its 12 operations reads memory."""
    return torch.compile(keep_mask, dynamic=True)
