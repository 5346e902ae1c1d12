"""Held-out likelihood: equal to a computation by hand, on any number of ranks."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from armd_scale.data.windows import TokenWindows
from armd_scale.eval.likelihood import Likelihood, evaluate, score_windows
from armd_scale.eval.output import write_dump
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.eval_data import write_documents, write_manifest
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position
from tests.support.spawn import run_on_ranks

N, SEED = 16, 3


@pytest.fixture
def prefix(tmp_path):
    return write_documents(tmp_path / "valid")


def compute_likelihood(network, windows, groups, spec="random", **changes):
    arguments = {"samples": 7, "seed": SEED, "micro_batch": 3, **changes}
    return evaluate(network, windows, parse_spec(spec), groups=groups, **arguments)


def compute_by_hand(network, windows, spec, num_windows, seed=SEED):
    """Nats of every target, one list per window."""
    nats = []
    for w in range(num_windows):
        lengths = windows.lengths(w)
        block = sample_blocks(parse_spec(spec), seed=seed, sample_index=w, lengths=lengths)
        (logprob,) = log_probs_by_position(
            network, batch_of(windows.window(w)[None], block[None], [lengths])
        )
        nats.append([-value.item() for value in logprob.values()])
    return nats


@pytest.mark.parametrize("packing", ["concat", "documents"])
@pytest.mark.parametrize("spec", ["l2r", "random", "strided:4", "diffusion:5"])
def test_the_likelihood_is_the_mean_over_the_targets_of_the_first_windows(
    groups, prefix, spec, packing
):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing=packing)
    nats = compute_by_hand(network, windows, spec, 7)
    result = compute_likelihood(network, windows, groups, spec)
    flat = np.concatenate(nats)
    assert result.order == spec
    assert result.num_tokens == len(flat)
    assert result.nll_nats_per_token == pytest.approx(flat.mean(), abs=1e-10)
    assert result.perplexity == pytest.approx(math.exp(flat.mean()), rel=1e-10)
    assert (len(flat) == 7 * N) == (packing == "concat")


def test_the_standard_error_is_that_of_the_window_means(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    means = [np.mean(window) for window in compute_by_hand(network, windows, "random", 7)]
    expected = np.std(means, ddof=1) / math.sqrt(7)
    result = compute_likelihood(network, windows, groups)
    assert result.standard_error == pytest.approx(expected, rel=1e-9)
    assert compute_likelihood(network, windows, groups, samples=1).standard_error is None


def test_the_standard_error_of_windows_with_different_numbers_of_targets(groups, prefix):
    """It is close to the jackknife estimate, which does not use the formula."""
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing="documents")
    nats = compute_by_hand(network, windows, "random", windows.num_windows)
    assert len({len(window) for window in nats}) > 1
    left_out = [np.concatenate(nats[:w] + nats[w + 1 :]).mean() for w in range(len(nats))]
    jackknife = math.sqrt((len(nats) - 1) * np.var(left_out))
    result = compute_likelihood(network, windows, groups, samples=len(nats))
    assert result.standard_error == pytest.approx(jackknife, rel=0.05)


def test_all_windows_are_scored_if_more_are_requested(groups, prefix):
    network = build(LLAMA, groups)
    windows = TokenWindows(prefix, N)
    assert (
        compute_likelihood(network, windows, groups, samples=10**6).num_tokens
        == N * windows.num_windows
    )


def test_zero_embeddings_give_the_logarithm_of_the_vocabulary_size(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    with torch.no_grad():
        network.embedding.weight.zero_()
    result = compute_likelihood(network, TokenWindows(prefix, N), groups)
    assert result.nll_nats_per_token == pytest.approx(math.log(101), abs=1e-12)
    assert result.perplexity == pytest.approx(101, rel=1e-12)
    assert result.standard_error == pytest.approx(0, abs=1e-12)


def test_order_draws_depend_on_seed_and_window_only(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    first = compute_likelihood(network, windows, groups)
    assert compute_likelihood(network, windows, groups) == first
    other_batches = compute_likelihood(network, windows, groups, micro_batch=7)
    assert other_batches.nll_nats_per_token == pytest.approx(first.nll_nats_per_token, abs=1e-12)
    other_seed = compute_likelihood(network, windows, groups, seed=SEED + 1)
    assert abs(other_seed.nll_nats_per_token - first.nll_nats_per_token) > 1e-4


def test_bits_per_byte_need_a_manifest(groups, prefix):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N)
    assert compute_likelihood(network, windows, groups).bits_per_byte is None
    write_manifest(prefix, tokens=175, text_bytes=700)
    result = compute_likelihood(network, windows, groups)
    assert result.bits_per_byte == pytest.approx(result.nll_nats_per_token / math.log(2) / 4)
    write_manifest(prefix, tokens=175, text_bytes=0)
    assert compute_likelihood(network, windows, groups).bits_per_byte is None


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_scores_are_in_text_order(groups, prefix, packing):
    network = build(LLAMA, groups, dtype=torch.float64)
    windows = TokenWindows(prefix, N, packing=packing)
    order = parse_spec("strided-ar:3")
    scores = score_windows(network, windows, order, indices=range(1, 4), seed=SEED)
    assert scores.first == 1
    for row, w in enumerate(range(1, 4)):
        lengths = windows.lengths(w)
        block = sample_blocks(order, seed=SEED, sample_index=w, lengths=lengths)
        np.testing.assert_array_equal(scores.tokens[row], windows.window(w))
        np.testing.assert_array_equal(scores.block[row], block)
        (expected,) = log_probs_by_position(
            network, batch_of(windows.window(w)[None], block[None], [lengths])
        )
        row_logprob = scores.logprob[row].tolist()
        logprob = {p + 1: value for p, value in enumerate(row_logprob) if not math.isnan(value)}
        assert logprob == pytest.approx({p: v.item() for p, v in expected.items()}, abs=1e-10)
        assert logprob.keys() == set(np.flatnonzero(block).tolist())


def test_log_probabilities_of_half_precision_weights_are_float32(groups, prefix):
    windows = TokenWindows(prefix, N)
    full = build(LLAMA, groups)
    half = build(LLAMA, groups, dtype=torch.bfloat16)
    scores = score_windows(half, windows, parse_spec("random"), indices=range(2), seed=SEED)
    assert scores.logprob.dtype is torch.float32
    nll = compute_likelihood(half, windows, groups).nll_nats_per_token
    expected = compute_likelihood(full, windows, groups).nll_nats_per_token
    assert nll == pytest.approx(expected, abs=0.03)
    assert nll != expected


def test_no_activations_are_kept_for_a_backward_pass(groups, prefix):
    network = build(LLAMA, groups)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        compute_likelihood(network, TokenWindows(prefix, N), groups)
    assert not saved
    assert all(parameter.requires_grad for parameter in network.parameters())


def evaluate_on_rank(groups, prefix, folder, samples):
    network = build(LLAMA, groups)
    passes, scores = [], []
    network.register_forward_hook(lambda *_: passes.append(1))
    result = compute_likelihood(
        network,
        TokenWindows(prefix, N, packing="documents"),
        groups,
        samples=samples,
        micro_batch=2,
        on_scores=scores.append,
    )
    write_dump(folder / f"{groups.dp.size()}.safetensors", scores, groups=groups)
    return dataclasses.asdict(result), len(passes), [part.first for part in scores]


@pytest.mark.slow
def test_any_number_of_ranks_gives_the_same_figures_and_dump(groups, prefix, tmp_path):
    """Five windows in batches of two make three passes: the second rank's second is padding."""
    alone, passes, _ = evaluate_on_rank(groups, prefix, tmp_path, 5)
    assert passes == 3
    ranks = run_on_ranks(evaluate_on_rank, 2, prefix, tmp_path, 5)
    assert [figures for figures, _, _ in ranks] == [alone, alone]
    assert [passes for _, passes, _ in ranks] == [2, 2]
    assert [firsts for _, _, firsts in ranks] == [[0, 4], [2]]
    one, two = (tmp_path / f"{n}.safetensors" for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()


RESULT = Likelihood(
    order="strided-ar:2",
    nll_nats_per_token=1.25,
    perplexity=math.exp(1.25),
    standard_error=0.03125,
    num_tokens=96,
    bits_per_byte=0.5,
)


def test_the_result_line_names_its_units():
    assert RESULT.format_line() == (
        "strided-ar:2  1.2500 nats/token (standard error 0.0312)  perplexity 3.49"
        "  0.5000 bits/byte  96 tokens"
    )
    more = dataclasses.replace(RESULT, standard_error_over_orders=0.25, perplexity_per_word=9.0)
    assert (
        "(standard error 0.0312, over orders 0.2500)  perplexity 3.49  9.00 per"
        in more.format_line()
    )


def test_the_result_line_leaves_out_unknown_figures():
    result = Likelihood(
        order="l2r",
        nll_nats_per_token=0.0,
        perplexity=1.0,
        standard_error=None,
        num_tokens=1,
        bits_per_byte=None,
    )
    assert result.format_line() == "l2r  0.0000 nats/token  perplexity 1.00  1 tokens"


def test_predictions_that_are_not_finite_are_infinite_and_not_left_out(groups, prefix) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            return torch.full(batch.labels.shape, torch.nan)

    result = compute_likelihood(Broken(), TokenWindows(prefix, N), groups)
    assert result.nll_nats_per_token == torch.inf
    assert result.num_tokens > 0
