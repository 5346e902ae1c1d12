"""Lossless decoding draws from one-at-a-time decoding's distribution, in fewer rounds."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from armd_scale.generation import GenerationSpec, Sampling, Strategy, generate, generate_from_specs
from armd_scale.generation.sampling import token_probabilities
from tests.support.networks import LLAMA, batch_of, build
from tests.support.windows import logits_by_index

NUM_DRAWS = 4000
# Block by position, the first given; the last has evidence between its holes.
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


def tiny(groups, vocab_size=3, **changes):
    """A network of so few tokens that all texts can be listed, whose tokens depend on others."""
    model = dataclasses.replace(LLAMA, vocab_size=vocab_size, **changes)
    return build(model, groups, dtype=torch.float64)


def outline_of(block):
    tokens = np.arange(len(block)) % 3
    return GenerationSpec(tokens, np.array(block), np.array(block) == 0)


@torch.no_grad()
def exact(network, outline, sampling):
    """Probability of every text when its tokens are drawn one after another, as {tokens: p}."""
    holes = np.flatnonzero(~outline.known)
    fills = np.array(list(itertools.product(range(network.vocab_size), repeat=len(holes))))
    texts = np.tile(outline.tokens, (len(fills), 1))
    texts[:, holes] = fills
    logits = logits_by_index(network, batch_of(texts, np.tile(outline.block, (len(fills), 1))))
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for p, j in itertools.product(holes, range(len(outline.block))):
        if outline.block[j] < outline.block[p]:
            seen[torch.arange(len(texts)), p, torch.from_numpy(texts[:, j])] = True
    probability = token_probabilities(logits[:, holes], sampling, seen[:, holes])
    own = probability.gather(-1, torch.from_numpy(fills).unsqueeze(-1)).squeeze(-1)
    return dict(zip(map(tuple, fills.tolist()), own.prod(dim=1).tolist(), strict=True))


def p_value(samples, expected):
    """Of a chi-square test of new tokens; texts expected less than 5 times count as another."""
    counts = dict.fromkeys(expected, 0)
    for sample in samples:
        counts[tuple(sample.tokens[sample.generated].tolist())] += 1
    seen = np.array(list(counts.values()), dtype=float)
    mean = np.array(list(expected.values())) * len(samples)
    if seen[mean == 0].any():
        return 0.0
    is_rare = mean < 5
    # The rarest that is not so rare takes the others in.
    home = np.flatnonzero(~is_rare)[mean[~is_rare].argmin()]
    seen[home] += seen[is_rare].sum()
    mean[home] += mean[is_rare].sum()
    seen, mean = seen[~is_rare], mean[~is_rare]
    assert len(mean) > 10
    statistic = ((seen - mean) ** 2 / mean).sum()
    freedom = torch.tensor((len(mean) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("order", "sampling", "upper"),
    [
        ("left to right", "own", "block"),
        ("two streams", "changed", "block"),
        ("permuted", "own", "self"),
        ("holes", "changed", "block"),
    ],
)
def test_the_distribution_is_that_of_one_at_a_time(groups, order, sampling, upper):
    network = tiny(groups, upper_visibility=upper)
    outline, sampling = outline_of(ORDERS[order]), SAMPLINGS[sampling]
    expected = exact(network, outline, sampling)
    made = generate_from_specs(
        network, [outline] * NUM_DRAWS, strategy=Strategy(speculative=3), sampling=sampling
    )
    assert p_value(made.samples, expected) > 0.01
    # The same draws without verification, as one block after another, are told apart.
    pairs = dataclasses.replace(outline, block=(outline.block + 2) // 3)
    drafts = generate_from_specs(network, [pairs] * NUM_DRAWS, sampling=sampling)
    assert p_value(drafts.samples, expected) < 1e-4


@pytest.mark.parametrize("size", [2, 4, 20])
def test_drafts_that_are_always_right_are_always_accepted(groups, size):
    """A model that knows the frequencies of tokens and nothing else."""
    network = tiny(groups, vocab_size=50, tie_embeddings=False)
    with torch.no_grad():
        network.layers["3"].attention.linear_proj.weight.zero_()
        network.final_norm.weight.zero_()
    prompts = [np.arange(1), np.arange(5)]
    made = generate(network, prompts, num_tokens=12, strategy=Strategy(speculative=size))
    assert made.acceptance_rate == 1
    # The first round has no drafts yet; after it a round settles `size` tokens.
    assert made.rounds == 1 + -(-11 // size)
    assert made.verified.drafted == made.verified.accepted > 0


def test_rounds_and_drafts_add_up(groups):
    network = tiny(groups, vocab_size=4)
    prompt = np.array([0, 1, 2])
    made = generate(network, [prompt], num_tokens=40, strategy=Strategy(speculative=4))
    (sample,) = made.samples
    verified = made.verified
    assert 0 < verified.accepted < verified.drafted
    assert made.acceptance_rate == verified.accepted / verified.drafted
    # Every round settles what it accepts and one token more, but where the text ends.
    assert made.rounds - 1 <= 40 - verified.accepted <= made.rounds
    assert made.tokens_per_round == 40 / made.rounds
    assert made.rounds < 40
    order = np.argsort(sample.block[3:])
    assert (np.diff(sample.round[3:][order]) >= 0).all()
