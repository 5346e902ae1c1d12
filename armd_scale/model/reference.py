"""What another network says of the left-to-right samples of a batch, for the head to compare."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """The other network's last rows, and its head, which is applied chunk by chunk.

    Logits of a large vocabulary are the largest tensor of a step; this way those of the other
    network exist for some rows at a time, like the network's own.
    """

    samples: Bool[Tensor, " b"]
    """Which samples of the batch it was asked about: `s` of them."""
    rows: Float[Tensor, "queries s hidden"]
    """Its rows before the head, as wide as it is itself."""
    head: Callable[[Tensor], Tensor]
    """From rows to this rank's columns of its logits."""
