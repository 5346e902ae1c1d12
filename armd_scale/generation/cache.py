"""The exact cache of decoding: keys and values of all rows of earlier rounds.

Two-stream layers keep those of content rows, upper layers those of query rows, and the `prefix`
query its positions and embeddings. A row's keys never change once its token is known, because
nothing that it sees is ever added to: decoding with the cache computes what teacher forcing
computes.
"""

from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor


@final
class SlotKVCache:
    """Keys and values in buffers made once for the whole text, every row at its own place.

    Places are the decoder's, so texts of one batch may be at different slots, and rows that were
    written on trial are taken back by writing others over them: until then no row may look there.
    Buffers take dtype, device and width from the first rows of their layer.

    Args:
        num_slots: how many there are.
        content_layers: lowest layers that keep content rows; the others keep query rows.
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
        """Says where the rows of the coming round are kept, and how many keys they may look at."""
        self.content_slots, self.query_slots = content_slots, query_slots
        self.num_content_keys, self.num_query_keys = num_content_keys, num_query_keys

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps the round's rows of a layer; returns all keys and values that rows may look at.

        Both are [batch, kv_heads, keys, width]. Layer -1 is the `prefix` query, which looks at
        content rows.
        """
        if layer not in self._buffers:
            self._buffers[layer] = (self._buffer_like(key), self._buffer_like(value))
        is_content = layer < self._content_layers
        places = self.content_slots if is_content else self.query_slots
        stop = self.num_content_keys if is_content else self.num_query_keys
        keys, values = self._buffers[layer]
        keys.scatter_(2, places[:, None, :, None].expand_as(key), key)
        values.scatter_(2, places[:, None, :, None].expand_as(value), value)
        return keys[:, :, :stop], values[:, :, :stop]

    def _buffer_like(self, rows: Tensor) -> Tensor:
        batch, kv_heads, _, width = rows.shape
        # Zeros, because places that no row sees still meet a weight of zero, and 0 x NaN is NaN.
        return rows.new_zeros(batch, kv_heads, self._num_slots, width)
