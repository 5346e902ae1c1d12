"""Results of generation: cutting samples at their end, and figures."""

import numpy as np
import pytest

from armd_scale.generation import RoundResult, Strategy, entropy_bits, generate_tokens
from tests.support.networks import LLAMA, build
from tests.support.rescoring import random_prompts
from tests.support.windows import VOCAB


def test_truncate_at_cuts_before_the_first_generated_match(groups):
    (prompt,) = random_prompts(3)
    (sample,) = generate_tokens(
        build(LLAMA, groups), [prompt], num_tokens=12, strategy=Strategy(streams=3)
    ).samples
    end = int(sample.tokens[9])
    first = 3 + int(np.flatnonzero(sample.tokens[3:] == end)[0])
    cut = sample.truncate_at(end)
    assert len(cut.tokens) == len(cut.block) == len(cut.generated) == len(cut.logprob) == first
    assert (cut.tokens == sample.tokens[:first]).all()
    assert len(sample.truncate_at(VOCAB).tokens) == 15
    # A match in the prompt, such as the token that starts the document, does not count.
    in_prompt_only = next(t for t in prompt if t not in sample.tokens[3:])
    assert len(sample.truncate_at(int(in_prompt_only)).tokens) == 15


def test_entropy_is_in_bits():
    assert entropy_bits(np.array([1, 1, 1])) == 0
    assert entropy_bits(np.array([1, 2, 3, 4])) == 2
    assert entropy_bits(np.array([5, 5, 6, 7])) == 1.5
    assert entropy_bits(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("count", [0, 2])
def test_max_committed_is_the_largest_count_of_a_text(count):
    positions = np.zeros((3, 4), dtype=int)
    positions[1, 4 - count :] = 5
    assert RoundResult(1, positions, positions).max_committed == count
