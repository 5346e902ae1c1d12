"""Loss weights that are passed into the forward pass, and micro-batches that carry them.

The fused LM head computes the gradient of the loss during the forward pass (see `lm_head`), so it
must know beforehand how much every row counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from armd_scale.data.batch import ArmdBatch


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """A teacher's final hidden rows and its LM head, for some samples of a batch.

    The head is applied chunk by chunk, like the model's own: the teacher's logits for a whole
    micro-batch would be the largest tensor of the step.
    """

    sample_mask: Bool[Tensor, " batch"]
    """Which samples of the batch the teacher has seen; `s` of them."""
    rows: Float[Tensor, "queries s teacher_hidden"]
    """Its final hidden rows, as wide as the teacher."""
    head: Callable[[Tensor], Tensor]
    """Maps rows to this rank's columns of the teacher's logits."""


@dataclass(frozen=True, eq=False)
class LossSpec:
    """The loss as a weighted sum of terms in nats over all rows of a batch."""

    weights: Float[Tensor, "terms batch queries"]
    """Weight of every row's negative log-likelihood and, with a teacher, of its divergence."""
    teacher: TeacherOutput | None = None

    def __post_init__(self) -> None:
        num_terms = 1 if self.teacher is None else 2
        assert len(self.weights) == num_terms, "each loss term needs weights"


@dataclass(frozen=True, eq=False)
class TrainMicroBatch:
    """A micro-batch with its loss weights, as the pipeline schedule passes it to every stage."""

    batch: ArmdBatch
    loss_weights: Float[Tensor, "terms batch queries"] | None = None
    """Weights of a `LossSpec`; None if the batch is only evaluated."""
