"""Prompts and infill templates to tokens, samples to text and records."""

import dataclasses
import json
import re

import numpy as np
import pytest

from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import GenerationError
from armd_scale.generation import (
    TO_GENERATE,
    GenerationOutput,
    Sample,
    SpeculativeStats,
    entropy_bits,
)
from armd_scale.generation.output_rules import rules_of
from armd_scale.generation.text import (
    TextTemplate,
    encode_infill_template,
    encode_prompt,
    text_records,
    write_records,
)
from armd_scale.generation.text_decoder import decode_incrementally


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(["def main():\n    return 0\n" * 20], 280)


def output_of(tokenizer, prompt, continuation):
    """One sample: prompt, continuation, end of text, continuation; also the latter's tokens."""
    start = encode_prompt(prompt, tokenizer).tokens
    (rest,) = tokenizer.encode_batch([continuation])
    tokens = np.concatenate((start, rest, [tokenizer.eod], rest))
    generated = np.arange(len(tokens)) >= len(start)
    position = np.arange(len(tokens))
    logprob = np.where(generated, -0.5, 0.0)
    sample = Sample(tokens, position, generated, logprob, np.where(generated, position, 0))
    stats = SpeculativeStats(8, 6)
    return GenerationOutput([sample], rounds=7, seconds=2.0, speculative_stats=stats), rest


def test_a_prompt_starts_as_its_tokenizer_starts_texts(tokenizer):
    (tokens,) = tokenizer.encode_batch(["def main"])
    assert encode_prompt("def main", tokenizer).tokens.tolist() == [tokenizer.bos, *tokens]
    assert encode_prompt(None, tokenizer).tokens.tolist() == [tokenizer.bos]


def test_without_a_tokenizer_texts_are_token_ids(tokenizer):
    assert encode_prompt(None, None).tokens.tolist() == [0]
    with pytest.raises(GenerationError, match="a prompt must be encoded by the tokenizer"):
        encode_prompt("def", None)
    output, _ = output_of(tokenizer, "d", "e")
    (record,) = text_records(output, TextTemplate(output.samples[0].tokens, (), None))
    assert record.text == " ".join(str(token) for token in output.samples[0].tokens[1:])


def test_record_contains_text_tokens_and_rates(tokenizer):
    output, rest = output_of(tokenizer, "def main", "():\n    return")
    (record,) = text_records(output, encode_prompt("def main", tokenizer))
    assert record.text == "def main():\n    return():\n    return"
    assert record.tokens == [*rest, tokenizer.eod, *rest]
    assert (record.rounds, record.seconds) == (7, 2.0)
    assert record.tokens_per_second == len(record.tokens) / 2
    assert (record.tokens_per_round, record.acceptance_rate) == (len(record.tokens) / 7, 6 / 8)
    assert record.round == record.block


def test_record_of_a_truncated_sample(tokenizer):
    output, rest = output_of(tokenizer, "def main", "():\n    return")
    template = encode_prompt("def main", tokenizer)
    (sample,) = output.samples
    sample = sample.truncate(len(template.tokens) + len(rest))
    (record,) = text_records(dataclasses.replace(output, samples=[sample]), template)
    assert record.text == "def main():\n    return"
    assert record.tokens == rest.tolist()
    assert len(record.block) == len(record.logprob) == len(record.round) == len(rest)
    assert record.entropy_bits == entropy_bits(rest)


def test_a_record_ends_before_a_stop_string_of_the_generated_text(tokenizer):
    output, _ = output_of(tokenizer, "def main():", "\n    return 0\n")
    rules = rules_of(tokenizer, stops=("turn", "main", "def"))
    (record,) = text_records(output, encode_prompt("def main():", tokenizer), rules=rules)
    assert record.text == "def main():\n    re"


def test_infill_template_marks_the_tokens_to_generate(tokenizer):
    before, after = tokenizer.encode_batch(["def ", "return 0"])
    template = encode_infill_template("def {{3}}return 0{{ 12 }}", tokenizer)
    assert template.tokens.tolist() == [
        tokenizer.bos,
        *before,
        *[TO_GENERATE] * 3,
        *after,
        *[TO_GENERATE] * 12,
    ]
    assert template.parts == ("def ", "return 0", "")
    tokens = encode_infill_template("{{1}}", tokenizer).tokens
    assert tokens.tolist() == [tokenizer.bos, TO_GENERATE]


def test_double_braces_can_be_part_of_a_text(tokenizer):
    template = encode_infill_template(r"a \{{x}} {{2}} \{{3}}", tokenizer)
    assert template.parts == ("a {{x}} ", " {{3}}")
    assert (template.tokens == TO_GENERATE).sum() == 2


def test_given_text_comes_back_verbatim(sentencepiece_with_blanks):
    """Although the tokenizer drops blanks at the ends of a text and merges others."""
    tokenizer = sentencepiece_with_blanks
    text = "  the quick{{2}}ck  fox\n\tjumps {{1}}"
    template = encode_infill_template(text, tokenizer)
    (filling,) = tokenizer.encode_batch(["over"])
    tokens = template.tokens.copy()
    generated = tokens == TO_GENERATE
    tokens[generated] = np.resize(filling, generated.sum())
    zeros = np.zeros(len(tokens))
    sample = Sample(tokens, zeros.astype(int), generated, zeros, zeros.astype(int))
    assert template.complete(sample) == "  the quick over overck  fox\n\tjumps  over"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def main", "must contain a hole (got none): write {{12}}"),
        ("a {{0}} b", "between double braces (got {{0}}"),
        ("a {{3}} {{x}}", "between double braces (got {{x}}"),
        ("a {{-2}}", "between double braces (got {{-2}}"),
        ("a {{}}", "between double braces (got {{}}"),
    ],
)
def test_invalid_holes_are_refused(tokenizer, text, message):
    with pytest.raises(GenerationError, match=re.escape(message)):
        encode_infill_template(text, tokenizer)


def test_decode_incrementally_adds_up_to_the_text(tokenizer):
    text = "def main():\n    return 0\n   été – 你好 \t x  "
    tokens = encode_prompt(text, tokenizer).tokens
    pieces = decode_incrementally(tokens, tokenizer)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == tokenizer.decode(tokens[1:].tolist()) == text
    assert "".join(decode_incrementally(tokens, None)).split() == [
        str(token) for token in tokens[1:]
    ]


def test_records_are_written_as_json_lines(tokenizer, tmp_path):
    output, rest = output_of(tokenizer, "def", " main")
    records = text_records(output, encode_prompt("def", tokenizer)) * 2
    write_records(tmp_path / "out.json", records)
    first, second = (tmp_path / "out.json").read_text().splitlines()
    assert json.loads(first) == json.loads(second)
    assert json.loads(first)["tokens"] == [*rest, tokenizer.eod, *rest]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    with pytest.raises(GenerationError, match=r"cannot write .*no such folder"):
        write_records(tmp_path / "no such folder" / "out.json", records)
