"""Prompts become tokens, samples become text and records."""

import json

import numpy as np
import pytest

from armd_scale.data.tokenize import train_sentencepiece
from armd_scale.errors import GenerationError
from armd_scale.sample import Generation, Sample, entropy_bits
from armd_scale.sample.text import opening_tokens, text_records, write_records


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(["def main():\n    return 0\n" * 20], 280)


def sampled(tokenizer, prompt, continued):
    """A generation of one sample, whose text is the prompt and `continued`."""
    opening = opening_tokens(prompt, tokenizer)
    (rest,) = tokenizer.encode_batch([continued])
    tokens = np.concatenate((opening, rest, [tokenizer.eod], rest))
    generated = np.arange(len(tokens)) >= len(opening)
    sample = Sample(tokens, np.arange(len(tokens)), generated, np.where(generated, -0.5, 0.0))
    return Generation([sample], rounds=7, seconds=2.0), rest


def test_a_text_opens_with_the_end_of_the_document_before(tokenizer):
    (tokens,) = tokenizer.encode_batch(["def main"])
    assert opening_tokens("def main", tokenizer).tolist() == [tokenizer.eod, *tokens]
    assert opening_tokens(None, tokenizer).tolist() == [tokenizer.eod]


def test_without_a_tokenizer_texts_are_token_ids(tokenizer):
    assert opening_tokens(None, None).tolist() == [0]
    with pytest.raises(GenerationError, match="a prompt must be read by the tokenizer"):
        opening_tokens("def", None)
    generation, _ = sampled(tokenizer, "d", "e")
    (record,) = text_records(generation, None, cut_at_end=True)
    assert record.text == " ".join(str(token) for token in generation.samples[0].tokens[1:])


def test_a_record_tells_text_tokens_and_rates(tokenizer):
    generation, rest = sampled(tokenizer, "def main", "():\n    return")
    (whole,) = text_records(generation, tokenizer)
    assert whole.text == "def main():\n    return():\n    return"
    assert whole.tokens == [*rest, tokenizer.eod, *rest]
    assert (whole.rounds, whole.seconds) == (7, 2.0)
    assert whole.tokens_per_second == len(whole.tokens) / 2
    (cut,) = text_records(generation, tokenizer, cut_at_end=True)
    assert cut.text == "def main():\n    return"
    assert cut.tokens == rest.tolist()
    assert len(cut.block) == len(cut.logprob) == len(rest)
    assert cut.entropy_bits == entropy_bits(rest)


def test_records_are_json_lines_that_appear_whole(tokenizer, tmp_path):
    generation, rest = sampled(tokenizer, "def", " main")
    records = text_records(generation, tokenizer) * 2
    write_records(tmp_path / "out.json", records)
    first, second = (tmp_path / "out.json").read_text().splitlines()
    assert json.loads(first) == json.loads(second)
    assert json.loads(first)["tokens"] == [*rest, tokenizer.eod, *rest]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(GenerationError, match=r"samples must be written to .*no such folder"):
        write_records(tmp_path / "no such folder" / "out.json", records)
