"""Continuations and last words against plain forward passes."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.loglikelihood import ContextContinuation, encode_pair, score_continuations
from armd_scale.eval.tasks.lambada import read_passages, score_last_words
from armd_scale.generation import Sampling, generate_tokens
from armd_scale.generation.text import encode_prompt
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


def by_hand(network, text, start):
    (found,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return sum(found[p].item() for p in range(start, len(text)))


def greedy(network, context, count):
    how = Sampling(temperature=0.0)
    (made,) = generate_tokens(network, [context], num_tokens=count, sampling=how).samples
    return made.tokens[len(context) :]


def test_log_probability_whatever_stands_beside_it(network):
    pairs = [
        ContextContinuation(TOKENS[:c], TOKENS[c : c + t])
        for c, t in ((1, 7), (30, 2), (5, 5), (9, 1))
    ]
    for micro_batch in (1, 3):
        found = score_continuations(network, pairs, micro_batch=micro_batch, max_tokens=60)
        for pair, verdict in zip(pairs, found, strict=True):
            text = np.concatenate((pair.context, pair.continuation))
            expected = by_hand(network, text, len(pair.context))
            assert verdict.logprob == pytest.approx(expected, rel=1e-5)


def test_long_texts_lose_their_beginning(network):
    pairs = [ContextContinuation(TOKENS[:30], TOKENS[30:34])]
    (found,) = score_continuations(network, pairs, micro_batch=1, max_tokens=10)
    assert found.logprob == pytest.approx(by_hand(network, TOKENS[24:34], 6), rel=1e-5)
    with pytest.raises(ArmdError, match="shorter than 4 tokens, got 4"):
        score_continuations(network, pairs, micro_batch=1, max_tokens=4)


def test_greedy_is_what_decoding_without_chance_gives(network):
    right = greedy(network, TOKENS[:6], 4)
    wrong = right.copy()
    wrong[-1] = (wrong[-1] + 1) % 101
    pairs = [ContextContinuation(TOKENS[:6], right), ContextContinuation(TOKENS[:6], wrong)]
    found = score_continuations(network, pairs, micro_batch=2, max_tokens=60)
    assert [verdict.is_greedy for verdict in found] == [True, False]


def test_a_pair_is_the_whole_text_cut(tokenizer):
    pair = encode_pair("the quick ", "fox", partial(encode_prompt, tokenizer=tokenizer))
    assert tokenizer.decode(pair.context.tolist()) == "the quick"
    assert (
        tokenizer.decode([*pair.context.tolist(), *pair.continuation.tolist()]) == "the quick fox"
    )


def test_last_words(groups, network, tokenizer, tmp_path):
    big = build(LLAMA.__class__(**{**vars(LLAMA), "vocab_size": 280}), groups)
    path = tmp_path / "passages.jsonl"
    texts = ["the quick brown fox", "a fox jumps", " the brown quick \n"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    passages = read_passages(path, tokenizer)
    words = [tokenizer.decode(p.continuation.tolist()).strip() for p in passages]
    assert words == ["fox", "jumps", "quick"]
    passages[1] = ContextContinuation(passages[1].context, greedy(big, passages[1].context, 2))
    found = score_last_words(big, passages, micro_batch=2, max_tokens=60, groups=groups)
    nats = [
        -by_hand(big, np.concatenate((p.context, p.continuation)), len(p.context)) for p in passages
    ]
    assert (found.num_passages, found.accuracy) == (3, pytest.approx(1 / 3))
    assert found.accuracy_standard_error == pytest.approx(math.sqrt(2 / 9 / 2))
    assert found.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert torch.isfinite(torch.tensor(found.perplexity))


@pytest.mark.parametrize("line", ["{", '{"txt": "a b"}', '{"text": "word"}', '["a b"]'])
def test_a_line_that_is_no_passage(tokenizer, tmp_path, line):
    path = tmp_path / "passages.jsonl"
    path.write_text(f'{{"text": "a b"}}\n{line}\n')
    with pytest.raises(ArmdError, match=r"line 2 must be an object with a .text. of two words"):
        read_passages(path, tokenizer)
    path.write_text("")
    with pytest.raises(ArmdError, match="is empty"):
        read_passages(path, tokenizer)
    with pytest.raises(ArmdError, match="cannot be read"):
        read_passages(tmp_path / "none", tokenizer)
