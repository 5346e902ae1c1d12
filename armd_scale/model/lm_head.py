"""LM head with fused cross-entropy: from final hidden rows to per-target losses and gradients.

For a loss that is a weighted sum over rows, the gradient with respect to the logits depends only on
the weights, which are known before the forward pass. So the forward pass computes the logits of a
chunk of rows, replaces them by their gradient, multiplies that with the head's weights and with the
rows, and reuses the buffer for the next chunk:

    logits = rows W^T  ->  dlogits (in place)  ->  drows = dlogits W,  dW += dlogits^T rows

Nothing is computed twice, and the logits of a step never exist all at once, whatever the size of
the vocabulary (as Liger Kernel's FusedLinearCrossEntropy, arXiv 2410.10989; here also with tensor
parallelism and a teacher).
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
        num_columns: number of columns on this rank, padding included.
        hidden: width of its own weights, of type `dtype`; None if the weights are tied to the
            embedding, which is then passed to each call.
        dtype: type of its own weights.
        group: the tensor parallel group.
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
    def shard(self) -> VocabShard:
        """The columns that this rank holds."""
        start = self._group.rank() * self._num_columns
        return VocabShard(vocab_start=start, vocab_size=self._vocab_size, group=self._group)

    def logits(
        self, rows: Float[Tensor, "*rows hidden"], tied_weight: Tensor | None = None
    ) -> Float[Tensor, "*rows columns"]:
        """Return this rank's columns of the logits, padding included.

        Args:
            rows: normalized rows, equal on every tensor parallel rank.
            tied_weight: weights of the embedding, if tied: [columns, hidden].
        """
        return F.linear(rows, self._weight(tied_weight))

    def forward(
        self,
        rows: Float[Tensor, "rows batch hidden"],
        labels: Int[Tensor, "rows batch"],
        *,
        tied_weight: Tensor | None = None,
        loss_spec: LossSpec | None = None,
    ) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "terms rows batch"]]:
        """Return per-label losses in nats and, with `loss_spec`, the scalar loss.

        With `loss_spec` the scalar loss is the only differentiable output. Without it the nats are
        differentiable, and all logits are kept for the backward pass.
        """
        weight = self._weight(tied_weight)
        if loss_spec is None and torch.is_grad_enabled():
            return None, vocab_parallel_nll(F.linear(rows, weight), labels, self.shard)[None]
        # The network's rows are [rows, batch], a batch's labels and weights [batch, rows].
        weights = None if loss_spec is None else loss_spec.weights.transpose(1, 2)
        teacher = None if loss_spec is None else loss_spec.teacher

        def loss_fn(chunk: slice, logits: Tensor) -> Tensor:
            return fused_cross_entropy_(
                logits,
                labels[chunk],
                self.shard,
                weights=None if weights is None else weights[:, chunk],
                teacher=None if teacher is None else _teacher_logits(teacher, chunk),
            )

        loss, nats = _FusedLinearCrossEntropy.apply(rows, weight, loss_fn, weights)  # pyright: ignore[reportGeneralTypeIssues]
        return (None if loss_spec is None else loss), nats

    def _weight(self, tied_weight: Tensor | None) -> Tensor:
        weight = self.weight if tied_weight is None else tied_weight
        assert weight is not None, "a tied head needs the embedding's weights"
        return weight


def _teacher_logits(teacher: TeacherOutput, chunk: slice) -> TeacherLogits:
    with torch.no_grad():
        return TeacherLogits(teacher.sample_mask, teacher.head(teacher.rows[chunk]))


LossFn = Callable[[slice, Tensor], Tensor]
"""Maps a chunk of rows and its logits to nats, and overwrites the logits by their gradient."""


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Loss and nats of rows; gradients of rows and weights are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "rows batch hidden"],
        weight: Float[Tensor, "columns hidden"],
        loss_fn: LossFn,
        weights: Float[Tensor, "terms rows batch"] | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "terms rows batch"]]:
        needs_input_grad, needs_weight_grad = (
            is_needed and weights is not None for is_needed in ctx.needs_input_grad[:2]
        )
        rows_grad = torch.empty_like(rows) if needs_input_grad else None
        weight_grad = _WeightGradAccumulator(weight) if needs_weight_grad else None
        chunk_rows = logits_chunk_rows(weight.shape[0], rows.shape[1], on_gpu=rows.is_cuda)
        # One buffer, reused by all chunks: the only tensor with a vocabulary dimension beside the
        # weights and their gradient.
        logits_buffer = rows.new_empty(min(chunk_rows, len(rows)), rows.shape[1], weight.shape[0])
        chunk_nlls = []
        for start in range(0, len(rows), chunk_rows):
            chunk = slice(start, min(start + chunk_rows, len(rows)))
            logits = logits_buffer[: chunk.stop - chunk.start]
            torch.matmul(rows[chunk], weight.t(), out=logits)
            chunk_nlls.append(loss_fn(chunk, logits))  # from here on `logits` is its gradient
            if rows_grad is not None:
                torch.matmul(logits, weight, out=rows_grad[chunk])
            if weight_grad is not None:
                weight_grad.add_product(logits.flatten(0, 1).t(), rows[chunk].flatten(0, 1))
        all_nll = torch.cat(chunk_nlls, dim=1)
        loss = all_nll.new_zeros(()) if weights is None else _weighted_sum(all_nll, weights)
        ctx.save_for_backward(rows_grad, None if weight_grad is None else weight_grad.total)
        ctx.mark_non_differentiable(all_nll)
        return loss, all_nll

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        scale = upstream[0]
        # Scaled in place, to avoid a copy as large as the head's weights. Therefore a second
        # backward pass through the same graph is not possible.
        grads = ctx.saved_tensors
        return *(None if g is None else g.mul_(scale.to(g.dtype)) for g in grads), None, None


def _weighted_sum(nats: Tensor, weights: Tensor) -> Tensor:
    """Return the loss; rows of weight 0 contribute 0 even if their nats are not finite."""
    return (nats * weights.to(nats.dtype)).where(weights != 0, 0.0).sum()


class _WeightGradAccumulator:
    """Sum over chunks of the gradient of the head's weights.

    Half-precision products are summed in float32: 16 chunks summed in bfloat16 would round 16
    times. A single chunk needs no sum and gives the bits that an unchunked backward pass would.
    """

    def __init__(self, weight: Tensor) -> None:
        self._is_wide = weight.dtype in (torch.float32, torch.float64)
        self._weight = weight
        self._sum: Tensor | None = None

    def add_product(
        self, logits_grad: Float[Tensor, "columns n"], rows: Float[Tensor, "n hidden"]
    ) -> None:
        if self._sum is None:
            self._sum = logits_grad @ rows
        elif self._is_wide:
            self._sum.addmm_(logits_grad, rows)
        else:
            self._sum = self._sum.float().add_(logits_grad @ rows)

    @property
    def total(self) -> Float[Tensor, "columns hidden"]:
        assert self._sum is not None, "a batch has at least one row"
        return self._sum.to(self._weight.dtype)
