"""Text to tokens and back: prompts and infill templates in, records of samples out."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.files import atomic_write_text
from armd_scale.generation.memory import require_memory_for_texts
from armd_scale.generation.output_rules import NO_RULES, OutputRules
from armd_scale.generation.result import GenerationOutput, Sample, entropy_bits
from armd_scale.generation.strategy import TO_GENERATE
from armd_scale.generation.text_decoder import decode_rest

JSON_HELP = (
    "write one JSON object per line and sample: text (prompt included), tokens (generated), block, "
    "logprob (nats), round (that committed each token), entropy_bits (unigram entropy of the "
    "sample in bits per token, as papers on diffusion language models report it); and for all "
    "samples together rounds, seconds, tokens_per_second, tokens_per_round, acceptance_rate "
    "(speculative decoding: accepted drafts / drafts)"
)
HOLE_PATTERN = re.compile(r"(?<!\\)\{\{(.*?)\}\}", re.DOTALL)
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


@dataclass(frozen=True, eq=False)
class TextTemplate:
    """A text of which some tokens are to be generated: those of its holes, or those at its end."""

    tokens: Int[np.ndarray, " P"]
    """From the token that starts the text on; `TO_GENERATE` for each token of a hole."""
    parts: tuple[str, ...]
    """The text before, between and after the holes, as the user wrote it; none without a tokenizer.
    A prompt has one part, and what continues it follows."""
    tokenizer: Tokenizer | None

    def complete(self, sample: Sample) -> str:
        """Return the text with its holes filled: the parts as they are, and the generated tokens.

        Args:
            sample: what was generated; it may end before the template does.
        """
        if self.tokenizer is None:
            # Position 0 only starts the text.
            return " ".join(map(str, sample.tokens[1:].tolist()))
        edges = np.flatnonzero(np.diff(sample.generated, prepend=False, append=False))
        holes = [
            decode_rest(self.tokenizer, sample.tokens[:start], sample.tokens[start:stop])
            for start, stop in edges.reshape(-1, 2)
        ]
        return "".join(
            piece
            for pair in itertools.zip_longest(self.parts, holes, fillvalue="")
            for piece in pair
        )


def encode_prompt(prompt: str | None, tokenizer: Tokenizer | None) -> TextTemplate:
    """Tokenize a text to continue, with the special tokens that its tokenizer puts in front.

    Without a tokenizer the token that starts texts is unknown, and token 0 takes its place.

    Raises:
        GenerationError: there is a prompt but no tokenizer to encode it.
    """
    if tokenizer is not None:
        tokens = TextEncoder(tokenizer).encode_prompt(prompt or "")
        return TextTemplate(tokens, (prompt or "",), tokenizer)
    if prompt is not None:
        raise GenerationError(
            "a prompt must be encoded by the tokenizer that the model was trained with, but "
            "the model's folder contains none: leave out --prompt, or copy the tokenizer's "
            "files into the checkpoint's folder tokenizer/"
        )
    return TextTemplate(np.zeros(1, dtype=np.int64), (), None)


def encode_infill_template(text: str, tokenizer: Tokenizer | None) -> TextTemplate:
    r"""Tokenize a text in which {{n}} stands for n tokens to generate, and \{{ for {{ itself.

    Raises:
        GenerationError: the text has no hole, a hole is not a number, or there is no tokenizer.
    """
    parts = HOLE_PATTERN.split(text)
    if len(parts) == 1:
        raise GenerationError(
            "a text to infill must contain a hole (got none): write {{12}} where 12 tokens are to "
            "be generated"
        )
    # The pattern has one group, so parts alternate: text, hole, text, ..., hole, text.
    texts = tuple(part.replace(r"\{{", "{{") for part in parts[::2])
    sizes = [_hole_size(hole) for hole in parts[1::2]]
    require_memory_for_texts(1, sum(sizes))
    tokens = [encode_prompt(texts[0], tokenizer).tokens]
    assert tokenizer is not None  # encode_prompt would have refused the text
    encoder = TextEncoder(tokenizer)
    for size, text_after in zip(sizes, texts[1:], strict=True):
        tokens += [np.full(size, TO_GENERATE), encoder.encode_rest(text_after)]
    return TextTemplate(np.concatenate(tokens), texts, tokenizer)


def _hole_size(text: str) -> int:
    digits = text.strip()
    is_size = digits.isdecimal() and digits.isascii() and len(digits) <= MAX_HOLE_DIGITS
    if not is_size or int(digits) < 1:
        raise GenerationError(
            "a hole must be its number of tokens between double braces (got "
            f"{{{{{text[:40]}}}}}): write {{{{12}}}} where 12 tokens are to be generated"
        )
    return int(digits)


def text_records(
    output: GenerationOutput, template: TextTemplate, *, rules: OutputRules = NO_RULES
) -> list[TextRecord]:
    """Return a record for each sample; without a tokenizer, texts are token ids.

    Args:
        output: the samples.
        template: the text that they complete.
        rules: what ended them.
    """
    return [_text_record(sample, output, template, rules) for sample in output.samples]


def write_records(path: Path, records: Sequence[TextRecord]) -> None:
    """Write one JSON object per line; the file appears complete or not at all.

    Raises:
        GenerationError: the file cannot be written.
    """
    lines = "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records)
    atomic_write_text(path, lines, error_class=GenerationError)


def _text_record(
    sample: Sample, output: GenerationOutput, template: TextTemplate, rules: OutputRules
) -> TextRecord:
    tokens = sample.tokens[sample.generated]
    text = template.complete(sample)
    if rules.stops:
        prompt = template.parts[0]
        text = prompt + rules.cut_text(text[len(prompt) :])
    return TextRecord(
        text=text,
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
