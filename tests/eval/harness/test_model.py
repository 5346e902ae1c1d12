"""Requests of the harness against direct computations."""

import dataclasses

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError
from armd_scale.eval.harness.model import ArmdHarness
from armd_scale.generation import Sampling, generate_tokens
from armd_scale.generation.output_rules import rules_of
from tests.support.networks import LLAMA, batch_of, build, log_probs_by_position


@pytest.fixture(scope="module")
def model(groups, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["the quick brown fox jumps\n" * 20], 280).save(folder)
    network = build(dataclasses.replace(LLAMA, vocab_size=280), groups)
    return network, load_tokenizer(folder)


def request_all(model, kind, *requests, **options):
    instances = [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in requests]
    return getattr(ArmdHarness(*model, **{"max_length": 39, **options}), kind)(instances)


def request(model, kind, *arguments):
    (response,) = request_all(model, kind, arguments)
    return response


def compute_by_hand(network, text, start):
    (logprob,) = log_probs_by_position(network, batch_of(text[None], np.arange(len(text))[None]))
    return sum(logprob[p].item() for p in range(start, len(text)))


def test_the_model_is_registered():
    assert get_model("armd_scale") is ArmdHarness


def test_loglikelihood(model):
    pair = TextEncoder(model[1]).encode_pair("the quick", " fox")
    text = np.concatenate((pair.context, pair.continuation))
    logprob, is_greedy = request(model, "loglikelihood", "the quick", " fox")
    assert logprob == pytest.approx(compute_by_hand(model[0], text, len(pair.context)), rel=1e-5)
    assert not is_greedy


def test_rolling_loglikelihood(model):
    words = "the quick brown fox"
    tokens = TextEncoder(model[1]).encode_document(words)
    logprob = request(model, "loglikelihood_rolling", words)
    assert logprob == pytest.approx(compute_by_hand(model[0], tokens, 1), rel=1e-5)
    assert request(model, "loglikelihood_rolling", "") == 0


def test_rolling_windows_are_full_and_score_each_token_once(model):
    """Ten tokens in windows of four: 1-4, 5-8, and 9-10 after 7-8, in any batch."""
    tokens = TextEncoder(model[1]).encode_document("the quick brown fox jumps")[:11]
    words = model[1].decode(tokens[1:].tolist())
    windows = [(tokens[:5], 1), (tokens[4:9], 1), (tokens[6:11], 3)]
    expected = sum(compute_by_hand(model[0], window, start) for window, start in windows)
    requests = [("the",), (words,), ("",), (words,)]
    logprobs = request_all(model, "loglikelihood_rolling", *requests, max_length=4, micro_batch=3)
    assert logprobs[1::2] == pytest.approx([expected, expected], rel=1e-5)
    assert logprobs[0] == pytest.approx(request(model, "loglikelihood_rolling", "the"), rel=1e-5)
    assert logprobs[2] == 0


def test_generate_until(model):
    network, tokenizer = model
    prompt = TextEncoder(tokenizer).encode_prompt("the fox")
    (sample,) = generate_tokens(
        network,
        [prompt],
        num_tokens=9,
        sampling=Sampling(temperature=0.0),
        rules=rules_of(tokenizer, stop_at_eos=True),
    ).samples
    whole = tokenizer.decode(sample.tokens[1:].tolist())[len("the fox") :]
    assert request(model, "generate_until", "the fox", {"max_gen_toks": 9}) == whole
    stop = whole[len(whole) // 2]
    text = request(model, "generate_until", "the fox", {"max_gen_toks": 9, "until": [stop]})
    assert text == whole[: whole.index(stop)]


def test_a_stop_string_ends_the_rounds(model, monkeypatch):
    """Not only the text: generation tasks often stop after a line."""
    network, _ = model
    arguments = {"max_gen_toks": 30, "do_sample": True}
    text = request(model, "generate_until", "the fox", arguments)
    calls, logits = [], network.logits

    def counted_logits(*arguments, **options):
        calls.append(1)
        return logits(*arguments, **options)

    monkeypatch.setattr(network, "logits", counted_logits)
    stop = next(letter for letter in text if letter.isascii() and letter.isalnum())
    arguments["until"] = [stop]
    assert request(model, "generate_until", "the fox", arguments) == text[: text.index(stop)]
    assert 0 < len(calls) < 30


def test_a_text_that_is_cut_is_said(model, caplog):
    request(model, "loglikelihood", "the quick brown fox " * 9, "jumps")
    assert "is cut on the left to the max_length of 39 tokens" in caplog.text
    caplog.clear()
    request(model, "loglikelihood", "the quick", " fox")
    assert not caplog.records


def test_texts_do_not_depend_on_the_batch(model):
    """Mixed requests with three settings: each text equals that of its request alone."""
    sampled = {"max_gen_toks": 9, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    requests = [
        ("the fox jumps", sampled),
        ("the", {"max_gen_toks": 9}),
        ("a quick", sampled),
        ("the quick brown fox", {"max_gen_toks": 5}),
        ("the", sampled),
        ("fox", {"max_gen_toks": 9}),
    ]
    together = request_all(model, "generate_until", *requests, micro_batch=2)
    assert together == request_all(model, "generate_until", *requests, micro_batch=1)
    assert together[1] == request(model, "generate_until", *requests[1])
    repeated = request_all(model, "generate_until", *[("the", sampled)] * 3)
    assert len(set(repeated)) > 1  # repeated requests get different random numbers


def test_invalid_generation_settings_are_refused(model):
    with pytest.raises(ArmdError, match=r"must be among until, .* \(got num_beams\): leave it out"):
        request(model, "generate_until", "the", {"num_beams": 2})
    with pytest.raises(ArmdError, match=r"max_gen_toks must leave room .* 39 tokens \(got 39\)"):
        request(model, "generate_until", "the", {"max_gen_toks": 39})


def test_a_second_model_in_the_same_process_is_refused(model):
    with pytest.raises(ArmdError, match="a process can have only one armd_scale model at a time"):
        ArmdHarness.create_from_arg_string("checkpoint=run", {"batch_size": 1, "device": None})
