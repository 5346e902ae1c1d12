"""The key/value cache of decoding: the keys and values of all rows that earlier rounds computed.

Two-stream layers store those of content rows, upper layers those of query rows, and the `prefix`
query its positions and embeddings. The keys of a row never change once its token is known, because
the set of rows that it sees never grows. So cached decoding computes exactly what teacher forcing
computes, and nothing in the cache is ever recomputed or invalidated.
"""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor


@final
class SlotKVCache:
    """Keys and values in buffers allocated once for the whole text; slot s of a text is entry s.

    Every text of a batch addresses its own slots, so texts may be at different slots in the same
    round. Rows that were written on trial (rejected drafts) are not removed: no row may attend to
    them until the final rows of the same slots overwrite them.
    A buffer takes its dtype, device and width from the first rows of its layer.

    Args:
        num_slots: number of entries, including one for padding rows.
        content_layers: number of lowest layers that store content rows; the others store query
            rows.
    """

    def __init__(self, *, num_slots: int, content_layers: int) -> None:
        self.num_content_keys = 0
        self.num_query_keys = 0
        self.content_slots = self.query_slots = torch.empty(0, 0, dtype=torch.int64)
        self._num_slots = num_slots
        self._content_layers = content_layers
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def begin_round(
        self,
        content_slots: Int64[Tensor, "batch content"],
        query_slots: Int64[Tensor, "batch queries"],
        *,
        num_content_keys: int,
        num_query_keys: int,
    ) -> None:
        """Set where the rows of the coming round are stored, and how many keys rows may attend to.

        Args:
            content_slots: entry of each content row.
            query_slots: entry of each query row.
            num_content_keys: layers of content rows return the first so many entries.
            num_query_keys: layers of query rows return the first so many entries.
        """
        self.content_slots, self.query_slots = content_slots, query_slots
        self.num_content_keys, self.num_query_keys = num_content_keys, num_query_keys

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's rows of this round; return all keys and values that rows may attend to.

        Both are [batch, kv_heads, keys, width]. Layer -1 is the `prefix` query, which attends to
        content rows.
        """
        if layer not in self._buffers:
            self._buffers[layer] = (self._allocate_like(key), self._allocate_like(value))
        is_content = layer < self._content_layers
        slots = self.content_slots if is_content else self.query_slots
        stop = self.num_content_keys if is_content else self.num_query_keys
        keys, values = self._buffers[layer]
        # scatter_ and not an indexed assignment: one kernel, and each text has slots of its own.
        keys.scatter_(2, slots[:, None, :, None].expand_as(key), key)
        values.scatter_(2, slots[:, None, :, None].expand_as(value), value)
        return keys[:, :, :stop], values[:, :, :stop]

    def _allocate_like(self, rows: Tensor) -> Tensor:
        batch, kv_heads, _, width = rows.shape
        # Zeros, not empty memory: a masked entry has weight zero, but 0 x NaN would be NaN.
        return rows.new_zeros(batch, kv_heads, self._num_slots, width)
