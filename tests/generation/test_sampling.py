"""Sampling: tokens follow the requested distribution, and random numbers are keyed by slot."""

import numpy as np
import pytest
import torch

from armd_scale.errors import GenerationError
from armd_scale.generation.sampling import Sampling, sample_tokens, token_probabilities
from armd_scale.order.draw import sample_blocks
from armd_scale.order.rng import RngStream, uniform_numbers
from armd_scale.order.spec import parse_spec

PROBABILITIES = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15], dtype=torch.float64)
NUM_DRAWS = 20_000


def sample(sampling, probabilities=PROBABILITIES, *, shift=3.0, seen=None):
    """Sample NUM_DRAWS tokens; return them and their log-probabilities."""
    logits = (probabilities.log() + shift).expand(1, NUM_DRAWS, -1)
    uniform = torch.from_numpy(uniform_numbers(7, 0, NUM_DRAWS)).unsqueeze(0)
    tokens, logprob = sample_tokens(logits, uniform, sampling, seen)
    return tokens[0], logprob[0]


def assert_frequencies(tokens, expected):
    """A chi-square test with at most 4 degrees of freedom passes (p > 0.001)."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    mean = expected[possible] * len(tokens)
    assert ((counts[possible] - mean) ** 2 / mean).sum() < 18.5


def test_default_is_the_models_own_distribution():
    assert_frequencies(sample(Sampling())[0], PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_frequencies(sample(Sampling(temperature=temperature))[0], expected / expected.sum())


def test_top_k_keeps_the_most_likely():
    expected = torch.tensor([0, 0.4, 0, 0.3, 0], dtype=torch.float64) / 0.7
    assert_frequencies(sample(Sampling(top_k=2))[0], expected)


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [1]), (0.65, [1, 3]), (0.71, [1, 3, 4])])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    expected = torch.zeros(5, dtype=torch.float64)
    expected[kept] = PROBABILITIES[kept]
    assert_frequencies(sample(Sampling(top_p=top_p))[0], expected / expected.sum())


def test_top_p_applies_after_top_k():
    # Of the three left, 0.4 : 0.3 : 0.15, the first two have probability 0.82 together.
    expected = torch.tensor([0, 0.4, 0, 0.3, 0], dtype=torch.float64) / 0.7
    assert_frequencies(sample(Sampling(top_k=3, top_p=0.8))[0], expected)


@pytest.mark.parametrize(("min_p", "kept"), [(0.2, [1, 2, 3, 4]), (0.5, [1, 3]), (1, [1])])
def test_min_p_is_relative_to_the_most_likely_token(min_p, kept):
    expected = torch.zeros(5, dtype=torch.float64)
    expected[kept] = PROBABILITIES[kept]
    assert_frequencies(sample(Sampling(min_p=min_p))[0], expected / expected.sum())


def test_min_p_applies_after_temperature_and_top_p():
    # At temperature 0.5 the ratio of 0.15 to 0.4 is 0.14. Top-p 0.8 alone keeps 0.4, 0.3 and 0.15.
    expected = torch.tensor([0, 0.16, 0, 0.09, 0], dtype=torch.float64) / 0.25
    assert_frequencies(sample(Sampling(min_p=0.15, temperature=0.5))[0], expected)
    expected = torch.tensor([0, 0.4, 0, 0.3, 0.15], dtype=torch.float64) / 0.85
    assert_frequencies(sample(Sampling(min_p=0.3, top_p=0.8))[0], expected)


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    seen = torch.tensor([[[False, True, False, False, True]]])
    sampling = Sampling(repetition_penalty=2)
    for shift, change in [(3.0, lambda logit: logit / 2), (-1.0, lambda logit: logit * 2)]:
        logits = PROBABILITIES.log() + shift
        logits[[1, 4]] = change(logits[[1, 4]])
        tokens, logprob = sample(sampling, shift=shift, seen=seen)
        assert_frequencies(tokens, logits.softmax(dim=-1))
        torch.testing.assert_close(logprob, PROBABILITIES.log()[tokens])
    greedy = Sampling(repetition_penalty=2, temperature=0)
    assert (sample(greedy, seen=seen)[0] == 3).all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(top_k=2, temperature=3), Sampling(top_p=0.6, min_p=0.1)],
)
def test_samples_follow_token_probabilities(sampling):
    expected = token_probabilities(PROBABILITIES.log().expand(1, 1, -1), sampling)[0, 0]
    assert expected.sum() == pytest.approx(1)
    assert_frequencies(sample(sampling)[0], expected)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_zero_temperature_takes_the_most_likely_token(temperature):
    assert (sample(Sampling(temperature=temperature))[0] == 1).all()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.3, top_k=2), Sampling(temperature=0)])
def test_log_probability_does_not_depend_on_sampling(sampling):
    tokens, logprob = sample(sampling)
    torch.testing.assert_close(logprob, PROBABILITIES.log()[tokens])


def test_largest_uniform_number_draws_a_possible_token():
    highest = torch.full((1, 1), 1 - 2.0**-52, dtype=torch.float64)
    impossible_end = torch.tensor([0.25, 0.75, 0.0]).log().view(1, 1, 3)
    assert sample_tokens(impossible_end, highest, Sampling())[0].item() == 1


def test_uniform_numbers_are_keyed_by_seed_sample_and_slot():
    numbers = uniform_numbers(3, 5, 100)
    assert (uniform_numbers(3, 5, 10) == numbers[:10]).all()
    assert not np.isin(uniform_numbers(3, 6, 100), numbers).any()
    assert not np.isin(uniform_numbers(4, 5, 100), numbers).any()
    for purpose in RngStream:
        for part in (0, 1, 7):
            other = uniform_numbers(3, 5, 1000, purpose=purpose, part=part)
            assert np.isin(other, numbers).any() == (purpose == RngStream.TOKEN and part == 0)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert uniform_numbers(-1, 2**63, 4).shape == (4,)


def test_uniform_numbers_differ_from_those_of_training_orders():
    block = sample_blocks(parse_spec("random"), seed=3, sample_index=5, lengths=(101,))
    ranks = np.argsort(np.argsort(uniform_numbers(3, 5, 100))) + 1
    assert abs(np.corrcoef(block[1:], ranks)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 \\(greedy\\) or more .got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 .* \\(got nan\\)"),
        ({"top_k": 0}, "top-k must be at least 1 .got 0"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1 .got 0.0"),
        ({"min_p": -0.1}, "min-p must be between 0 and 1 .got -0.1"),
        ({"min_p": 1.1}, "min-p must be between 0 and 1 .got 1.1"),
        ({"repetition_penalty": 0}, "repetition penalty must be above 0 and finite .got 0"),
        ({"top_p": 1.5}, "top-p must be above 0 and at most 1 .got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    with pytest.raises(GenerationError, match=message):
        Sampling(**arguments)
