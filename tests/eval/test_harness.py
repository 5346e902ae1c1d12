"""The harness's requests against direct computations."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval: pip install armd_scale[eval]")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from armd_scale.data.tokenize import load_tokenizer, train_sentencepiece
from armd_scale.eval.continuations import encode_pair
from armd_scale.eval.harness import ArmdHarness
from armd_scale.sample import Sampling, generate
from armd_scale.sample.text import opening_tokens
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position


@pytest.fixture(scope="module")
def model(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    network = build(dataclasses.replace(LLAMA, vocab_size=280), groups)
    return network, load_tokenizer(folder)


def ask(model, kind, *arguments):
    asked = Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
    (found,) = getattr(ArmdHarness(*model, max_tokens=40), kind)([asked])
    return found


def by_hand(network, text, start):
    (found,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return sum(found[p].item() for p in range(start, len(text)))


def test_it_is_registered():
    assert get_model("armd_scale") is ArmdHarness


def test_loglikelihood(model):
    pair = encode_pair("the quick", " fox", model[1])
    text = np.concatenate((pair.context, pair.continuation))
    found, is_greedy = ask(model, "loglikelihood", "the quick", " fox")
    assert found == pytest.approx(by_hand(model[0], text, len(pair.context)), rel=1e-5)
    assert not is_greedy


def test_rolling(model):
    words = "the quick brown fox"
    tokens = opening_tokens(words, model[1])
    found = ask(model, "loglikelihood_rolling", words)
    assert found == pytest.approx(by_hand(model[0], tokens, 1), rel=1e-5)
    assert ask(model, "loglikelihood_rolling", "") == 0


def test_generate_until(model):
    network, tokenizer = model
    prompt = opening_tokens("the fox", tokenizer)
    how = Sampling(temperature=0.0)
    (made,) = generate(network, [prompt], num_tokens=9, sampling=how, end=tokenizer.eod).samples
    whole = tokenizer.decode(made.tokens[1:].tolist())[len("the fox") :]
    assert ask(model, "generate_until", "the fox", {"max_gen_toks": 9}) == whole
    stop = whole[len(whole) // 2]
    found = ask(model, "generate_until", "the fox", {"max_gen_toks": 9, "until": [stop]})
    assert found == whole[: whole.index(stop)]
