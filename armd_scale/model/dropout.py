"""Dropout whose mask is a function of what is dropped, not of who drops it or when.

A row drops the same channels on every layout, in the recomputation of a backward pass and after a
resume: the mask is a hash of (run seed, sample number, the row's place, site, channel), computed
afresh by whoever holds the row. No random state exists that could differ.

A row's place is the index in the window of its rotary position: of its own token for a content row,
of the position before its label for a query row. So under left-to-right order query row p drops
what content row p - 1 drops, and one stream stays the same function as two.

It is applied where GPT-2 and SEDD apply theirs, to the rows as they start and to what attention and
MLP add to them. Attention probabilities are never dropped: their mask would have to be made inside
the fused kernels, which draw from a random state of their own that no two layouts share.
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
START_SITE = 0


@dataclass(frozen=True)
class KeyedDropout:
    """Dropout of rows [rows, batch, hidden] at one place of the network.

    Args:
        rate: probability that a channel of a row is dropped.
        keys: one of each row of the whole batch.
        site: the place in the network.
        share: (rank, size): under sequence parallelism a process holds one share of the rows.
    """

    rate: float
    keys: Int32[Tensor, "rows batch"]
    layer_site: int = START_SITE
    sp_shard: tuple[int, int] = (0, 1)

    @property
    def queries(self) -> "KeyedDropout":
        """For the query rows alone, which are the second half."""
        return replace(self, keys=self.keys.chunk(2)[1])

    def in_layer(self, index: int, branch: Branch) -> "KeyedDropout":
        """For what a branch of a layer adds to the rows."""
        return replace(self, site=1 + 2 * index + (branch == "mlp"))

    def __call__(
        self, rows: Float[Tensor, "own batch hidden"]
    ) -> Float[Tensor, "own batch hidden"]:
        """The rows with channels dropped and the others scaled up, so that the mean stays."""
        rank, size = self.sp_shard
        keys = hash32(self.keys.chunk(size)[rank] + self.layer_site)
        make = _compiled_mask() if rows.is_cuda else keep_mask
        kept = make(keys, rows.shape[-1], lowest=round(self.rate * 2**32) - 2**31)
        return torch.where(kept, rows / (1 - self.rate), 0)


def row_keys(batch: ArmdBatch, seed: int) -> Int32[Tensor, "rows batch"]:
    """A key for each row, the content rows first, from the run's seed, its sample and its place."""
    digest = hashlib.sha256(f"dropout:{seed}".encode()).digest()
    key = int.from_bytes(digest[:4], "little", signed=True)
    for word in (batch.sample_index & 0x7FFFFFFF, batch.sample_index >> 31):
        key = hash32(word.to(torch.int32) ^ key)
    places = torch.cat((batch.order[:, :-1], batch.order[:, 1:] - 1), dim=1)
    return hash32(hash32(places.t().to(torch.int32)) ^ key)


def keep_mask(
    keys: Int32[Tensor, "rows batch"], width: int, *, lowest: int
) -> Bool[Tensor, "rows batch width"]:
    """Which channels of each row stay: those whose hash, a signed number, is at least `lowest`."""
    channels = hash32(torch.arange(1, width + 1, dtype=torch.int32, device=keys.device))
    return hash32(keys.unsqueeze(-1) ^ channels) >= lowest


def hash32(x: Int32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """A bijection of 32-bit numbers that flips half of the output's bits with any bit of the input.

    Wellons, "Prospecting for hash functions" (2018), lowbias32; a shift of a signed number brings
    in its sign, which is masked away.
    """
    x = (x ^ (x >> 16 & 0xFFFF)) * 0x7FEB352D
    x = (x ^ (x >> 15 & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ (x >> 16 & 0xFFFF)


@cache
def _compiled_mask() -> Callable[..., Tensor]:
    """kept_channels as one kernel: eager, each of its steps would pass over memory."""
    return torch.compile(keep_mask, dynamic=True)
