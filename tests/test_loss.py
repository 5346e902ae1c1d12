"""What targets cost over a split vocabulary, its gradient in the logits' place, and the head."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from armd_scale.bench.suites.step import mean_of_targets
from armd_scale.config import derived as derive
from armd_scale.config.schema import ParallelConfig
from armd_scale.loss import (
    TeacherLogits,
    VocabShard,
    fused_cross_entropy_,
    sum_over_targets,
    vocab_parallel_nll,
)
from armd_scale.model.loss_spec import LossSpec
from tests.support.networks import LLAMA, QWEN3, build
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows

ROWS, VOCAB = (5, 3), 101
WEIGHTS = torch.arange(1.0, 16, dtype=torch.float64).view(ROWS)
SAMPLES = torch.tensor([True, False, True])


def drawn(scale=5.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(*ROWS, VOCAB, generator=generator, dtype=dtype)
    return logits, torch.randint(0, VOCAB, ROWS, generator=generator)


def columns_of(groups, first_token=0, vocab_size=VOCAB):
    return VocabShard(vocab_start=first_token, vocab_size=vocab_size, group=groups.tp)


def parent_of(logits):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return logits + logits.std() * noise


def dense_nll(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(ROWS)


def dense_kl(parent, logits):
    """Sum p (log p - log q) of SAMPLES, 0 elsewhere."""
    mine, theirs = logits.log_softmax(-1), parent.log_softmax(-1)
    return (theirs.exp() * (theirs - mine)).sum(-1) * SAMPLES


def dense(logits, labels, *parent):
    """Nats of every term by torch alone, and the gradient of their weighted sum."""
    leaf = logits.detach().clone().requires_grad_()
    terms = [dense_nll(leaf, labels), *(dense_kl(one, leaf) for one in parent)]
    loss = sum(((t + 1) * WEIGHTS * nats).sum() for t, nats in enumerate(terms))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return torch.stack(terms).detach(), gradient


def ours(logits, labels, columns, *parent):
    """The same by the function under test."""
    work = logits.clone()
    against = [TeacherLogits(SAMPLES, one[:, SAMPLES].clone()) for one in parent]
    weights = torch.stack([(t + 1) * WEIGHTS for t in range(1 + len(parent))])
    nats = fused_cross_entropy_(
        work, labels, columns, weights=weights, parent=against[0] if against else None
    )
    return nats, work


@pytest.mark.parametrize("scale", [1.0, 50.0, 2000.0])
@pytest.mark.parametrize("with_parent", [False, True])
def test_nats_and_gradient_equal_the_dense_ones(groups, scale, with_parent):
    logits, labels = drawn(scale)
    parent = [parent_of(logits)] if with_parent else []
    nats, gradient = ours(logits, labels, columns_of(groups), *parent)
    expected, dense_gradient = dense(logits, labels, *parent)
    torch.testing.assert_close(nats, expected, atol=1e-12 * scale, rtol=0)
    torch.testing.assert_close(gradient, dense_gradient, atol=1e-11 * scale, rtol=0)
    if with_parent:
        assert nats[1][:, SAMPLES].max() > 0.1


def test_without_weights_the_nats_are_the_same(groups):
    logits, labels = drawn()
    nats = fused_cross_entropy_(logits.clone(), labels, columns_of(groups))
    torch.testing.assert_close(nats[0], dense_nll(logits, labels), atol=1e-12, rtol=0)


def test_rows_can_be_weighed_afterwards(groups):
    logits, labels = drawn()
    leaf = logits.clone().requires_grad_()
    nll = vocab_parallel_nll(leaf, labels, columns_of(groups))
    (gradient,) = torch.autograd.grad((nll * WEIGHTS).sum(), leaf)
    expected, dense_gradient = dense(logits, labels)
    torch.testing.assert_close(nll.detach(), expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, dense_gradient, atol=1e-11, rtol=0)
    assert torch.equal(leaf.detach(), logits)


def test_half_precision_logits_are_summed_in_float32(groups):
    logits, labels = drawn(dtype=torch.bfloat16)
    nats, gradient = ours(logits, labels, columns_of(groups))
    assert nats.dtype is torch.float32
    assert gradient.dtype is torch.bfloat16
    expected, dense_gradient = dense(logits.float(), labels)
    torch.testing.assert_close(nats, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient.float(), dense_gradient.float(), atol=0, rtol=0.004)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_model_diverges_from_itself_by_exactly_nothing(groups, dtype):
    logits, labels = drawn(dtype=dtype)
    nats, _ = ours(logits, labels, columns_of(groups), logits)
    assert not nats[1].any()


def of_share(groups, vocab_size):
    """Of 64 columns of 128, of which `vocab_size` are tokens."""
    logits, labels = drawn(50.0)
    first = groups.tp.rank() * 64
    share, parent = (
        F.pad(one, (0, 27))[..., first : first + 64] for one in (logits, parent_of(logits))
    )
    labels = labels.clamp(max=vocab_size - 1)
    return ours(share, labels, columns_of(groups, first, vocab_size), parent)


@pytest.mark.parametrize("vocab_size", [101, 64, 60])
def test_a_vocabulary_in_two_shares(vocab_size):
    """The second share holds 37 tokens and padding, or padding alone."""
    logits, labels = drawn(50.0)
    expected, dense_gradient = dense(
        logits[..., :vocab_size],
        labels.clamp(max=vocab_size - 1),
        parent_of(logits)[..., :vocab_size],
    )
    shares = run_on_ranks(of_share, 2, vocab_size, parallel=ParallelConfig(tensor=2))
    for nats, _ in shares:
        torch.testing.assert_close(nats, expected, atol=1e-12, rtol=0)
    whole = torch.cat([share for _, share in shares], dim=-1)
    torch.testing.assert_close(whole[..., :vocab_size], dense_gradient, atol=1e-11, rtol=0)
    assert not whole[..., vocab_size:].any()


def test_sum_and_count_leave_given_tokens_out():
    nll = torch.tensor([[1.0, torch.nan, 3.0], [4.0, 5.0, torch.inf]])
    is_target = torch.tensor([[True, False, True], [True, True, False]])
    total, count = sum_over_targets(nll, is_target)
    assert (total.item(), count.item()) == (13.0, 4)


@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["tied", "untied"])
def test_uniform_weights_give_the_logarithm_of_the_vocabulary(groups, model):
    """Of the vocabulary as it is, not as it is padded for the tensor-parallel ranks."""
    network = build(model, groups, dtype=torch.float64)
    assert network.embedding.weight.shape[0] > model.vocab_size
    with torch.no_grad():
        (network.embedding if model.tie_embeddings else network.output_layer).weight.zero_()
    nll = network(draw_windows("random", (12,)).batch())
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(101)), atol=1e-12, rtol=0)


def test_padded_rows_of_the_head_learn_nothing(groups):
    network = build(QWEN3, groups, dtype=torch.float64)
    batch = draw_windows("random", (12,)).batch()
    loss, _ = network(batch, mean_of_targets(batch))
    loss.backward()
    padded = network.output_layer.weight.grad[101:]
    assert len(padded) > 0
    assert not padded.any()
    assert network.logits(batch).shape[-1] == 101


def learned(network, batch, objective):
    """Loss, nats and gradients."""
    network.zero_grad()
    loss, nats = network(batch, objective)
    (3 * loss).backward()
    gradients = {name: p.grad.clone() for name, p in network.parameters_by_name().items()}
    return loss.detach(), nats, gradients


@pytest.mark.parametrize("rows_at_once", [1, 4, 5, 100])
@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["tied", "untied"])
def test_gradients_made_ahead_are_those_of_the_loss(groups, monkeypatch, model, rows_at_once):
    """In chunks of any size, against autograd through whole logits."""
    network = build(model, groups, dtype=torch.float64)
    batch = draw_windows("strided:2", (7, 5)).batch()
    assert not batch.is_target.all()
    weights = torch.linspace(0.5, 2, batch.labels.numel(), dtype=torch.float64)
    objective = LossSpec(weights.view(batch.labels.shape)[None] * batch.is_target)
    expected = (network(batch) * objective.weights[0]).where(batch.is_target, 0.0).sum()
    network.zero_grad()
    (3 * expected).backward()
    wanted = {name: p.grad.clone() for name, p in network.parameters_by_name().items()}
    monkeypatch.setattr(derive, "LEAST_ROWS", 1)
    monkeypatch.setattr(derive, "LOGITS_ON_CPU", rows_at_once * 2 * 128)
    loss, nats, found = learned(network, batch, objective)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-11, rtol=0)
    torch.testing.assert_close(nats[0], network(batch).detach(), atol=1e-12, rtol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-11, rtol=0)


def test_half_precision_gradients_of_chunks_add_up_in_float32(groups, monkeypatch):
    """Many chunks round about as one does, not as often as they are."""
    network = build(QWEN3, groups, dtype=torch.bfloat16)
    batch = draw_windows("random", (65,)).batch()
    errors = []
    exact = build(QWEN3, groups, dtype=torch.bfloat16).double()
    *_, wanted = learned(exact, batch, mean_of_targets(batch))
    for rows in (64, 1):
        monkeypatch.setattr(derive, "LEAST_ROWS", 1)
        monkeypatch.setattr(derive, "LOGITS_ON_CPU", rows * 2 * 128)
        *_, found = learned(network, batch, mean_of_targets(batch))
        name = "output_layer.weight"
        errors.append((found[name].double() - wanted[name]).norm() / wanted[name].norm())
    assert errors[1] < 1.5 * errors[0], errors


def test_rows_without_a_target_bring_nothing_whatever_they_cost(groups):
    network = build(LLAMA, groups)
    batch = draw_windows("l2r", (7, 5)).batch()
    objective = mean_of_targets(batch)
    bent = dataclasses.replace(batch, labels=batch.labels.where(batch.is_target, 0))
    loss, _, found = learned(network, batch, objective)
    other, _, same = learned(network, bent, objective)
    assert torch.equal(loss, other)
    for name, gradient in found.items():
        assert torch.equal(gradient, same[name])


def test_no_more_logits_are_kept_than_rows_and_weights(groups):
    """Autograd keeps the two gradients and nothing as large as the logits."""
    network = build(dataclasses.replace(LLAMA, vocab_size=4000), groups)
    batch = draw_windows("random", (129,)).batch()
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(batch, mean_of_targets(batch))
    assert max(sizes) == network.embedding.weight.numel() < 128 * 2 * 4000
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(batch)
    assert max(sizes) == 128 * 2 * network.embedding.weight.shape[0]
