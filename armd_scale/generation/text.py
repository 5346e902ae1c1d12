"""Text to tokens and back: prompts and infill templates in, records of samples out."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.files import atomic_write_text
from armd_scale.generation.memory import require_memory_for_texts
from armd_scale.generation.result import GenerationOutput, Sample, entropy_bits
from armd_scale.generation.strategy import TO_GENERATE

JSON_HELP = (
    "write one JSON object per line and sample: text (prompt included), tokens (generated), block, "
    "logprob (nats), round (that committed each token), entropy_bits (unigram entropy of the "
    "sample in bits per token, as papers on diffusion language models report it); and for all "
    "samples together rounds, seconds, tokens_per_second, tokens_per_round, acceptance_rate "
    "(speculative decoding: accepted drafts / drafts)"
)
HOLE_PATTERN = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
# Tokens of context that decide how a token joins the text before it.
CONTEXT_TOKENS = 4
MAX_HOLE_DIGITS = 15


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """One generated sample as text, with its figures; one line of a JSON file."""

    text: str
    """The whole text, its prompt included."""
    tokens: list[int]
    """The generated tokens, in text order."""
    block: list[int]
    """Generation block of each generated token."""
    logprob: list[float]
    """Log-probability in nats of each generated token under the model's own distribution."""
    round: list[int]
    """Round that committed each generated token."""
    entropy_bits: float
    """Unigram entropy of the generated tokens, in bits per token."""
    rounds: int
    """Number of forward passes of the whole batch."""
    seconds: float
    """Wall-clock time of the whole batch."""
    tokens_per_second: float
    """Generated tokens of all samples of the batch per second."""
    tokens_per_round: float
    """Mean number of tokens that a round adds to one sample."""
    acceptance_rate: float | None
    """Accepted drafts divided by drafts; None unless decoding was speculative."""


def encode_prompt(prompt: str | None, tokenizer: Tokenizer | None) -> Int[np.ndarray, " m"]:
    """Return the tokens that a text starts with: a document start, then the prompt.

    Training windows contain documents one after another, so a document starts with the end token of
    the one before it. Without a tokenizer that token is unknown, and token 0 takes its place.

    Raises:
        GenerationError: there is a prompt but no tokenizer to encode it.
    """
    if tokenizer is None:
        if prompt is not None:
            raise GenerationError(
                "a prompt must be encoded by the tokenizer that the model was trained with, but "
                "the model's folder contains none: leave out --prompt, or copy the tokenizer's "
                "files into the checkpoint's folder tokenizer/"
            )
        return np.zeros(1, dtype=np.int64)
    start = next((token for token in (tokenizer.eod, tokenizer.bos) if token is not None), 0)
    (tokens,) = tokenizer.encode_batch([prompt or ""])
    return np.concatenate(([start], tokens)).astype(np.int64)


def encode_infill_template(text: str, tokenizer: Tokenizer | None) -> Int[np.ndarray, " P"]:
    """Return the tokens of a text in which {{n}} stands for n tokens to generate.

    Each of these n tokens is `TO_GENERATE`.

    Raises:
        GenerationError: the text has no hole, a hole is not a number, or there is no tokenizer.
    """
    parts = HOLE_PATTERN.split(text)
    if len(parts) == 1:
        raise GenerationError(
            "a text to infill must contain a hole (got none): write {{12}} where 12 tokens are to "
            "be generated"
        )
    require_memory_for_texts(1, sum(map(_hole_size, parts[1::2])))
    # The pattern has one group, so parts alternate: text, hole, text, ..., hole, text.
    tokens = [encode_prompt(parts[0], tokenizer)]
    for size, text_after in zip(parts[1::2], parts[2::2], strict=True):
        # [1:] because only the start of the text starts a document.
        tokens += [np.full(_hole_size(size), TO_GENERATE), encode_prompt(text_after, tokenizer)[1:]]
    return np.concatenate(tokens)


def _hole_size(text: str) -> int:
    digits = text.strip()
    is_size = digits.isdecimal() and digits.isascii() and len(digits) <= MAX_HOLE_DIGITS
    if not is_size or int(digits) < 1:
        raise GenerationError(
            "a hole must be its number of tokens between double braces (got "
            f"{{{{{text[:40]}}}}}): write {{{{12}}}} where 12 tokens are to be generated"
        )
    return int(digits)


def text_records(output: GenerationOutput, tokenizer: Tokenizer | None) -> list[TextRecord]:
    """Return a record for each sample; without a tokenizer, texts are token ids."""
    return [_text_record(sample, output, tokenizer) for sample in output.samples]


def decode_incrementally(tokens: Int[np.ndarray, " P"], tokenizer: Tokenizer | None) -> list[str]:
    """Return the characters that each token adds to the text; "" for the token at position 0.

    If several tokens form one character, the last of them gets it.
    """
    if tokenizer is None:
        return ["", *(f"{token} " for token in tokens[1:])]
    pieces, num_decoded = [""], 1
    for index in range(1, len(tokens)):
        # How a token joins the text depends on a few tokens before it. Decoding all of them would
        # take quadratic time.
        start = max(num_decoded - CONTEXT_TOKENS, 1)
        before = tokenizer.decode(tokens[start:num_decoded].tolist())
        after = tokenizer.decode(tokens[start : index + 1].tolist())
        # Part of a UTF-8 sequence decodes to the replacement character until it is complete.
        is_complete = not after.endswith("\N{REPLACEMENT CHARACTER}")
        pieces.append(after[len(before) :] if is_complete else "")
        num_decoded = index + 1 if is_complete else num_decoded
    return pieces


def write_records(path: Path, records: Sequence[TextRecord]) -> None:
    """Write one JSON object per line; the file appears complete or not at all.

    Raises:
        GenerationError: the file cannot be written.
    """
    lines = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
    atomic_write_text(path, lines, error_class=GenerationError)


def _text_record(
    sample: Sample, output: GenerationOutput, tokenizer: Tokenizer | None
) -> TextRecord:
    # Position 0 starts the document and is not part of its text.
    ids = sample.tokens[1:].tolist()
    tokens = sample.tokens[sample.generated]
    return TextRecord(
        text=" ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids),
        tokens=tokens.tolist(),
        block=sample.block[sample.generated].tolist(),
        logprob=sample.logprob[sample.generated].tolist(),
        round=sample.round[sample.generated].tolist(),
        entropy_bits=entropy_bits(tokens),
        rounds=output.rounds,
        seconds=output.seconds,
        tokens_per_second=output.tokens_per_second,
        tokens_per_round=output.tokens_per_round,
        acceptance_rate=output.acceptance_rate,
    )
