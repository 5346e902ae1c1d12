"""How texts begin, by hand and as transformers and the harness begin them."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.eval.harness.prompts import PromptEncoder
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
    assert tokenizer.prefix_ids == ((BOS,) if adds_bos else ())
    expected = AutoTokenizer.from_pretrained(folder).encode(WORDS)
    assert expected == [BOS] * adds_bos + plain(folder)
    assert PromptEncoder(tokenizer).encode_prompt(WORDS).tolist() == expected
    assert PromptEncoder(tokenizer).encode_prompt("").tolist() == [BOS]
    assert PromptEncoder(tokenizer).encode_prompt(f"<s>{WORDS}").tolist() == [BOS, *plain(folder)]


def test_a_whole_text_is_scored_from_bos_once(folder):
    assert PromptEncoder(load_tokenizer(folder)).encode_rolling(WORDS).tolist() == [
        BOS,
        *plain(folder),
    ]


def test_both_can_be_asked_for(folder):
    tokenizer = load_tokenizer(folder)
    never, always = (PromptEncoder(tokenizer, add_bos_token=is_added) for is_added in (False, True))
    assert never.encode_prompt(WORDS).tolist() == plain(folder)
    assert always.encode_prompt(WORDS).tolist() == [BOS, *plain(folder)]
    other = PromptEncoder(tokenizer, add_bos_token=False, prefix_token_id=EOS)
    assert other.encode_rolling(WORDS).tolist() == [EOS, *plain(folder)]
    assert other.encode_prompt("").tolist() == [EOS]


def test_pairs_are_cut_where_the_context_ends(folder, adds_bos):
    beginning = PromptEncoder(load_tokenizer(folder))
    pair = beginning.encode_pair("the quick ", "brown fox")
    begun = [BOS] * adds_bos
    assert [*pair.context, *pair.continuation] == [*begun, *plain(folder)]
    assert load_tokenizer(folder).decode(pair.context.tolist()) == "the quick"
    for empty in ("", " "):
        pair = beginning.encode_pair(empty, WORDS)
        assert pair.context.tolist() == [BOS]
        (tokens,) = load_tokenizer(folder).encode_batch([empty + WORDS])
        assert np.array_equal(pair.continuation, tokens)


def test_a_sentencepiece_text_begins_as_documents_did_in_training(tmp_path):
    tokenizer = train_sentencepiece([f"{WORDS}\n" * 20], 280)
    assert tokenizer.prefix_ids is None
    (tokens,) = tokenizer.encode_batch([WORDS])
    expected = [tokenizer.eod, *tokens]
    assert PromptEncoder(tokenizer).encode_prompt(WORDS).tolist() == expected
    assert PromptEncoder(tokenizer).encode_rolling(WORDS).tolist() == expected
    pair = PromptEncoder(tokenizer).encode_pair("", WORDS)
    assert pair.context.tolist() == [tokenizer.eod]
