"""The exact cache of decoding: keys and values of all rows of earlier rounds.

Two-stream layers keep those of content rows, upper layers those of query rows, and the `prefix`
query its positions and embeddings. A row's keys never change once its token is known, because
nothing that it sees is ever added to: decoding with the cache computes what teacher forcing
computes.
"""

from typing import final

from torch import Tensor


@final
class SlotCache:
    """Keys and values in buffers made once for the whole text; row i of a layer is at place i.

    Where a round's rows go follows from the counters alone, so that taking rounds back is setting
    the counters back. Buffers take dtype, device and width from the first rows of their layer.

    Args:
        capacity: rows of each kind that the text can have.
        content_layers: lowest layers that keep content rows; the others keep query rows.
        first_query: number of query rows that the text leaves out, those of given tokens. Their
            places stay empty and no row may see them.
    """

    def __init__(self, *, capacity: int, content_layers: int, first_query: int = 0) -> None:
        self.num_content = 0
        self.num_queries = first_query
        self._capacity = capacity
        self._content_layers = content_layers
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends new rows of a layer and returns all of them, [batch, kv_heads, rows, head_dim].

        Layer -1 is the `prefix` query, which looks at content rows.
        """
        if layer not in self._buffers:
            self._buffers[layer] = (self._buffer_like(key), self._buffer_like(value))
        start = self.num_content if layer < self._content_layers else self.num_queries
        stop = start + key.shape[2]
        assert stop <= self._capacity, (stop, self._capacity)
        keys, values = self._buffers[layer]
        keys[:, :, start:stop] = key
        values[:, :, start:stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, *, content: int, queries: int) -> None:
        """Counts a round's rows as earlier ones; call it when all layers have been through it."""
        self.num_content += content
        self.num_queries += queries

    def _buffer_like(self, rows: Tensor) -> Tensor:
        batch, kv_heads, _, width = rows.shape
        # Zeros, because places that no row sees still meet a weight of zero, and 0 x NaN is NaN.
        return rows.new_zeros(batch, kv_heads, self._capacity, width)
