"""What a step learns from a batch, said before the forward pass, so that the head can act on it."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from armd_scale.data.batch import ArmdBatch


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """Another network's last rows for the left-to-right samples of a batch, and its head.

    Logits of a large vocabulary are the largest tensor of a step; this way those of the other
    network exist for some rows at a time, like the network's own.
    """

    sample_mask: Bool[Tensor, " b"]
    """Which samples of the batch it was asked about: `s` of them."""
    rows: Float[Tensor, "queries s hidden"]
    """Its rows before the head, as wide as it is itself."""
    head: Callable[[Tensor], Tensor]
    """From rows to this rank's columns of its logits."""


@dataclass(frozen=True, eq=False)
class LossSpec:
    """The loss: a weighted sum of nats over the rows of a batch."""

    weights: Float[Tensor, "terms batch queries"]
    """Of every row's negative log-likelihood; and with a reference of its divergence from it."""
    reference: TeacherOutput | None = None

    def __post_init__(self) -> None:
        loss_terms = 1 if self.reference is None else 2
        assert len(self.weights) == loss_terms, "a reference brings a term, and its weights"


@dataclass(frozen=True, eq=False)
class TrainMicroBatch:
    """A micro-batch on its way through the stages."""

    batch: ArmdBatch
    weights: Float[Tensor, "terms batch queries"] | None = None
    """Of the objective; None where the batch is scored and nothing learned."""
