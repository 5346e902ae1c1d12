"""Vocabulary-parallel cross-entropy and divergence, their in-place gradients, and the LM head."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from armd_scale.bench.suites.step import mean_loss_spec
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


def draw(scale=5.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(*ROWS, VOCAB, generator=generator, dtype=dtype)
    return logits, torch.randint(0, VOCAB, ROWS, generator=generator)


def make_shard(groups, vocab_start=0, vocab_size=VOCAB):
    return VocabShard(vocab_start=vocab_start, vocab_size=vocab_size, group=groups.tp)


def perturb(logits):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return logits + logits.std() * noise


def dense_nll(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(ROWS)


def dense_kl(teacher, logits):
    """Return sum p (log p - log q) for SAMPLES, 0 elsewhere."""
    log_q, log_p = logits.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * SAMPLES


def dense_terms(logits, labels, *teachers):
    """Return the nats of every term by torch, and the gradient of their weighted sum."""
    leaf = logits.detach().clone().requires_grad_()
    terms = [dense_nll(leaf, labels), *(dense_kl(teacher, leaf) for teacher in teachers)]
    loss: Any = sum(((t + 1) * WEIGHTS * nats).sum() for t, nats in enumerate(terms))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return torch.stack(terms).detach(), gradient


def fused_terms(logits, labels, shard, *teachers):
    """Return the same by the function under test."""
    logits = logits.clone()
    teacher = None
    if teachers:
        teacher = TeacherLogits(SAMPLES, teachers[0][:, SAMPLES].clone())
    weights = torch.stack([(t + 1) * WEIGHTS for t in range(1 + len(teachers))])
    nats = fused_cross_entropy_(logits, labels, shard, weights=weights, teacher=teacher)
    return nats, logits


@pytest.mark.parametrize("scale", [1.0, 50.0, 2000.0])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_nats_and_gradient_equal_the_dense_computation(groups, scale, with_teacher):
    logits, labels = draw(scale)
    teachers = [perturb(logits)] if with_teacher else []
    nats, gradient = fused_terms(logits, labels, make_shard(groups), *teachers)
    expected, dense_gradient = dense_terms(logits, labels, *teachers)
    torch.testing.assert_close(nats, expected, atol=1e-12 * scale, rtol=0)
    torch.testing.assert_close(gradient, dense_gradient, atol=1e-11 * scale, rtol=0)
    if with_teacher:
        assert nats[1][:, SAMPLES].max() > 0.1


def test_nats_without_weights(groups):
    logits, labels = draw()
    nats = fused_cross_entropy_(logits.clone(), labels, make_shard(groups))
    torch.testing.assert_close(nats[0], dense_nll(logits, labels), atol=1e-12, rtol=0)


def test_rows_can_be_weighted_afterwards(groups):
    logits, labels = draw()
    leaf = logits.clone().requires_grad_()
    nll = vocab_parallel_nll(leaf, labels, make_shard(groups))
    (gradient,) = torch.autograd.grad((nll * WEIGHTS).sum(), leaf)
    expected, dense_gradient = dense_terms(logits, labels)
    torch.testing.assert_close(nll.detach(), expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, dense_gradient, atol=1e-11, rtol=0)
    assert torch.equal(leaf.detach(), logits)


def test_half_precision_logits_are_summed_in_float32(groups):
    logits, labels = draw(dtype=torch.bfloat16)
    nats, gradient = fused_terms(logits, labels, make_shard(groups))
    assert nats.dtype is torch.float32
    assert gradient.dtype is torch.bfloat16
    expected, dense_gradient = dense_terms(logits.float(), labels)
    torch.testing.assert_close(nats, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradient.float(), dense_gradient.float(), atol=0, rtol=0.004)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_divergence_of_equal_logits_is_exactly_zero(groups, dtype):
    logits, labels = draw(dtype=dtype)
    nats, _ = fused_terms(logits, labels, make_shard(groups), logits)
    assert not nats[1].any()


def fused_terms_of_rank(groups, vocab_size):
    """Compute with this rank's 64 of 128 columns, of which `vocab_size` are tokens."""
    logits, labels = draw(50.0)
    first = groups.tp.rank() * 64
    shard, teacher = (
        F.pad(full, (0, 27))[..., first : first + 64] for full in (logits, perturb(logits))
    )
    labels = labels.clamp(max=vocab_size - 1)
    return fused_terms(shard, labels, make_shard(groups, first, vocab_size), teacher)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [101, 64, 60])
def test_a_vocabulary_on_two_ranks(vocab_size):
    """The second rank holds 37 tokens and padding, or padding only."""
    logits, labels = draw(50.0)
    expected, dense_gradient = dense_terms(
        logits[..., :vocab_size],
        labels.clamp(max=vocab_size - 1),
        perturb(logits)[..., :vocab_size],
    )
    results = run_on_ranks(fused_terms_of_rank, 2, vocab_size, parallel=ParallelConfig(tensor=2))
    for nats, _ in results:
        torch.testing.assert_close(nats, expected, atol=1e-12, rtol=0)
    whole = torch.cat([gradient for _, gradient in results], dim=-1)
    torch.testing.assert_close(whole[..., :vocab_size], dense_gradient, atol=1e-11, rtol=0)
    assert not whole[..., vocab_size:].any()


def test_sum_and_count_exclude_given_tokens():
    nll = torch.tensor([[1.0, torch.nan, 3.0], [4.0, 5.0, torch.inf]])
    is_target = torch.tensor([[True, False, True], [True, True, False]])
    total, count = sum_over_targets(nll, is_target)
    assert (total.item(), count.item()) == (13.0, 4)


@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["tied", "untied"])
def test_zero_head_weights_give_the_logarithm_of_the_vocabulary_size(groups, model):
    """The size is that without the padding for tensor parallel ranks."""
    network = build(model, groups, dtype=torch.float64)
    assert network.embedding.weight.shape[0] > model.vocab_size
    with torch.no_grad():
        head = "embedding" if model.tie_embeddings else "output_layer"
        network.get_parameter(f"{head}.weight").zero_()
    nll = network(draw_windows("random", (12,)).batch())
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(101)), atol=1e-12, rtol=0)


def test_padded_rows_of_the_head_have_no_gradient(groups):
    network = build(QWEN3, groups, dtype=torch.float64)
    batch = draw_windows("random", (12,)).batch()
    loss, _ = network(batch, mean_loss_spec(batch))
    loss.backward()
    gradient = network.get_parameter("output_layer.weight").grad
    assert gradient is not None
    padded = gradient[101:]
    assert len(padded) > 0
    assert not padded.any()
    assert network.logits(batch).shape[-1] == 101


def gradients_of(network):
    return {name: p.grad.clone() for name, p in network.parameters_by_name().items()}


def loss_and_gradients(network, batch, loss_spec):
    """Return loss, nats and the gradients of three times the loss."""
    network.zero_grad()
    loss, nats = network(batch, loss_spec)
    (3 * loss).backward()
    return loss.detach(), nats, gradients_of(network)


@pytest.mark.parametrize("chunk_rows", [1, 4, 5, 100])
@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["tied", "untied"])
def test_fused_gradients_equal_those_of_autograd(groups, monkeypatch, model, chunk_rows):
    """In chunks of any size, against autograd through all logits."""
    network = build(model, groups, dtype=torch.float64)
    batch = draw_windows("strided:2", (7, 5)).batch()
    assert not batch.is_target.all()
    weights = torch.linspace(0.5, 2, batch.labels.numel(), dtype=torch.float64)
    loss_spec = LossSpec(weights.view(batch.labels.shape)[None] * batch.is_target)
    expected = (network(batch) * loss_spec.weights[0]).where(batch.is_target, 0.0).sum()
    network.zero_grad()
    (3 * expected).backward()
    expected_grads = gradients_of(network)
    monkeypatch.setattr(derive, "MIN_ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(derive, "MAX_LOGITS_PER_CHUNK_CPU", chunk_rows * 2 * 128)
    loss, nats, grads = loss_and_gradients(network, batch, loss_spec)
    torch.testing.assert_close(loss, expected.detach(), atol=1e-11, rtol=0)
    torch.testing.assert_close(nats[0], network(batch).detach(), atol=1e-12, rtol=0)
    for name, gradient in expected_grads.items():
        torch.testing.assert_close(grads[name], gradient, atol=1e-11, rtol=0)


def test_half_precision_gradients_of_chunks_are_summed_in_float32(groups, monkeypatch):
    """The rounding error of many chunks is about that of one."""
    network = build(QWEN3, groups, dtype=torch.bfloat16)
    batch = draw_windows("random", (65,)).batch()
    errors = []
    exact = build(QWEN3, groups, dtype=torch.bfloat16).double()
    *_, expected_grads = loss_and_gradients(exact, batch, mean_loss_spec(batch))
    for rows in (64, 1):
        monkeypatch.setattr(derive, "MIN_ROWS_PER_CHUNK", 1)
        monkeypatch.setattr(derive, "MAX_LOGITS_PER_CHUNK_CPU", rows * 2 * 128)
        *_, grads = loss_and_gradients(network, batch, mean_loss_spec(batch))
        name = "output_layer.weight"
        errors.append(
            (grads[name].double() - expected_grads[name]).norm() / expected_grads[name].norm()
        )
    assert errors[1] < 1.5 * errors[0], errors


def test_rows_without_a_target_do_not_affect_the_loss(groups):
    network = build(LLAMA, groups)
    batch = draw_windows("l2r", (7, 5)).batch()
    loss_spec = mean_loss_spec(batch)
    changed = dataclasses.replace(batch, labels=batch.labels.where(batch.is_target, 0))
    loss, _, grads = loss_and_gradients(network, batch, loss_spec)
    other_loss, _, other_grads = loss_and_gradients(network, changed, loss_spec)
    assert torch.equal(loss, other_loss)
    for name, gradient in grads.items():
        assert torch.equal(gradient, other_grads[name])


def test_the_fused_head_saves_no_logits(groups):
    """Autograd saves the two gradients and nothing as large as the logits."""
    network = build(dataclasses.replace(LLAMA, vocab_size=4000), groups)
    batch = draw_windows("random", (129,)).batch()
    sizes = []

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        network(batch, mean_loss_spec(batch))
    assert max(sizes) == network.embedding.weight.numel() < 128 * 2 * 4000
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        network(batch)
    assert max(sizes) == 128 * 2 * network.embedding.weight.shape[0]
