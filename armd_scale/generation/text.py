"""Between text and the sampler: prompts into tokens, samples into text and records."""

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
from armd_scale.generation.result import GenerationOutput, Sample, entropy_bits
from armd_scale.generation.strategy import TO_GENERATE

JSON_HELP = (
    "one JSON object a line and sample: text (prompt included), tokens (generated), block, logprob "
    "(nats), round (in which each landed), entropy_bits (of the sample's own unigram frequencies, "
    "in bits per token, as the literature on diffusion language models reports it); and, of all "
    "samples together, rounds, seconds, tokens_per_second, tokens_per_round, and acceptance_rate "
    "(lossless decoding: accepted drafts over drafts)"
)
BRACES = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """What is told of one sample; one line of a JSON file."""

    text: str
    """The whole text, its prompt included."""
    tokens: list[int]
    """The generated tokens, in text order."""
    block: list[int]
    """Generation block of each generated token."""
    logprob: list[float]
    """Log-probability in nats of each generated token under the model's own distribution."""
    round: list[int]
    """Round in which each generated token became known."""
    entropy_bits: float
    """Unigram entropy of the generated tokens, in bits."""
    rounds: int
    """Forward passes of the whole batch."""
    seconds: float
    """Wall time of the whole batch."""
    tokens_per_second: float
    """Generated tokens of all samples of the batch over that time."""
    tokens_per_round: float
    """Generated tokens a sample over the rounds."""
    acceptance_rate: float | None
    """Accepted drafts over drafts, in lossless decoding."""


def encode_prompt(prompt: str | None, tokenizer: Tokenizer | None) -> Int[np.ndarray, " m"]:
    """The tokens that a text starts with: what opens a document, then the prompt.

    Training windows see documents one after another, so a document opens with the end of the one
    before it. Without a tokenizer that token is not known, and token 0 takes its place.

    Raises:
        GenerationError: a prompt without a tokenizer to read it.
    """
    if tokenizer is None:
        if prompt is not None:
            raise GenerationError(
                "a prompt must be read by the tokenizer that the model was trained with, and the "
                "checkpoint holds none: leave out --prompt, or put its files into the checkpoint's "
                "folder tokenizer/"
            )
        return np.zeros(1, dtype=np.int64)
    opens = next((t for t in (tokenizer.eod, tokenizer.bos) if t is not None), 0)
    (tokens,) = tokenizer.encode_batch([prompt or ""])
    return np.concatenate(([opens], tokens)).astype(np.int64)


def encode_infill_template(text: str, tokenizer: Tokenizer | None) -> Int[np.ndarray, " P"]:
    """The tokens of a text in which {{n}} stands for n tokens to be generated, n times HOLE.

    Raises:
        GenerationError: no hole, braces that hold no number, or no tokenizer.
    """
    parts = BRACES.split(text)
    if len(parts) == 1:
        raise GenerationError(
            "a text to infill must have a hole, and this has none: write {{12}} where 12 tokens "
            "are to be generated"
        )
    tokens = [encode_prompt(parts[0], tokenizer)]
    for size, given in zip(parts[1::2], parts[2::2], strict=True):
        if not size.strip().isdecimal() or int(size) < 1:
            raise GenerationError(
                "a hole must be the number of its tokens between double braces, got "
                f"{{{{{size}}}}}: write {{{{12}}}} where 12 tokens are to be generated"
            )
        tokens += [np.full(int(size), TO_GENERATE), encode_prompt(given, tokenizer)[1:]]
    return np.concatenate(tokens)


def text_records(generation: GenerationOutput, tokenizer: Tokenizer | None) -> list[TextRecord]:
    """A record of each sample; without a tokenizer the text is its token ids."""
    return [_record(sample, generation, tokenizer) for sample in generation.samples]


def decode_incrementally(tokens: Int[np.ndarray, " P"], tokenizer: Tokenizer | None) -> list[str]:
    """What each token adds to the text of those before it; the opening token adds nothing.

    Tokens that are parts of one character show it at the last of them.
    """
    if tokenizer is None:
        return ["", *(f"{token} " for token in tokens[1:])]
    parts, done = [""], 1
    for index in range(1, len(tokens)):
        # A few tokens before tell how this one joins on; all of them would take quadratic time.
        begin = max(done - 4, 1)
        before = tokenizer.decode(tokens[begin:done].tolist())
        both = tokenizer.decode(tokens[begin : index + 1].tolist())
        is_whole = not both.endswith("\N{REPLACEMENT CHARACTER}")
        parts.append(both[len(before) :] if is_whole else "")
        done = index + 1 if is_whole else done
    return parts


def write_records(path: Path, records: Sequence[TextRecord]) -> None:
    """Writes one JSON object a line; the file appears whole or not at all.

    Raises:
        GenerationError: the file cannot be written.
    """
    text = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    atomic_write_text(path, text, error_class=GenerationError)


def _record(
    sample: Sample, generation: GenerationOutput, tokenizer: Tokenizer | None
) -> TextRecord:
    # Position 0 opens the document and is no part of its text.
    ids = sample.tokens[1:].tolist()
    tokens = sample.tokens[sample.generated]
    return TextRecord(
        text=" ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids),
        tokens=tokens.tolist(),
        block=sample.block[sample.generated].tolist(),
        logprob=sample.logprob[sample.generated].tolist(),
        round=sample.round[sample.generated].tolist(),
        entropy_bits=entropy_bits(tokens),
        rounds=generation.rounds,
        seconds=generation.seconds,
        tokens_per_second=generation.tokens_per_second,
        tokens_per_round=generation.tokens_per_round,
        acceptance_rate=generation.acceptance_rate,
    )
