"""The head: from the last rows to what targets cost, and in training to gradients at once.

A loss that is a weighted sum over rows needs nothing but its weights for the gradient by the
logits. So the forward pass takes the logits of some rows, turns them into their gradient where they
lie, multiplies that with the head's weights and with the rows, and goes on to the next rows in the
same memory. Nothing is computed twice, and the logits of a step never exist together, whatever the
vocabulary (as in Liger Kernel, arXiv 2410.10989; in any layout here).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from armd_scale.config.derived import logits_chunk_rows
from armd_scale.loss import TeacherLogits, VocabShard, fused_cross_entropy_, vocab_parallel_nll
from armd_scale.model.loss_spec import LossSpec, TeacherOutput


class LMHead(nn.Module):
    """This rank's columns of the output layer.

    Args:
        vocab_size: number of tokens.
        num_columns: on this rank, padding included.
        hidden: width of its weights of its own, of type `dtype`; None where it reads with the
            embedding's, which are then given to each call.
        dtype: of its weights.
        group: the tensor-parallel group.
    """

    def __init__(
        self,
        vocab_size: int,
        num_columns: int,
        *,
        hidden: int | None,
        dtype: torch.dtype,
        group: dist.ProcessGroup,
    ) -> None:
        super().__init__()
        self._vocab_size, self._num_columns, self._group = vocab_size, num_columns, group
        self.weight = (
            None if hidden is None else nn.Parameter(torch.empty(num_columns, hidden, dtype=dtype))
        )

    @property
    def columns(self) -> VocabShard:
        """The columns that this rank holds."""
        first = self._group.rank() * self._num_columns
        return VocabShard(vocab_start=first, vocab_size=self._vocab_size, group=self._group)

    def logits(
        self, rows: Float[Tensor, "*rows hidden"], tied: Tensor | None = None
    ) -> Float[Tensor, "*rows columns"]:
        """This rank's columns of the logits, padding included.

        Args:
            rows: normed, the same on every tensor-parallel rank.
            tied: the embedding's weights, where the head has none.
        """
        return F.linear(rows, self._weight(tied))

    def forward(
        self,
        rows: Float[Tensor, "rows batch hidden"],
        labels: Int[Tensor, "rows batch"],
        *,
        tied: Tensor | None = None,
        objective: LossSpec | None = None,
    ) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "terms rows batch"]]:
        """What every label costs, and with an objective the loss, which alone is differentiable.

        Without an objective the nats can be weighed afterwards; all logits are kept for that.
        """
        weight = self._weight(tied)
        if objective is None and torch.is_grad_enabled():
            return None, vocab_parallel_nll(F.linear(rows, weight), labels, self.columns)[None]
        weights = None if objective is None else objective.weights.transpose(1, 2)
        reference = None if objective is None else objective.reference

        def score(part: slice, logits: Tensor) -> Tensor:
            return fused_cross_entropy_(
                logits,
                labels[part],
                self.columns,
                weights=None if weights is None else weights[:, part],
                parent=None if reference is None else _parent_logits(reference, part),
            )

        loss, nats = _FusedLinearCrossEntropy.apply(rows, weight, score, weights)  # pyright: ignore[reportGeneralTypeIssues]
        return (None if objective is None else loss), nats

    def _weight(self, tied: Tensor | None) -> Tensor:
        weight = self.weight if tied is None else tied
        assert weight is not None, "a head without weights reads with the embedding's"
        return weight


def _parent_logits(reference: TeacherOutput, part: slice) -> TeacherLogits:
    with torch.no_grad():
        return TeacherLogits(reference.sample_mask, reference.head(reference.rows[part]))


LossFn = Callable[[slice, Tensor], Tensor]


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Loss and nats of rows; the gradients by rows and weights are made in the forward pass.

    Args:
        rows: [rows, batch, hidden].
        weight: [columns, hidden].
        score: of some rows and their logits, which it turns into the loss's gradient: their nats.
        weights: of the rows' nats in the loss, [terms, rows, batch]; None: there is no loss.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, score: LossFn, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        needs_input_grad, needs_weight_grad = (
            needed and weights is not None for needed in ctx.needs_input_grad[:2]
        )
        rows_gradient = torch.empty_like(rows) if needs_input_grad else None
        weight_gradient = _WeightGradAccumulator(weight) if needs_weight_grad else None
        size = logits_chunk_rows(weight.shape[0], rows.shape[1], on_gpu=rows.is_cuda)
        logits_buffer = rows.new_empty(min(size, len(rows)), rows.shape[1], weight.shape[0])
        nats = []
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            logits = logits_buffer[: part.stop - part.start]
            torch.matmul(rows[part], weight.t(), out=logits)
            nats.append(score(part, logits))
            if rows_gradient is not None:
                torch.matmul(logits, weight, out=rows_gradient[part])
            if weight_gradient is not None:
                weight_gradient.add_product(logits.flatten(0, 1).t(), rows[part].flatten(0, 1))
        all_nll = torch.cat(nats, dim=1)
        total = all_nll.new_zeros(()) if weights is None else _weighted(all_nll, weights)
        summed = None if weight_gradient is None else weight_gradient.total
        ctx.save_for_backward(rows_gradient, summed)
        ctx.mark_non_differentiable(all_nll)
        return total, all_nll

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        factor = upstream[0]
        grads = ctx.saved_tensors  # scaled where they lie, so that this serves one backward pass
        return *(None if g is None else g.mul_(factor.to(g.dtype)) for g in grads), None, None


def _weighted(nats: Tensor, weights: Tensor) -> Tensor:
    """The loss; rows of weight 0 count as nothing, whatever their nats."""
    return (nats * weights.to(nats.dtype)).where(weights != 0, 0.0).sum()


class _WeightGradAccumulator:
    """A sum of products as large as the head's weights, in float32 where those are of half width.

    A single product comes out as a backward pass would give it.
    """

    def __init__(self, weight: Tensor) -> None:
        self._is_wide = weight.dtype in (torch.float32, torch.float64)
        self._weight = weight
        self._sum: Tensor | None = None

    def add_product(self, left: Tensor, right: Tensor) -> None:
        if self._sum is None:
            self._sum = left @ right
        elif self._is_wide:
            self._sum.addmm_(left, right)
        else:
            self._sum = self._sum.float().add_(left @ right)

    @property
    def total(self) -> Tensor:
        assert self._sum is not None, "there are rows"
        return self._sum.to(self._weight.dtype)
