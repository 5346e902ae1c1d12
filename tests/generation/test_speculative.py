"""Speculative decoding has the distribution of one-at-a-time decoding, in fewer rounds."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from armd_scale.generation import (
    GenerationSpec,
    Sampling,
    Strategy,
    generate_from_specs,
    generate_tokens,
)
from armd_scale.generation.sampling import token_probabilities
from tests.support.networks import LLAMA, batch_of, build
from tests.support.windows import logits_by_index

NUM_DRAWS = 4000
# Block by position, the first given; in "holes" there is given text between the holes.
ORDERS = {
    "left to right": [0, 1, 2, 3, 4],
    "two streams": [0, 1, 3, 2, 4],
    "permuted": [0, 3, 1, 4, 2],
    "holes": [0, 2, 0, 1, 3, 0, 4],
}
SAMPLINGS = {
    "own": Sampling(seed=1),
    "changed": Sampling(seed=2, temperature=0.8, top_p=0.9, repetition_penalty=1.5),
}


def tiny_network(groups, vocab_size=3, **changes):
    """A network with so few token ids that all texts can be enumerated."""
    model = dataclasses.replace(LLAMA, vocab_size=vocab_size, **changes)
    return build(model, groups, dtype=torch.float64)


def spec_of(block):
    tokens = np.arange(len(block)) % 3
    return GenerationSpec(tokens, np.array(block), np.array(block) == 0)


@torch.no_grad()
def text_probabilities(network, spec, sampling):
    """Probability of every text if its tokens are drawn one at a time, as {tokens: p}."""
    holes = np.flatnonzero(~spec.known)
    fills = np.array(list(itertools.product(range(network.vocab_size), repeat=len(holes))))
    texts = np.tile(spec.tokens, (len(fills), 1))
    texts[:, holes] = fills
    logits = logits_by_index(network, batch_of(texts, np.tile(spec.block, (len(fills), 1))))
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for p, j in itertools.product(holes, range(len(spec.block))):
        if spec.block[j] < spec.block[p]:
            seen[torch.arange(len(texts)), p, torch.from_numpy(texts[:, j])] = True
    probability = token_probabilities(logits[:, holes], sampling, seen[:, holes])
    of_fill = probability.gather(-1, torch.from_numpy(fills).unsqueeze(-1)).squeeze(-1)
    return dict(zip(map(tuple, fills.tolist()), of_fill.prod(dim=1).tolist(), strict=True))


def p_value(samples, expected):
    """p-value of a chi-square test; texts expected less than 5 times share a cell with another."""
    counts = dict.fromkeys(expected, 0)
    for sample in samples:
        counts[tuple(sample.tokens[sample.generated].tolist())] += 1
    observed = np.array(list(counts.values()), dtype=float)
    mean = np.array(list(expected.values())) * len(samples)
    if observed[mean == 0].any():
        return 0.0
    is_rare = mean < 5
    # They join the rarest of the other texts.
    shared = np.flatnonzero(~is_rare)[mean[~is_rare].argmin()]
    observed[shared] += observed[is_rare].sum()
    mean[shared] += mean[is_rare].sum()
    observed, mean = observed[~is_rare], mean[~is_rare]
    assert len(mean) > 10
    statistic = ((observed - mean) ** 2 / mean).sum()
    half_freedom = torch.tensor((len(mean) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(
        half_freedom, torch.tensor(statistic / 2, dtype=torch.float64)
    ).item()


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("order", "sampling", "upper"),
    [
        ("left to right", "own", "block"),
        ("two streams", "changed", "block"),
        pytest.param("permuted", "own", "self", marks=pytest.mark.slow(minutes=0.2)),
        pytest.param("holes", "changed", "block", marks=pytest.mark.slow(minutes=0.2)),
    ],
)
def test_distribution_is_that_of_one_at_a_time_decoding(groups, order, sampling, upper):
    network = tiny_network(groups, upper_visibility=upper)
    spec, sampling = spec_of(ORDERS[order]), SAMPLINGS[sampling]
    expected = text_probabilities(network, spec, sampling)
    output = generate_from_specs(
        network, [spec] * NUM_DRAWS, strategy=Strategy(speculative=3), sampling=sampling
    )
    assert p_value(output.samples, expected) > 0.01
    # The test has power: drafts without verification (blocks of three) fail it.
    blocks_of_three = dataclasses.replace(spec, block=(spec.block + 2) // 3)
    drafts = generate_from_specs(network, [blocks_of_three] * NUM_DRAWS, sampling=sampling)
    assert p_value(drafts.samples, expected) < 1e-4


@pytest.mark.parametrize("size", [2, 4, 20])
def test_correct_drafts_are_always_accepted(groups, size):
    """With a network whose predictions do not depend on the text."""
    network = tiny_network(groups, vocab_size=50, tie_embeddings=False)
    with torch.no_grad():
        network.get_parameter("layers.3.attention.linear_proj.weight").zero_()
        network.final_norm.weight.zero_()
    prompts = [np.arange(1), np.arange(5)]
    output = generate_tokens(network, prompts, num_tokens=12, strategy=Strategy(speculative=size))
    assert output.acceptance_rate == 1
    # The first round has no drafts yet; after it each round commits `size` tokens.
    assert output.rounds == 1 + -(-11 // size)
    stats = output.speculative_stats
    assert stats is not None
    assert stats.drafted == stats.accepted > 0


def test_rounds_and_drafts_add_up(groups):
    network = tiny_network(groups, vocab_size=4)
    prompt = np.array([0, 1, 2])
    output = generate_tokens(network, [prompt], num_tokens=40, strategy=Strategy(speculative=4))
    (sample,) = output.samples
    stats = output.speculative_stats
    assert stats is not None
    assert 0 < stats.accepted < stats.drafted
    assert output.acceptance_rate == stats.accepted / stats.drafted
    # Each round commits its accepted drafts and one more token, except at the end of the text.
    assert output.rounds - 1 <= 40 - stats.accepted <= output.rounds
    assert output.tokens_per_round == 40 / output.rounds
    assert output.rounds < 40
    order = np.argsort(sample.block[3:])
    assert (np.diff(sample.round[3:][order]) >= 0).all()
