"""Generative perplexity: what made texts cost a pretrained model, with how varied they are."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.eval.text_metrics import Diversity, diversity


@dataclass(frozen=True)
class GeneratedText:
    """A text and the tokens of it that were generated, in the vocabulary of their maker."""

    text: str
    tokens: list[int]


@dataclass(frozen=True, kw_only=True)
class GenerativeQuality:
    """How good made texts are: neither figure says it without the other."""

    perplexity: float
    """exp of the judge's mean nats over the tokens of all texts together."""
    num_texts: int
    num_tokens: int
    """Tokens that the judge scored, by its own tokenizer."""
    diversity: Diversity
    """Of the generated tokens."""


def read_texts(path: Path) -> list[GeneratedText]:
    """The texts of a file that `tools/generate.py --json` wrote.

    Raises:
        ArmdError: no such file, or a line that is no such record.
    """
    made = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArmdError(
            f"{path} must be a file of tools/generate.py --json, and cannot be read ({error}): "
            "name another file"
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            made.append(GeneratedText(record["text"], record["tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ArmdError(
                f"{path}, line {number} must be a record of tools/generate.py --json, got "
                f"{line[:60]!r}: generate the file again"
            ) from error
    return made


def generative_perplexity(made: Sequence[GeneratedText], judge: ReferenceLM) -> GenerativeQuality:
    """Generative perplexity and variety of some texts.

    Raises:
        ArmdError: no text, or an empty one.
    """
    if not made or not all(one.text and one.tokens for one in made):
        raise ArmdError(
            f"texts to judge must be one or more, none of them empty, got {len(made)} of which "
            f"{sum(not (one.text and one.tokens) for one in made)} are empty: generate longer ones"
        )
    judged = judge.score([one.text for one in made])
    tokens = sum(one.num_tokens for one in judged)
    return GenerativeQuality(
        perplexity=math.exp(sum(one.nats for one in judged) / tokens),
        num_texts=len(made),
        num_tokens=tokens,
        diversity=diversity([one.tokens for one in made]),
    )
