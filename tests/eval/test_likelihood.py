"""Held-out likelihood: what the network says, averaged right, whoever does the work."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from armd_scale.data.windows import TokenWindows
from armd_scale.eval.likelihood import evaluate, score_windows
from armd_scale.eval.output import write_dump
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.held_out import write_documents, write_manifest
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position
from tests.support.spawn import run_on_ranks

N, SEED = 16, 3


@pytest.fixture
def prefix(tmp_path):
    return write_documents(tmp_path / "valid")


def likelihood(network, windows, groups, spec="random", **changes):
    how = {"samples": 7, "seed": SEED, "micro_batch": 3, **changes}
    return evaluate(network, windows, parse_spec(spec), groups=groups, **how)


def by_hand(network, windows, spec, count, seed=SEED):
    """Nats of every target, one list a window."""
    nats = []
    for w in range(count):
        lengths = windows.lengths(w)
        block = sample_blocks(parse_spec(spec), seed=seed, sample_index=w, lengths=lengths)
        (found,) = log_probs_by_position(
            network, batch_of(windows.window(w)[None], block[None], [lengths])
        )
        nats.append([-value.item() for value in found.values()])
    return nats


@pytest.mark.parametrize("packing", ["concat", "documents"])
@pytest.mark.parametrize("spec", ["l2r", "random", "strided:4", "diffusion:5"])
def test_the_mean_over_targets_of_the_first_windows(groups, prefix, spec, packing):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing=packing)
    nats = by_hand(network, windows, spec, 7)
    found = likelihood(network, windows, groups, spec)
    flat = np.concatenate(nats)
    assert found.order == spec
    assert found.num_tokens == len(flat)
    assert found.nll_nats_per_token == pytest.approx(flat.mean(), abs=1e-10)
    assert found.perplexity == pytest.approx(math.exp(flat.mean()), rel=1e-10)
    assert (len(flat) == 7 * N) == (packing == "concat")


def test_standard_error_over_windows(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    means = [np.mean(window) for window in by_hand(network, windows, "random", 7)]
    expected = np.std(means, ddof=1) / math.sqrt(7)
    found = likelihood(network, windows, groups)
    assert found.standard_error == pytest.approx(expected, rel=1e-9)
    assert likelihood(network, windows, groups, samples=1).standard_error is None


def test_standard_error_of_windows_with_different_numbers_of_targets(groups, prefix):
    """Close to the jackknife, which makes no use of the formula."""
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing="documents")
    nats = by_hand(network, windows, "random", windows.num_windows)
    assert len({len(window) for window in nats}) > 1
    left_out = [np.concatenate(nats[:w] + nats[w + 1 :]).mean() for w in range(len(nats))]
    jackknife = math.sqrt((len(nats) - 1) * np.var(left_out))
    found = likelihood(network, windows, groups, samples=len(nats))
    assert found.standard_error == pytest.approx(jackknife, rel=0.05)


def test_all_windows_where_more_are_asked_for(groups, prefix):
    network = build(LLAMA, groups)
    windows = TokenWindows(prefix, N)
    assert likelihood(network, windows, groups, samples=10**6).num_tokens == N * windows.num_windows


def test_uniform_weights_give_the_logarithm_of_the_vocabulary(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    with torch.no_grad():
        network.embedding.weight.zero_()
    found = likelihood(network, TokenWindows(prefix, N), groups)
    assert found.nll_nats_per_token == pytest.approx(math.log(101), abs=1e-12)
    assert found.perplexity == pytest.approx(101, rel=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_the_draws_follow_from_seed_and_window_alone(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    one = likelihood(network, windows, groups)
    assert likelihood(network, windows, groups) == one
    other_batches = likelihood(network, windows, groups, micro_batch=7)
    assert other_batches.nll_nats_per_token == pytest.approx(one.nll_nats_per_token, abs=1e-12)
    other_seed = likelihood(network, windows, groups, seed=SEED + 1)
    assert abs(other_seed.nll_nats_per_token - one.nll_nats_per_token) > 1e-4


def test_bits_per_byte_need_a_manifest(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    assert likelihood(network, windows, groups).bits_per_byte is None
    write_manifest(prefix, tokens=175, text_bytes=700)
    found = likelihood(network, windows, groups)
    assert found.bits_per_byte == pytest.approx(found.nll_nats_per_token / math.log(2) / 4)
    write_manifest(prefix, tokens=175, text_bytes=0)
    assert likelihood(network, windows, groups).bits_per_byte is None


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_scores_stand_in_text_order(groups, prefix, packing):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing=packing)
    order = parse_spec("strided-ar:3")
    scores = score_windows(network, windows, order, numbers=range(1, 4), seed=SEED)
    assert scores.first == 1
    for row, w in enumerate(range(1, 4)):
        lengths = windows.lengths(w)
        block = sample_blocks(order, seed=SEED, sample_index=w, lengths=lengths)
        np.testing.assert_array_equal(scores.tokens[row], windows.window(w))
        np.testing.assert_array_equal(scores.block[row], block)
        (expected,) = log_probs_by_position(
            network, batch_of(windows.window(w)[None], block[None], [lengths])
        )
        found = {p + 1: v for p, v in enumerate(scores.logprob[row].tolist()) if not math.isnan(v)}
        assert found == pytest.approx({p: v.item() for p, v in expected.items()}, abs=1e-10)
        assert found.keys() == set(np.flatnonzero(block).tolist())


def test_half_precision_weights_are_scored_in_float32(groups, prefix):
    windows = TokenWindows(prefix, N)
    full = build(LLAMA, groups)
    half = build(LLAMA, groups, dtype=torch.bfloat16)
    scores = score_windows(half, windows, parse_spec("random"), numbers=range(2), seed=SEED)
    assert scores.logprob.dtype is torch.float32
    found = likelihood(half, windows, groups).nll_nats_per_token
    expected = likelihood(full, windows, groups).nll_nats_per_token
    assert found == pytest.approx(expected, abs=0.03)
    assert found != expected


def test_nothing_is_kept_for_a_backward_pass(groups, prefix):
    network = build(LLAMA, groups)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        likelihood(network, TokenWindows(prefix, N), groups)
    assert not saved
    assert all(parameter.requires_grad for parameter in network.parameters())


def evaluate_on_rank(groups, prefix, folder, samples):
    network = build(LLAMA, groups)
    passes, kept = [], []
    network.register_forward_hook(lambda *_: passes.append(1))
    found = likelihood(
        network,
        TokenWindows(prefix, N, packing="documents"),
        groups,
        samples=samples,
        micro_batch=2,
        watch=kept.append,
    )
    write_dump(folder / f"{groups.dp.size()}.safetensors", kept, groups=groups)
    return dataclasses.asdict(found), len(passes), [scores.first for scores in kept]


def test_any_number_of_ranks_gives_the_same_figures_and_dump(groups, prefix, tmp_path):
    """Five windows in twos make three passes: the second rank's second one is for nothing."""
    alone, passes, _ = evaluate_on_rank(groups, prefix, tmp_path, 5)
    assert passes == 3
    ranks = run_on_ranks(evaluate_on_rank, 2, prefix, tmp_path, 5)
    assert [figures for figures, _, _ in ranks] == [alone, alone]
    assert [passes for _, passes, _ in ranks] == [2, 2]
    assert [firsts for _, _, firsts in ranks] == [[0, 4], [2]]
    one, two = (tmp_path / f"{n}.safetensors" for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()
