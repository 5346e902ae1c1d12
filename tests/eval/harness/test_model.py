"""The harness's requests against direct computations."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.harness.model import ArmdHarness
from armd_scale.eval.loglikelihood import encode_pair
from armd_scale.generation import Sampling, generate_tokens
from armd_scale.generation.text import encode_prompt
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position


@pytest.fixture(scope="module")
def model(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    network = build(dataclasses.replace(LLAMA, vocab_size=280), groups)
    return network, load_tokenizer(folder)


def ask_all(model, kind, *requests, **options):
    asked = [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in requests]
    return getattr(ArmdHarness(*model, **{"max_length": 39, **options}), kind)(asked)


def ask(model, kind, *arguments):
    (found,) = ask_all(model, kind, arguments)
    return found


def by_hand(network, text, start):
    (found,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return sum(found[p].item() for p in range(start, len(text)))


def test_it_is_registered():
    assert get_model("armd_scale") is ArmdHarness


def test_loglikelihood(model):
    encode = partial(encode_prompt, tokenizer=model[1])
    pair = encode_pair("the quick", " fox", encode)
    text = np.concatenate((pair.context, pair.continuation))
    found, is_greedy = ask(model, "loglikelihood", "the quick", " fox")
    assert found == pytest.approx(by_hand(model[0], text, len(pair.context)), rel=1e-5)
    assert not is_greedy


def test_rolling(model):
    words = "the quick brown fox"
    tokens = encode_prompt(words, model[1])
    found = ask(model, "loglikelihood_rolling", words)
    assert found == pytest.approx(by_hand(model[0], tokens, 1), rel=1e-5)
    assert ask(model, "loglikelihood_rolling", "") == 0


def test_rolling_in_windows_that_are_full_but_score_a_token_once(model):
    """Ten tokens in windows of four: 1-4, 5-8, and 9-10 after 7-8, whatever goes with them."""
    tokens = encode_prompt("the quick brown fox jumps", model[1])[:11]
    words = model[1].decode(tokens[1:].tolist())
    windows = [(tokens[:5], 1), (tokens[4:9], 1), (tokens[6:11], 3)]
    expected = sum(by_hand(model[0], window, start) for window, start in windows)
    requests = [("the",), (words,), ("",), (words,)]
    found = ask_all(model, "loglikelihood_rolling", *requests, max_length=4, micro_batch=3)
    assert found[1::2] == pytest.approx([expected, expected], rel=1e-5)
    assert found[0] == pytest.approx(ask(model, "loglikelihood_rolling", "the"), rel=1e-5)
    assert found[2] == 0


def test_generate_until(model):
    network, tokenizer = model
    prompt = encode_prompt("the fox", tokenizer)
    how = Sampling(temperature=0.0)
    (made,) = generate_tokens(
        network, [prompt], num_tokens=9, sampling=how, eos_id=tokenizer.eod
    ).samples
    whole = tokenizer.decode(made.tokens[1:].tolist())[len("the fox") :]
    assert ask(model, "generate_until", "the fox", {"max_gen_toks": 9}) == whole
    stop = whole[len(whole) // 2]
    found = ask(model, "generate_until", "the fox", {"max_gen_toks": 9, "until": [stop]})
    assert found == whole[: whole.index(stop)]


def test_texts_do_not_depend_on_what_is_generated_beside_them(model):
    """Requests of three settings, shuffled: each text is that of its request asked alone."""
    drawn = {"max_gen_toks": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    requests = [
        ("the fox jumps", drawn),
        ("the", {"max_gen_toks": 9}),
        ("a quick", drawn),
        ("the quick brown fox", {"max_gen_toks": 5}),
        ("the", drawn),
        ("fox", {"max_gen_toks": 9}),
    ]
    together = ask_all(model, "generate_until", *requests, micro_batch=2)
    assert together == ask_all(model, "generate_until", *requests, micro_batch=1)
    assert together[1] == ask(model, "generate_until", *requests[1])
    repeated = ask_all(model, "generate_until", *[("the", drawn)] * 3)
    assert len(set(repeated)) > 1  # repeats of a drawn request are draws


def test_what_cannot_be_generated(model):
    with pytest.raises(ArmdError, match=r"must be among until, .* got num_beams: leave it out"):
        ask(model, "generate_until", "the", {"num_beams": 2})
    with pytest.raises(ArmdError, match=r"max_gen_toks must leave room .* 39 tokens, got 39"):
        ask(model, "generate_until", "the", {"max_gen_toks": 39})


def test_one_model_at_a_time(model):
    with pytest.raises(ArmdError, match="one armd_scale model may live in a process at a time"):
        ArmdHarness.create_from_arg_string("checkpoint=run", {"batch_size": 1, "device": None})
