"""Tokens that texts start with: by hand, and as transformers chooses them."""

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


def encode_words(folder):
    (tokens,) = load_tokenizer(folder).encode_batch([WORDS])
    return tokens.tolist()


def test_a_prompt_starts_as_transformers_starts_it(folder, adds_bos):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.prefix_ids == ((BOS,) if adds_bos else ())
    expected = AutoTokenizer.from_pretrained(folder).encode(WORDS)
    assert expected == [BOS] * adds_bos + encode_words(folder)
    assert PromptEncoder(tokenizer).encode_prompt(WORDS).tolist() == expected
    assert PromptEncoder(tokenizer).encode_prompt("").tolist() == [BOS]
    assert PromptEncoder(tokenizer).encode_prompt(f"<s>{WORDS}").tolist() == [
        BOS,
        *encode_words(folder),
    ]


def test_a_text_scored_as_a_whole_starts_with_one_bos(folder):
    assert PromptEncoder(load_tokenizer(folder)).encode_rolling(WORDS).tolist() == [
        BOS,
        *encode_words(folder),
    ]


def test_a_prefix_can_be_forced_forbidden_or_replaced(folder):
    tokenizer = load_tokenizer(folder)
    never, always = (PromptEncoder(tokenizer, add_bos_token=is_added) for is_added in (False, True))
    assert never.encode_prompt(WORDS).tolist() == encode_words(folder)
    assert always.encode_prompt(WORDS).tolist() == [BOS, *encode_words(folder)]
    other = PromptEncoder(tokenizer, add_bos_token=False, prefix_token_id=EOS)
    assert other.encode_rolling(WORDS).tolist() == [EOS, *encode_words(folder)]
    assert other.encode_prompt("").tolist() == [EOS]


def test_pairs_are_split_where_the_context_ends(folder, adds_bos):
    encoder = PromptEncoder(load_tokenizer(folder))
    pair = encoder.encode_pair("the quick ", "brown fox")
    prefix = [BOS] * adds_bos
    assert [*pair.context, *pair.continuation] == [*prefix, *encode_words(folder)]
    assert load_tokenizer(folder).decode(pair.context.tolist()) == "the quick"
    for empty in ("", " "):
        pair = encoder.encode_pair(empty, WORDS)
        assert pair.context.tolist() == [BOS]
        (tokens,) = load_tokenizer(folder).encode_batch([empty + WORDS])
        assert np.array_equal(pair.continuation, tokens)


def test_with_sentencepiece_texts_start_as_documents_in_training(tmp_path):
    tokenizer = train_sentencepiece([f"{WORDS}\n" * 20], 280)
    assert tokenizer.prefix_ids is None
    (tokens,) = tokenizer.encode_batch([WORDS])
    expected = [tokenizer.eod, *tokens]
    assert PromptEncoder(tokenizer).encode_prompt(WORDS).tolist() == expected
    assert PromptEncoder(tokenizer).encode_rolling(WORDS).tolist() == expected
    pair = PromptEncoder(tokenizer).encode_pair("", WORDS)
    assert pair.context.tolist() == [tokenizer.eod]
