"""Tokens that texts start with: by hand, and as transformers chooses them."""

import io
import json
import shutil

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
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
    assert TextEncoder(tokenizer).encode_prompt(WORDS).tolist() == expected
    assert TextEncoder(tokenizer).encode_prompt("").tolist() == [BOS]
    assert TextEncoder(tokenizer).encode_prompt(f"<s>{WORDS}").tolist() == [
        BOS,
        *encode_words(folder),
    ]


def test_a_text_scored_as_a_whole_starts_with_one_bos(folder):
    assert TextEncoder(load_tokenizer(folder)).encode_document(WORDS).tolist() == [
        BOS,
        *encode_words(folder),
    ]


def test_a_prefix_can_be_forced_forbidden_or_replaced(folder):
    tokenizer = load_tokenizer(folder)
    never, always = (TextEncoder(tokenizer, add_bos_token=is_added) for is_added in (False, True))
    assert never.encode_prompt(WORDS).tolist() == encode_words(folder)
    assert always.encode_prompt(WORDS).tolist() == [BOS, *encode_words(folder)]
    other = TextEncoder(tokenizer, add_bos_token=False, prefix_token_id=EOS)
    assert other.encode_document(WORDS).tolist() == [EOS, *encode_words(folder)]
    assert other.encode_prompt("").tolist() == [EOS]


def test_pairs_are_split_where_the_context_ends(folder, adds_bos):
    encoder = TextEncoder(load_tokenizer(folder))
    pair = encoder.encode_pair("the quick ", "brown fox")
    prefix = [BOS] * adds_bos
    assert [*pair.context, *pair.continuation] == [*prefix, *encode_words(folder)]
    assert load_tokenizer(folder).decode(pair.context.tolist()) == "the quick"
    for empty in ("", " "):
        pair = encoder.encode_pair(empty, WORDS)
        assert pair.context.tolist() == [BOS]
        (tokens,) = load_tokenizer(folder).encode_batch([empty + WORDS])
        assert np.array_equal(pair.continuation, tokens)


def test_with_sentencepiece_texts_start_with_bos(tmp_path):
    """As those of the families whose tokenizer is such a file, and unless the folder says not."""
    tokenizer = train_sentencepiece([f"{WORDS}\n" * 20], 280)
    (tokens,) = tokenizer.encode_batch([WORDS])
    for add_bos, start in ((True, tokenizer.bos), (False, tokenizer.eod)):
        tokenizer.save(tmp_path / "all")
        load_tokenizer(tmp_path / "all", add_bos=add_bos).save(tmp_path / str(add_bos))
        encoder = TextEncoder(load_tokenizer(tmp_path / str(add_bos)))
        assert encoder.encode_prompt(WORDS).tolist() == [tokenizer.bos] * add_bos + tokens.tolist()
        assert encoder.encode_document(WORDS).tolist() == [start, *tokens]
        assert encoder.encode_prompt("").tolist() == [start]
        assert encoder.encode_pair("", WORDS).context.tolist() == [start]
    (tmp_path / "all" / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path / "all").prefix_ids == (tokenizer.bos,)


@pytest.mark.parametrize("value", [True, False])
def test_the_post_processor_decides_whether_texts_start_with_bos(folder, tmp_path, value):
    """Not `add_bos_token`, which transformers ignores beside tokenizer.json."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": value}))
    expected = AutoTokenizer.from_pretrained(tmp_path).encode(WORDS)
    assert TextEncoder(load_tokenizer(tmp_path)).encode_prompt(WORDS).tolist() == expected


@pytest.mark.parametrize("value", [True, False])
def test_the_users_choice_is_saved_with_the_tokenizer(folder, tmp_path, value):
    load_tokenizer(folder, add_bos=value).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.prefix_ids == (BOS,) * value
    assert tokenizer.fingerprint == load_tokenizer(folder).fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path).encode(WORDS)  # which reads the other keys


def test_the_rest_of_a_text_has_no_blank_in_front():
    model = io.BytesIO()
    # The library's defaults: a blank in front of every text.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20), model_writer=model, vocab_size=20, minloglevel=2
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), source="the model")
    (start,) = tokenizer.encode_batch(["the qui"])
    for rest in ("ck brown", " brown", "x"):
        ids = [*start.tolist(), *TextEncoder(tokenizer).encode_rest(rest).tolist()]
        whole = tokenizer.decode(ids)
        assert whole.replace(" \N{DOUBLE QUESTION MARK} ", "?") == f"the qui{rest}"
    (plain,) = tokenizer.encode_batch(["ck brown"])
    assert tokenizer.decode([*start.tolist(), *plain.tolist()]) == "the qui ck brown"
