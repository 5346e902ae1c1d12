"""Between text and the sampler: prompts into tokens, samples into text and records."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenize import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.sample.decode import Generation, Sample, entropy_bits

JSON_HELP = (
    "one JSON object a line and sample: text (prompt included), tokens (generated), block, logprob "
    "(nats), entropy_bits (of the sample's own unigram frequencies, in bits per token, as the "
    "literature on diffusion language models reports it); and, of all samples together, rounds, "
    "seconds, tokens_per_second"
)


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
    entropy_bits: float
    """Unigram entropy of the generated tokens, in bits."""
    rounds: int
    """Forward passes of the whole batch."""
    seconds: float
    """Wall time of the whole batch."""
    tokens_per_second: float
    """Generated tokens of all samples of the batch over that time."""


def opening_tokens(prompt: str | None, tokenizer: Tokenizer | None) -> Int[np.ndarray, " m"]:
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


def text_records(
    generation: Generation, tokenizer: Tokenizer | None, *, cut_at_end: bool = False
) -> list[TextRecord]:
    """A record of each sample; without a tokenizer the text is its token ids.

    Args:
        generation: from `generate` or `complete`.
        tokenizer: the model's.
        cut_at_end: end each text before the first end of a document that was generated.
    """
    end = tokenizer.eod if tokenizer is not None and cut_at_end else None
    samples = generation.samples if end is None else [s.until(end) for s in generation.samples]
    return [_record(sample, generation, tokenizer) for sample in samples]


def write_records(path: Path, records: Sequence[TextRecord]) -> None:
    """Writes one JSON object a line; the file appears whole or not at all.

    Raises:
        GenerationError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        unfinished.write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
        unfinished.rename(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise GenerationError(
            f"samples must be written to {path}, and that failed ({error.strerror}): give --json a "
            "file in a folder that exists and has space"
        ) from error


def _record(sample: Sample, generation: Generation, tokenizer: Tokenizer | None) -> TextRecord:
    # Position 0 opens the document and is no part of its text.
    ids = sample.tokens[1:].tolist()
    tokens = sample.tokens[sample.generated]
    return TextRecord(
        text=" ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids),
        tokens=tokens.tolist(),
        block=sample.block[sample.generated].tolist(),
        logprob=sample.logprob[sample.generated].tolist(),
        entropy_bits=entropy_bits(tokens),
        rounds=generation.rounds,
        seconds=generation.seconds,
        tokens_per_second=generation.tokens_per_second,
    )
