"""How texts begin, by hand and as transformers and the harness begin them."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from armd_scale.data.tokenize import load_tokenizer, train_sentencepiece
from armd_scale.eval.beginning import Beginning
from tests.support.hf_folders import write_byte_tokenizer

WORDS = "the quick brown fox"
BOS, EOS = 0, 1


@pytest.fixture(scope="module", params=[True, False], ids=["adds BOS", "adds nothing"])
def adds_bos(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, adds_bos):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder, [WORDS] * 20, adds_bos=adds_bos)
    return folder


def plain(folder):
    (tokens,) = load_tokenizer(folder).encode_batch([WORDS])
    return tokens.tolist()


def test_a_prompt_is_what_transformers_makes_of_it(folder, adds_bos):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.opening == ((BOS,) if adds_bos else ())
    expected = AutoTokenizer.from_pretrained(folder).encode(WORDS)
    assert expected == [BOS] * adds_bos + plain(folder)
    assert Beginning(tokenizer).prompt(WORDS).tolist() == expected
    assert Beginning(tokenizer).prompt("").tolist() == [BOS]
    assert Beginning(tokenizer).prompt(f"<s>{WORDS}").tolist() == [BOS, *plain(folder)]


def test_a_whole_text_is_scored_from_bos_once(folder):
    assert Beginning(load_tokenizer(folder)).whole(WORDS).tolist() == [BOS, *plain(folder)]


def test_both_can_be_asked_for(folder):
    tokenizer = load_tokenizer(folder)
    never, always = (Beginning(tokenizer, add_bos_token=is_added) for is_added in (False, True))
    assert never.prompt(WORDS).tolist() == plain(folder)
    assert always.prompt(WORDS).tolist() == [BOS, *plain(folder)]
    other = Beginning(tokenizer, add_bos_token=False, prefix_token_id=EOS)
    assert other.whole(WORDS).tolist() == [EOS, *plain(folder)]
    assert other.prompt("").tolist() == [EOS]


def test_pairs_are_cut_where_the_context_ends(folder, adds_bos):
    beginning = Beginning(load_tokenizer(folder))
    pair = beginning.pair("the quick ", "brown fox")
    begun = [BOS] * adds_bos
    assert [*pair.context, *pair.continuation] == [*begun, *plain(folder)]
    assert load_tokenizer(folder).decode(pair.context.tolist()) == "the quick"
    for empty in ("", " "):
        pair = beginning.pair(empty, WORDS)
        assert pair.context.tolist() == [BOS]
        (tokens,) = load_tokenizer(folder).encode_batch([empty + WORDS])
        assert np.array_equal(pair.continuation, tokens)


def test_a_sentencepiece_text_begins_as_documents_did_in_training(tmp_path):
    tokenizer = train_sentencepiece([f"{WORDS}\n" * 20], 280)
    assert tokenizer.opening is None
    (tokens,) = tokenizer.encode_batch([WORDS])
    expected = [tokenizer.eod, *tokens]
    assert Beginning(tokenizer).prompt(WORDS).tolist() == expected
    assert Beginning(tokenizer).whole(WORDS).tolist() == expected
    pair = Beginning(tokenizer).pair("", WORDS)
    assert pair.context.tolist() == [tokenizer.eod]
