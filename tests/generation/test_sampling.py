"""Tokens come from the distribution that was asked for, by numbers that belong to their place."""

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


def draw(sampling, probabilities=PROBABILITIES, *, shift=3.0, seen=None):
    """Tokens [NUM_DRAWS] and their log-probabilities."""
    logits = (probabilities.log() + shift).expand(1, NUM_DRAWS, -1)
    uniform = torch.from_numpy(uniform_numbers(7, 0, NUM_DRAWS)).unsqueeze(0)
    tokens, logprob = sample_tokens(logits, uniform, sampling, seen)
    return tokens[0], logprob[0]


def assert_frequencies(tokens, expected):
    """Chi-square with 4 degrees of freedom or fewer, p > 0.001."""
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    mean = expected[possible] * len(tokens)
    assert ((counts[possible] - mean) ** 2 / mean).sum() < 18.5


def test_the_models_own_distribution():
    assert_frequencies(draw(Sampling())[0], PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_frequencies(draw(Sampling(temperature=temperature))[0], expected / expected.sum())


def test_top_k_keeps_the_most_likely():
    expected = torch.tensor([0, 0.4, 0, 0.3, 0], dtype=torch.float64) / 0.7
    assert_frequencies(draw(Sampling(top_k=2))[0], expected)


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, [1]), (0.65, [1, 3]), (0.71, [1, 3, 4])])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    expected = torch.zeros(5, dtype=torch.float64)
    expected[kept] = PROBABILITIES[kept]
    assert_frequencies(draw(Sampling(top_p=top_p))[0], expected / expected.sum())


def test_top_p_counts_what_top_k_has_left():
    # Of 0.4 : 0.3 : 0.15 the first two hold 0.82.
    expected = torch.tensor([0, 0.4, 0, 0.3, 0], dtype=torch.float64) / 0.7
    assert_frequencies(draw(Sampling(top_k=3, top_p=0.8))[0], expected)


@pytest.mark.parametrize(("min_p", "kept"), [(0.2, [1, 2, 3, 4]), (0.5, [1, 3]), (1, [1])])
def test_min_p_counts_from_the_most_likely(min_p, kept):
    expected = torch.zeros(5, dtype=torch.float64)
    expected[kept] = PROBABILITIES[kept]
    assert_frequencies(draw(Sampling(min_p=min_p))[0], expected / expected.sum())


def test_min_p_is_of_what_temperature_leaves_and_top_p_comes_before():
    # Squared, 0.15 is 0.14 of 0.4; of all that is there top-p 0.8 keeps 0.4, 0.3 and 0.15.
    expected = torch.tensor([0, 0.16, 0, 0.09, 0], dtype=torch.float64) / 0.25
    assert_frequencies(draw(Sampling(min_p=0.15, temperature=0.5))[0], expected)
    expected = torch.tensor([0, 0.4, 0, 0.3, 0.15], dtype=torch.float64) / 0.85
    assert_frequencies(draw(Sampling(min_p=0.3, top_p=0.8))[0], expected)


def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    seen = torch.tensor([[[False, True, False, False, True]]])
    sampling = Sampling(repetition_penalty=2)
    for shift, change in [(3.0, lambda logit: logit / 2), (-1.0, lambda logit: logit * 2)]:
        logits = PROBABILITIES.log() + shift
        logits[[1, 4]] = change(logits[[1, 4]])
        tokens, logprob = draw(sampling, shift=shift, seen=seen)
        assert_frequencies(tokens, logits.softmax(dim=-1))
        torch.testing.assert_close(logprob, PROBABILITIES.log()[tokens])
    greedy = Sampling(repetition_penalty=2, temperature=0)
    assert (draw(greedy, seen=seen)[0] == 3).all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(top_k=2, temperature=3), Sampling(top_p=0.6, min_p=0.1)],
)
def test_tokens_come_from_the_distribution_that_is_told(sampling):
    told = token_probabilities(PROBABILITIES.log().expand(1, 1, -1), sampling)[0, 0]
    assert told.sum() == pytest.approx(1)
    assert_frequencies(draw(sampling)[0], told)


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_no_temperature_takes_the_most_likely(temperature):
    assert (draw(Sampling(temperature=temperature))[0] == 1).all()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.3, top_k=2), Sampling(temperature=0)])
def test_log_probabilities_are_the_models_whatever_the_sampling(sampling):
    tokens, logprob = draw(sampling)
    torch.testing.assert_close(logprob, PROBABILITIES.log()[tokens])


def test_the_largest_number_draws_a_possible_token():
    highest = torch.full((1, 1), 1 - 2.0**-52, dtype=torch.float64)
    impossible_end = torch.tensor([0.25, 0.75, 0.0]).log().view(1, 1, 3)
    assert sample_tokens(impossible_end, highest, Sampling())[0].item() == 1


def test_numbers_belong_to_seed_sample_and_slot():
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


def test_numbers_are_not_those_that_orders_are_drawn_from():
    block = sample_blocks(parse_spec("random"), seed=3, sample_index=5, lengths=(101,))
    ranks = np.argsort(np.argsort(uniform_numbers(3, 5, 100))) + 1
    assert abs(np.corrcoef(block[1:], ranks)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 \\(greedy\\) or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 .* got nan"),
        ({"top_k": 0}, "top-k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1, got 0.0"),
        ({"min_p": -0.1}, "min-p must be between 0 and 1, got -0.1"),
        ({"min_p": 1.1}, "min-p must be between 0 and 1, got 1.1"),
        ({"repetition_penalty": 0}, "repetition penalty must be above 0, got 0"),
        ({"top_p": 1.5}, "top-p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_amounts_outside_their_range(amounts, message):
    with pytest.raises(GenerationError, match=message):
        Sampling(**amounts)
