"""Ends of generated texts, and ids that are never generated."""

import copy
import dataclasses

import numpy as np
import pytest

from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import GenerationError
from armd_scale.generation import Sampling, Strategy, generate_tokens
from armd_scale.generation.output_rules import EndFinder, OutputRules, rules_of, truncate_at_stop
from armd_scale.generation.strategy import ConfidenceSchedule
from tests.support.networks import LLAMA, build

TEXT = "one two three four\n"


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece([TEXT * 20], 270)


def encode(tokenizer, text):
    (ids,) = tokenizer.encode_batch([text])
    return ids.astype(np.int64)


@pytest.mark.parametrize(
    ("eos_ids", "expected"), [((), None), ((7,), 4), ((9, 7), 3), ((1,), None), ((2,), None)]
)
def test_a_text_ends_at_the_first_generated_eos(eos_ids, expected):
    tokens = np.array([1, 2, 8, 9, 7, 9])
    assert OutputRules(eos_ids=eos_ids).find_end(tokens, 2) == expected


@pytest.mark.parametrize("stop", ["two", "o thr", "e four\n", "\n", "ü"])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_text_ends_with_the_token_that_completes_a_stop_string(tokenizer, stop, first):
    tokens = encode(tokenizer, f"{TEXT}ü{TEXT}")
    end = rules_of(tokenizer, stops=["nowhere", stop]).find_end(tokens, first)
    assert end is not None

    def generated(num_tokens):
        return tokenizer.decode(tokens[first:num_tokens].tolist())

    assert stop in generated(end)
    assert stop not in generated(end - 1)


def test_an_end_is_found_at_the_same_place_however_the_text_grows(tokenizer):
    tokens = encode(tokenizer, f"{TEXT}zwei ü{TEXT}")
    rules = rules_of(tokenizer, stops=["i ü", "three"])
    expected = rules.find_end(tokens, 8)
    assert expected is not None
    for step in (1, 2, 3, 7):
        finder = EndFinder(rules, [8])
        finished = []
        for num_known in [*range(9, len(tokens), step), len(tokens)]:
            known = np.arange(len(tokens)) < num_known
            (is_finished,) = finder.find(tokens[None], known[None])
            finished += [num_known] * int(is_finished)
        assert expected <= finished[0] < expected + step


def test_a_text_is_finished_only_when_it_is_known_up_to_its_end():
    finder = EndFinder(OutputRules(eos_ids=(7,)), [1])
    tokens = np.array([[5, 6, 7, 0]])
    assert not finder.find(tokens, np.array([[True, False, True, False]]))
    assert finder.find(tokens, np.array([[True, True, True, False]]))


def test_stop_strings_need_characters_and_a_tokenizer(tokenizer):
    with pytest.raises(GenerationError, match="a stop string must have at least one character"):
        rules_of(tokenizer, stops=["a", ""])
    with pytest.raises(GenerationError, match="leave out --stop"):
        rules_of(None, stops=["a"])


STRATEGIES = {
    "one": Strategy(),
    "streams": Strategy(streams=3),
    "dynamic": Strategy(dynamic=ConfidenceSchedule("confidence", 3)),
    "speculative": Strategy(speculative=3),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_ids_without_text_are_never_generated(groups, tokenizer, name, temperature):
    """Rows of the model beyond the tokenizer's, which would crash its decoder."""
    network = build(dataclasses.replace(LLAMA, vocab_size=400), groups)
    arguments = {
        "num_tokens": 30,
        "strategy": STRATEGIES[name],
        "sampling": Sampling(temperature=temperature, seed=3),
    }
    prompts = [np.array([1]), np.array([1, 5, 9])]
    free = generate_tokens(network, prompts, **arguments).samples
    assert any((sample.tokens >= tokenizer.vocab_size).any() for sample in free)
    ruled = generate_tokens(network, prompts, rules=rules_of(tokenizer), **arguments).samples
    for sample in ruled:
        assert (sample.tokens < tokenizer.vocab_size).all()
        tokenizer.decode(sample.tokens.tolist())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stop_string_ends_the_rounds(groups, tokenizer, name):
    network = build(dataclasses.replace(LLAMA, vocab_size=270), groups)
    arguments = {"num_tokens": 40, "strategy": STRATEGIES[name], "sampling": Sampling(seed=2)}
    prompts = [np.array([1]), np.array([1, 5, 9])]
    full = generate_tokens(network, prompts, **arguments)
    # A letter that each of them generates.
    letters = [set(tokenizer.decode(s.tokens[s.generated].tolist())) for s in full.samples]
    stops = [next(c for c in sorted(found) if c.isascii() and c.isalnum()) for found in letters]
    rules = rules_of(tokenizer, stops=stops)
    stopped = generate_tokens(network, prompts, rules=rules, **arguments)
    assert stopped.rounds <= full.rounds
    for sample, whole, first in zip(stopped.samples, full.samples, (1, 3), strict=True):
        end = rules.find_end(whole.tokens, first)
        assert end is not None
        assert np.array_equal(sample.tokens, whole.tokens[:end])
    last = max(int(sample.round.max()) for sample in stopped.samples)
    assert name != "one" or stopped.rounds == last < full.rounds


@pytest.mark.parametrize(
    ("stops", "expected"), [((), "a b c"), (("x",), "a b c"), (("c", " b"), "a"), (("a",), "")]
)
def test_texts_end_before_the_earliest_stop_string(stops, expected):
    assert truncate_at_stop("a b c", stops) == expected


def test_a_special_token_can_be_a_stop_string(tokenizer):
    """It has no text that could be searched."""
    rules = rules_of(tokenizer, stops=["</s>", "x"])
    tokens = np.array([1, *encode(tokenizer, "one"), tokenizer.eod, 5])
    assert rules.find_end(tokens, 1) == len(tokens) - 2


def test_ids_that_end_texts_may_be_generated_although_the_tokenizer_lacks_them(tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.eos_ids = (tokenizer.eod, 399)
    allowed = rules_of(tokenizer, stop_at_eos=True).allowed_ids(400)
    assert allowed is not None
    assert np.flatnonzero(allowed)[-1] == 399
    assert allowed.sum() == tokenizer.vocab_size + 1
    assert tokenizer.spell(399) == "399"
