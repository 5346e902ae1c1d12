"""Interface of the key/value cache that a decoder passes to the network."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class KeyValueCache(Protocol):
    """Keys and values of the rows of all decoding rounds, the current one included."""

    num_content_keys: int
    """Number of content keys that the rows of this round may attend to."""
    num_query_keys: int
    """Number of query keys that the rows of this round may attend to."""
    query_slots: Int[Tensor, "batch queries"]
    """Index of each query row's own key among the query keys."""

    def update(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_heads new_keys width"],
        value: Float[Tensor, "batch kv_heads new_keys value_width"],
    ) -> tuple[Tensor, Tensor]:
        """Append this round's keys and values of a layer; return all of that layer.

        Returns:
            Keys and values, [batch, kv_heads, keys, width].
        """
        ...
