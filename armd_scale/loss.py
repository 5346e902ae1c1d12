"""Vocabulary-parallel cross-entropy and KL divergence, computed in place.

For logits z of a row, with label x, and a teacher's logits t:

    nll = -log softmax(z)[x]                d nll / dz = softmax(z) - onehot(x)
    kl  = KL(softmax(t) || softmax(z))      d kl  / dz = softmax(z) - softmax(t)

Logits are the largest tensor of a step (GPT-2 small, 8 x 1024 targets: 1.6 GB in float32), so they
are overwritten: first by their exponentials, then by the gradient. No second tensor of that size
exists, except for the float32 copy of half-precision logits. The ranks of a tensor parallel group
exchange three numbers per row: the maximum, the sum of exponentials and the label's logit.
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
    """Token ID of the first column."""
    vocab_size: int
    """Number of tokens; columns from this token ID on are padding and get probability 0."""
    group: dist.ProcessGroup
    """The tensor parallel group."""


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """A teacher's logits for some samples of a batch."""

    sample_mask: Bool[Tensor, " batch"]
    """Which samples; `s` of them."""
    logits: Float[Tensor, "rows s columns"]
    """The same columns as the model's logits. Overwritten."""


@torch.no_grad()
def fused_cross_entropy_(
    logits: Float[Tensor, "rows batch columns"],
    labels: Int[Tensor, "rows batch"],
    shard: VocabShard,
    *,
    weights: Float[Tensor, "terms rows batch"] | None = None,
    teacher: TeacherLogits | None = None,
) -> Float[Tensor, "terms rows batch"]:
    """Return the loss terms of every row in nats, and replace the logits by their gradient.

    Computed in float32, or in float64 if the logits are. megatron-core's vocabulary-parallel loss
    casts to float32, which would rule out float64 proofs of exactness.

    Args:
        logits: this rank's columns. Overwritten by the gradient of sum(weights * terms) with
            respect to them, 0 in padding; without weights, by intermediate values.
        labels: token IDs of the whole vocabulary, equal on every rank of the group.
        shard: which columns this rank holds.
        weights: weight of each term in each row.
        teacher: adds the divergence from its distribution as a second term.

    Returns:
        Term 0 is the negative log-likelihood of the labels; term 1, with a teacher, is
        KL(teacher || model), 0 for samples that the teacher leaves out, and exactly 0 if the
        logits are equal. Equal on every rank of the group.
    """
    is_half = logits.dtype in (torch.bfloat16, torch.float16)
    logits32 = logits.float() if is_half else logits
    tokens = _token_columns(logits32, shard)
    # A label outside this shard reads column 0 instead and is masked, so that all ranks run the
    # same kernels and collectives.
    column = (labels - shard.vocab_start).unsqueeze(-1)
    is_local = (column >= 0) & (column < tokens.shape[-1])
    column = column.where(is_local, 0)

    _subtract_max_(tokens, shard)
    label_logit = tokens.gather(-1, column).where(is_local, 0).squeeze(-1)
    # Boolean indexing copies: the divergence needs these logits after `exp_` has replaced them.
    shifted_logits = None if teacher is None else tokens[:, teacher.sample_mask]
    sum_exp = tokens.exp_().sum(dim=-1)
    label_logit, sum_exp = _all_reduce(torch.stack((label_logit, sum_exp)), shard)

    terms = [sum_exp.log() - label_logit]
    teacher_probs = None
    if teacher is not None:
        assert shifted_logits is not None
        mask = teacher.sample_mask
        teacher_probs, kl = _divergence(teacher, shifted_logits, sum_exp[:, mask], shard)
        terms.append(torch.zeros_like(terms[0]))
        terms[1][:, mask] = kl
    if weights is not None:
        mask = None if teacher is None else teacher.sample_mask
        weights = weights.to(tokens.dtype)
        _to_gradient_(tokens, sum_exp, weights, column, is_local, mask, teacher_probs)
        logits32[..., max(shard.vocab_size - shard.vocab_start, 0) :].zero_()  # padding
        if is_half:
            logits.copy_(logits32)
    return torch.stack(terms)


def _to_gradient_(
    tokens: Float[Tensor, "rows batch tokens"],
    sum_exp: Float[Tensor, "rows batch"],
    weights: Float[Tensor, "terms rows batch"],
    column: Int[Tensor, "rows batch 1"],
    is_local: Bool[Tensor, "rows batch 1"],
    sample_mask: Bool[Tensor, " batch"] | None,
    teacher_probs: Float[Tensor, "rows s tokens"] | None,
) -> None:
    """Replace exponentials of logits by the gradient of the weighted terms.

    d/dz of sum_k w_k * term_k = (sum_k w_k) * softmax(z) - w_0 * onehot(x) - w_1 * softmax(t)
    """
    total_weight = weights[0].clone()
    if sample_mask is not None:
        total_weight[:, sample_mask] += weights[1][:, sample_mask]
    tokens.mul_((total_weight / sum_exp).unsqueeze(-1))
    # Labels of other ranks point to column 0 and add 0 to it.
    tokens.scatter_add_(-1, column, (-weights[0].unsqueeze(-1)).where(is_local, 0))
    if teacher_probs is not None:
        tokens[:, sample_mask] -= teacher_probs * weights[1][:, sample_mask].unsqueeze(-1)


def vocab_parallel_nll(
    logits: Float[Tensor, "rows batch columns"],
    labels: Int[Tensor, "rows batch"],
    shard: VocabShard,
) -> Float[Tensor, "rows batch"]:
    """Return -log softmax(logits)[label] in nats, differentiable row by row.

    For callers that weight the rows afterwards. Costs a second tensor of the size of the logits,
    the gradient of every row, which the backward pass scales by the rows' upstream gradients.
    """
    return _VocabParallelNll.apply(logits, labels, shard)  # pyright: ignore[reportReturnType]


class _VocabParallelNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, shard: VocabShard) -> Tensor:
        grad = logits.clone()
        ones = torch.ones(1, *labels.shape, dtype=torch.float64, device=labels.device)
        (nll,) = fused_cross_entropy_(grad, labels, shard, weights=ones)
        ctx.save_for_backward(grad)
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * upstream[0].unsqueeze(-1).to(grad.dtype), None, None


def _token_columns(logits: Tensor, shard: VocabShard) -> Float[Tensor, "*rows tokens"]:
    """Return the columns that are tokens, as a view.

    The last rank may hold nothing but padding. It keeps one column of -inf (probability 0), since
    maxima of an empty dimension do not exist.
    """
    num_tokens = shard.vocab_size - shard.vocab_start
    if num_tokens <= 0:
        logits[..., :1].fill_(-torch.inf)
    return logits[..., : max(num_tokens, 1)]


def _subtract_max_(tokens: Tensor, shard: VocabShard) -> None:
    """Subtract from each row its largest logit on any rank, so that `exp` cannot overflow."""
    largest = tokens.amax(dim=-1, keepdim=True)
    if shard.group.size() > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=shard.group)
    tokens.sub_(largest)


def _divergence(
    teacher: TeacherLogits, shifted_logits: Tensor, sum_exp: Tensor, shard: VocabShard
) -> tuple[Float[Tensor, "rows s tokens"], Float[Tensor, "rows s"]]:
    """Return the teacher's probabilities p and KL(p || q).

    With t and z shifted by their maxima, and T and Z the sums of their exponentials:

        KL = sum p (log p - log q) = sum p (t - z) - log T + log Z

    For t = z the sum is over zeros and the logarithms cancel, so the result is exactly 0.

    Args:
        teacher: logits t; overwritten.
        shifted_logits: z minus the row's maximum, [rows, s, tokens].
        sum_exp: Z over the whole vocabulary, [rows, s].
        shard: which columns this rank holds.
    """
    teacher_logits = _token_columns(teacher.logits.to(shifted_logits.dtype), shard)
    _subtract_max_(teacher_logits, shard)
    probs = teacher_logits.exp()
    teacher_sum_exp = _all_reduce(probs.sum(dim=-1), shard)
    probs /= teacher_sum_exp.unsqueeze(-1)
    # Where p underflows to 0 the difference may be infinite, and 0 * inf would be nan. That also
    # covers the -inf column of a rank with padding only.
    difference = teacher_logits.sub_(shifted_logits).where(probs > 0, 0.0)
    mean = _all_reduce((probs * difference).sum(dim=-1), shard)
    return probs, mean - teacher_sum_exp.log() + sum_exp.log()


def _all_reduce(values: Tensor, shard: VocabShard) -> Tensor:
    """Sum over the tensor parallel group, in place."""
    if shard.group.size() > 1:
        dist.all_reduce(values, group=shard.group)
    return values


def sum_over_targets(
    nll: Float[Tensor, "batch queries"], is_target: Bool[Tensor, "batch queries"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the summed nats and the number of targets.

    A sum and a count instead of a mean: the caller divides once, by the count of the whole global
    batch, so that micro-batches and ranks with different numbers of targets weigh correctly.
    `where` instead of a product, because rows without a target may hold nan.
    """
    return nll.where(is_target, 0.0).sum(), is_target.sum()
