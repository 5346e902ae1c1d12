"""Log-likelihoods of continuations against plain forward passes."""

import numpy as np
import pytest

from armd_scale.data.text_encoder import TextEncoder, TokenPair
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.loglikelihood import score_continuations
from armd_scale.generation import Sampling, generate_tokens
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position

TOKENS = np.random.default_rng(3).integers(0, 101, size=40)


@pytest.fixture(scope="module")
def network(groups):
    return build(LLAMA, groups)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    return load_tokenizer(folder)


def compute_by_hand(network, text, start):
    (logprob,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return sum(logprob[p].item() for p in range(start, len(text)))


def decode_greedily(network, context, num_tokens):
    sampling = Sampling(temperature=0.0)
    (sample,) = generate_tokens(
        network, [context], num_tokens=num_tokens, sampling=sampling
    ).samples
    return sample.tokens[len(context) :]


def test_log_probabilities_do_not_depend_on_the_batch(network):
    pairs = [TokenPair(TOKENS[:c], TOKENS[c : c + t]) for c, t in ((1, 7), (30, 2), (5, 5), (9, 1))]
    for micro_batch in (1, 3):
        scores = score_continuations(network, pairs, micro_batch=micro_batch, max_tokens=60)
        for pair, score in zip(pairs, scores, strict=True):
            text = np.concatenate((pair.context, pair.continuation))
            expected = compute_by_hand(network, text, len(pair.context))
            assert score.logprob == pytest.approx(expected, rel=1e-5)


def test_long_texts_are_truncated_on_the_left(network):
    pairs = [TokenPair(TOKENS[:30], TOKENS[30:34])]
    (score,) = score_continuations(network, pairs, micro_batch=1, max_tokens=10)
    assert score.logprob == pytest.approx(compute_by_hand(network, TOKENS[24:34], 6), rel=1e-5)
    with pytest.raises(ArmdError, match=r"shorter than 4 tokens \(got 4\)"):
        score_continuations(network, pairs, micro_batch=1, max_tokens=4)


def test_is_greedy_agrees_with_greedy_decoding(network):
    right = decode_greedily(network, TOKENS[:6], 4)
    wrong = right.copy()
    wrong[-1] = (wrong[-1] + 1) % 101
    pairs = [TokenPair(TOKENS[:6], right), TokenPair(TOKENS[:6], wrong)]
    scores = score_continuations(network, pairs, micro_batch=2, max_tokens=60)
    assert [score.is_greedy for score in scores] == [True, False]


def test_a_pair_is_the_tokenized_whole_text_split_in_two(tokenizer):
    pair = TextEncoder(tokenizer).encode_pair("the quick ", "fox")
    assert tokenizer.decode(pair.context.tolist()) == "the quick"
    assert (
        tokenizer.decode([*pair.context.tolist(), *pair.continuation.tolist()]) == "the quick fox"
    )
