"""What targets cost, from logits whose vocabulary is split over tensor-parallel ranks.

    nll = -log softmax(z)[x]            gradient by z: softmax(z) - onehot(x)
    kl  = KL(parent || model)           gradient by z: softmax(z) - softmax(parent)

Logits are the largest tensor of a step, so they are worked on where they lie: the exponentials, and
then the gradient, take the place of the logits that they come from. No second tensor of that size
exists, save the float32 copy that half-precision logits are summed in. Ranks exchange two numbers a
row.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """The columns of the logits that a rank holds, padding included."""

    vocab_start: int
    """The token id of the first."""
    vocab_size: int
    """Number of tokens; columns beyond are padding and get no probability."""
    group: dist.ProcessGroup
    """The tensor-parallel group."""


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """What another network says of some samples."""

    samples: Bool[Tensor, " b"]
    """Which samples of the batch: `s` of them."""
    logits: Float[Tensor, "rows s columns"]
    """The same columns of its logits; used up."""


@torch.no_grad()
def fused_cross_entropy_(
    logits: Float[Tensor, "rows b columns"],
    labels: Int[Tensor, "rows b"],
    columns: VocabShard,
    *,
    weights: Float[Tensor, "terms rows b"] | None = None,
    parent: TeacherLogits | None = None,
) -> Float[Tensor, "terms rows b"]:
    """Nats of every row; the logits are used up, and hold a gradient where weights are given.

    Computed in float32, or in float64 where the logits are. megatron-core's own loss is float32
    only, which would rule out the float64 proofs of exactness.

    Args:
        logits: this rank's columns. Overwritten: by the gradient of the sum of `weights` times
            nats with respect to them, zero in padding; without weights by nothing of use.
        labels: token ids of the whole vocabulary, the same on every rank of the group.
        columns: which columns this rank holds.
        weights: of each term in each row.
        parent: what the network is compared with.

    Returns:
        The negative log-likelihood of the labels, and with a parent KL(parent || model), 0 for
        samples that it leaves out; the same on every rank of the group. Equal logits give a
        divergence of exactly 0.
    """
    is_half = logits.dtype in (torch.bfloat16, torch.float16)
    logits32 = logits.float() if is_half else logits
    tokens = _tokens_of(logits32, columns)
    column = (labels - columns.vocab_start).unsqueeze(-1)
    is_here = (column >= 0) & (column < tokens.shape[-1])
    column = column.where(is_here, 0)
    _subtract_largest_(tokens, columns)
    label_logit = tokens.gather(-1, column).where(is_here, 0).squeeze(-1)
    shifted_logits = None if parent is None else tokens[:, parent.samples]
    sum_exp = tokens.exp_().sum(dim=-1)
    label_logit, sum_exp = _sum_over_ranks(torch.stack((label_logit, sum_exp)), columns)
    terms = [sum_exp.log() - label_logit]
    target = None
    if parent is not None:
        assert shifted_logits is not None
        target, kl = _divergence(parent, shifted_logits, sum_exp[:, parent.samples], columns)
        terms.append(torch.zeros_like(terms[0]))
        terms[1][:, parent.samples] = kl
    nats = torch.stack(terms)
    if weights is None:
        return nats
    weights = weights.to(logits32.dtype)
    total = weights[0].clone()
    if parent is not None:
        total[:, parent.samples] += weights[1][:, parent.samples]
    tokens.mul_((total / sum_exp).unsqueeze(-1))
    tokens.scatter_add_(-1, column, (-weights[0].unsqueeze(-1)).where(is_here, 0))
    if parent is not None:
        assert target is not None
        tokens[:, parent.samples] -= target * weights[1][:, parent.samples].unsqueeze(-1)
    logits32[..., max(columns.vocab_size - columns.vocab_start, 0) :].zero_()
    if is_half:
        logits.copy_(logits32)
    return nats


def vocab_parallel_nll(
    logits: Float[Tensor, "rows b columns"], labels: Int[Tensor, "rows b"], columns: VocabShard
) -> Float[Tensor, "rows b"]:
    """-log softmax(logits)[label] in nats, for rows that are weighed afterwards.

    At the price of a second tensor of the logits' size, which the backward pass multiplies by the
    rows' weights.
    """
    return _DifferentiableNll.apply(logits, labels, columns)  # pyright: ignore[reportReturnType]


class _DifferentiableNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, columns: VocabShard) -> Tensor:
        gradient = logits.clone()
        one = torch.ones(1, *labels.shape, dtype=torch.float64, device=labels.device)
        (nll,) = fused_cross_entropy_(gradient, labels, columns, weights=one)
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].unsqueeze(-1).to(gradient.dtype), None, None


def _tokens_of(logits: Tensor, columns: VocabShard) -> Float[Tensor, "*rows kept"]:
    """The columns that are tokens; a rank of padding alone keeps one, of probability 0."""
    num_tokens = columns.vocab_size - columns.vocab_start
    if num_tokens <= 0:
        logits[..., :1].fill_(-torch.inf)
    return logits[..., : max(num_tokens, 1)]


def _subtract_largest_(tokens: Tensor, columns: VocabShard) -> None:
    """Lowers each row by its largest logit on any rank."""
    largest = tokens.amax(dim=-1, keepdim=True)
    if columns.group.size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=columns.group)
    tokens.sub_(largest)


def _divergence(
    parent: TeacherLogits, shifted: Tensor, partition: Tensor, columns: VocabShard
) -> tuple[Float[Tensor, "rows s kept"], Float[Tensor, "rows s"]]:
    """The parent's probabilities and KL(parent || model), of logits less the row's largest."""
    teacher_logits = _tokens_of(parent.logits.to(shifted.dtype), columns)
    _subtract_largest_(teacher_logits, columns)
    probability = teacher_logits.exp()
    teacher_sum_exp = _sum_over_ranks(probability.sum(dim=-1), columns)
    probability /= teacher_sum_exp.unsqueeze(-1)
    # The column of a rank of padding alone is -inf on both sides.
    difference = teacher_logits.sub_(shifted).where(probability > 0, 0.0)
    mean = _sum_over_ranks((probability * difference).sum(dim=-1), columns)
    return probability, mean - teacher_sum_exp.log() + partition.log()


def _sum_over_ranks(values: Tensor, columns: VocabShard) -> Tensor:
    if columns.group.size() > 1:
        dist.all_reduce(values, group=columns.group)
    return values


def sum_over_targets(
    nll: Float[Tensor, "batch queries"], is_target: Bool[Tensor, "batch queries"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Summed nats and number of targets; whoever holds the whole global batch divides, once."""
    return nll.where(is_target, 0.0).sum(), is_target.sum()
