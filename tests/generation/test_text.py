"""Prompts become tokens, samples become text and records."""

import dataclasses
import json
import re

import numpy as np
import pytest

from armd_scale.data.tokenizer import train_sentencepiece
from armd_scale.errors import GenerationError
from armd_scale.generation import (
    TO_GENERATE,
    GenerationOutput,
    Sample,
    SpeculativeStats,
    entropy_bits,
)
from armd_scale.generation.text import (
    decode_incrementally,
    encode_infill_template,
    encode_prompt,
    text_records,
    write_records,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(["def main():\n    return 0\n" * 20], 280)


def sampled(tokenizer, prompt, continued):
    """A generation of one sample, whose text is the prompt and `continued`."""
    opening = encode_prompt(prompt, tokenizer)
    (rest,) = tokenizer.encode_batch([continued])
    tokens = np.concatenate((opening, rest, [tokenizer.eod], rest))
    generated = np.arange(len(tokens)) >= len(opening)
    place = np.arange(len(tokens))
    logprob = np.where(generated, -0.5, 0.0)
    sample = Sample(tokens, place, generated, logprob, np.where(generated, place, 0))
    return GenerationOutput([sample], rounds=7, seconds=2.0, verified=SpeculativeStats(8, 6)), rest


def test_a_text_opens_with_the_end_of_the_document_before(tokenizer):
    (tokens,) = tokenizer.encode_batch(["def main"])
    assert encode_prompt("def main", tokenizer).tolist() == [tokenizer.eod, *tokens]
    assert encode_prompt(None, tokenizer).tolist() == [tokenizer.eod]


def test_without_a_tokenizer_texts_are_token_ids(tokenizer):
    assert encode_prompt(None, None).tolist() == [0]
    with pytest.raises(GenerationError, match="a prompt must be read by the tokenizer"):
        encode_prompt("def", None)
    generation, _ = sampled(tokenizer, "d", "e")
    (record,) = text_records(generation, None)
    assert record.text == " ".join(str(token) for token in generation.samples[0].tokens[1:])


def test_a_record_tells_text_tokens_and_rates(tokenizer):
    generation, rest = sampled(tokenizer, "def main", "():\n    return")
    (whole,) = text_records(generation, tokenizer)
    assert whole.text == "def main():\n    return():\n    return"
    assert whole.tokens == [*rest, tokenizer.eod, *rest]
    assert (whole.rounds, whole.seconds) == (7, 2.0)
    assert whole.tokens_per_second == len(whole.tokens) / 2
    assert (whole.tokens_per_round, whole.acceptance_rate) == (len(whole.tokens) / 7, 6 / 8)
    assert whole.round == whole.block


def test_a_sample_until_its_end(tokenizer):
    generation, rest = sampled(tokenizer, "def main", "():\n    return")
    samples = [sample.until(tokenizer.eod) for sample in generation.samples]
    (cut,) = text_records(dataclasses.replace(generation, samples=samples), tokenizer)
    assert cut.text == "def main():\n    return"
    assert cut.tokens == rest.tolist()
    assert len(cut.block) == len(cut.logprob) == len(cut.round) == len(rest)
    assert cut.entropy_bits == entropy_bits(rest)


def test_holes_are_numbers_between_braces(tokenizer):
    before, after = tokenizer.encode_batch(["def ", "return 0"])
    text = encode_infill_template("def {{3}}return 0{{ 12 }}", tokenizer)
    assert text.tolist() == [
        tokenizer.eod,
        *before,
        *[TO_GENERATE] * 3,
        *after,
        *[TO_GENERATE] * 12,
    ]
    assert encode_infill_template("{{1}}", tokenizer).tolist() == [tokenizer.eod, TO_GENERATE]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def main", "must have a hole, and this has none: write {{12}}"),
        ("a {{0}} b", "between double braces, got {{0}}"),
        ("a {{3}} {{x}}", "between double braces, got {{x}}"),
        ("a {{-2}}", "between double braces, got {{-2}}"),
        ("a {{}}", "between double braces, got {{}}"),
    ],
)
def test_what_is_no_hole(tokenizer, text, message):
    with pytest.raises(GenerationError, match=re.escape(message)):
        encode_infill_template(text, tokenizer)


def test_pieces_join_to_the_text(tokenizer):
    text = "def main():\n    return 0\n   été – 你好 \t x  "
    tokens = encode_prompt(text, tokenizer)
    parts = decode_incrementally(tokens, tokenizer)
    assert len(parts) == len(tokens)
    assert "".join(parts) == tokenizer.decode(tokens[1:].tolist()) == text
    assert "".join(decode_incrementally(tokens, None)).split() == [
        str(token) for token in tokens[1:]
    ]


def test_records_are_json_lines_that_appear_whole(tokenizer, tmp_path):
    generation, rest = sampled(tokenizer, "def", " main")
    records = text_records(generation, tokenizer) * 2
    write_records(tmp_path / "out.json", records)
    first, second = (tmp_path / "out.json").read_text().splitlines()
    assert json.loads(first) == json.loads(second)
    assert json.loads(first)["tokens"] == [*rest, tokenizer.eod, *rest]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(GenerationError, match=r"cannot write .*no such folder"):
        write_records(tmp_path / "no such folder" / "out.json", records)
