"""Cross-entropy over a split vocabulary, and the head in chunks."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from armd_scale.config.schema import ParallelConfig
from armd_scale.loss import sum_over_targets, vocabulary_parallel_kl, vocabulary_parallel_nll
from armd_scale.model import armd
from tests.support.networks import LLAMA, QWEN3, build
from tests.support.ranks import run_on_ranks
from tests.support.samples import draw_windows

ROWS, VOCAB = (5, 3), 101


def drawn(scale=5.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(*ROWS, VOCAB, generator=generator, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, VOCAB, ROWS, generator=generator)


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(ROWS)


def gradient(nll, logits):
    weight = torch.arange(1.0, 1 + nll.numel(), dtype=nll.dtype).view_as(nll)
    return torch.autograd.grad((nll * weight).sum(), logits)[0]


@pytest.mark.parametrize("scale", [1.0, 50.0, 2000.0])
def test_equals_cross_entropy_forward_and_backward(groups, scale):
    logits, labels = drawn(scale)
    mine = vocabulary_parallel_nll(
        logits, labels, first_token=0, vocab_size=logits.shape[-1], group=groups.tp
    )
    theirs = cross_entropy(logits, labels)
    torch.testing.assert_close(mine, theirs, atol=1e-12 * scale, rtol=0)
    torch.testing.assert_close(
        gradient(mine, logits), gradient(theirs, logits), atol=1e-12 * scale, rtol=0
    )


def test_half_precision_logits_are_summed_in_float32(groups):
    logits, labels = drawn(dtype=torch.bfloat16)
    mine = vocabulary_parallel_nll(
        logits, labels, first_token=0, vocab_size=logits.shape[-1], group=groups.tp
    )
    assert mine.dtype is torch.float32
    torch.testing.assert_close(mine, cross_entropy(logits.float(), labels), atol=1e-5, rtol=0)
    assert gradient(mine, logits).dtype is torch.bfloat16


def nll_of_share(groups):
    logits, labels = drawn(50.0)
    rank, width = groups.tp.rank(), 64
    share = logits[..., rank * width : (rank + 1) * width].detach().requires_grad_()
    nll = vocabulary_parallel_nll(
        share, labels, first_token=rank * width, vocab_size=101, group=groups.tp
    )
    return nll.detach(), gradient(nll, share)


def test_a_vocabulary_in_two_unequal_shares():
    logits, labels = drawn(50.0)
    theirs = cross_entropy(logits, labels)
    shares = run_on_ranks(nll_of_share, 2, parallel=ParallelConfig(tensor=2))
    for nll, _ in shares:
        torch.testing.assert_close(nll, theirs.detach(), atol=1e-12, rtol=0)
    whole = torch.cat([share for _, share in shares], dim=-1)
    torch.testing.assert_close(whole, gradient(theirs, logits), atol=1e-12, rtol=0)


def parent_of(logits):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    return logits.detach() + logits.detach().std() * noise


def divergence(parent, logits):
    """Sum p (log p - log q), densely."""
    mine, theirs = logits.double().log_softmax(-1), parent.double().log_softmax(-1)
    return (theirs.exp() * (theirs - mine)).sum(-1)


@pytest.mark.parametrize("scale", [1.0, 50.0, 2000.0])
def test_divergence_equals_the_dense_one_forward_and_backward(groups, scale):
    logits, _ = drawn(scale)
    parent = parent_of(logits)
    mine = vocabulary_parallel_kl(
        parent, logits, first_token=0, vocab_size=logits.shape[-1], group=groups.tp
    )
    theirs = divergence(parent, logits)
    assert theirs.max() > 0.1
    torch.testing.assert_close(mine, theirs, atol=1e-12 * scale, rtol=0)
    torch.testing.assert_close(
        gradient(mine, logits), gradient(theirs, logits), atol=1e-12 * scale, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_model_diverges_from_itself_by_exactly_nothing(groups, dtype):
    logits, _ = drawn(dtype=dtype)
    nats = vocabulary_parallel_kl(
        logits, logits, first_token=0, vocab_size=logits.shape[-1], group=groups.tp
    )
    assert not nats.any()
    assert nats.dtype is (torch.float32 if dtype is torch.bfloat16 else dtype)


def kl_of_share(groups, vocab_size):
    logits, _ = drawn(50.0)
    rank, width = groups.tp.rank(), 64
    own = slice(rank * width, (rank + 1) * width)
    share = torch.nn.functional.pad(logits, (0, 27))[..., own].detach().requires_grad_()
    parent = torch.nn.functional.pad(parent_of(logits), (0, 27))[..., own]
    nats = vocabulary_parallel_kl(
        parent, share, first_token=rank * width, vocab_size=vocab_size, group=groups.tp
    )
    return nats.detach(), gradient(nats, share)


@pytest.mark.parametrize("vocab_size", [101, 64, 60])
def test_divergence_over_a_vocabulary_in_two_shares(vocab_size):
    """The second share holds 37 tokens and padding, or padding alone."""
    logits, _ = drawn(50.0)
    theirs = divergence(parent_of(logits)[..., :vocab_size], logits[..., :vocab_size])
    shares = run_on_ranks(kl_of_share, 2, vocab_size, parallel=ParallelConfig(tensor=2))
    for nats, _ in shares:
        torch.testing.assert_close(nats, theirs.detach(), atol=1e-12, rtol=0)
    whole = torch.cat([share for _, share in shares], dim=-1)
    torch.testing.assert_close(whole[..., :101], gradient(theirs, logits), atol=1e-12, rtol=0)
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
    network(draw_windows("random", (12,)).batch()).sum().backward()
    padded = network.output_layer.weight.grad[101:]
    assert len(padded) > 0
    assert not padded.any()
    assert network.logits(draw_windows("random", (12,)).batch()).shape[-1] == 101


@pytest.mark.parametrize("logits_per_chunk", [1, 101 * 2 * 4, 101 * 2 * 5])
@pytest.mark.parametrize("model", [LLAMA, QWEN3], ids=["tied", "untied"])
def test_a_head_in_chunks_equals_the_whole(groups, monkeypatch, model, logits_per_chunk):
    network = build(model, groups, dtype=torch.float64)
    batch = draw_windows("strided-joint:2", (12,)).batch()
    results = []
    for limit in (1 << 26, logits_per_chunk):
        monkeypatch.setattr(armd, "LOGITS_PER_CHUNK", limit)
        network.zero_grad()
        nll = network(batch)
        sum_over_targets(nll, batch.is_target)[0].backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append((nll.detach(), *gradients))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-12, rtol=0)


def test_chunks_bound_the_number_of_logits(groups, monkeypatch):
    """In the backward pass too: what a chunk kept for it would show among the saved tensors."""
    network = build(dataclasses.replace(LLAMA, vocab_size=4000), groups)
    batch = draw_windows("random", (33,)).batch()
    largest = {}
    for rows in (32, 4):
        monkeypatch.setattr(armd, "LOGITS_PER_CHUNK", rows * 2 * 4000)
        sizes = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(batch)
        largest[rows] = max(sizes)
    assert largest[32] >= 32 * 2 * 4000
    assert largest[4] < 32 * 2 * 4000 / 4
