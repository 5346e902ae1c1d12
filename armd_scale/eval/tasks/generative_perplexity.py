"""Generative perplexity of sampled texts under a pretrained model, with diversity metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.base import read_examples
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.eval.text_metrics import Diversity, diversity


@dataclass(frozen=True)
class GeneratedText:
    """A sampled text."""

    text: str
    """The whole text, prompt included."""
    tokens: list[int]
    """Its generated tokens, in the vocabulary of the model that generated them."""


@dataclass(frozen=True, kw_only=True)
class GenerativeQuality:
    """Perplexity and diversity of sampled texts; only both together describe their quality."""

    perplexity: float
    """exp of the reference model's mean nats per token, over the tokens of all texts together."""
    num_texts: int
    num_tokens: int
    """Tokens scored, in the vocabulary of the reference model."""
    diversity: Diversity
    """Of the generated tokens."""


def read_texts(path: Path) -> list[GeneratedText]:
    """Read the texts of a file written by `tools/generate.py --json`.

    Raises:
        ArmdError: the file cannot be read or is empty, or a line is not such a record.
    """
    records = read_examples(path, _parse_record, expected="a record of tools/generate.py --json")
    return [text for _, text in records]


def generative_perplexity(
    texts: Sequence[GeneratedText], reference_lm: ReferenceLM
) -> GenerativeQuality:
    """Compute generative perplexity and diversity of some texts.

    Raises:
        ArmdError: there are no texts, or one of them is empty.
    """
    num_empty = sum(not (text.text and text.tokens) for text in texts)
    if not texts or num_empty:
        raise ArmdError(
            f"generative perplexity needs at least one text and no empty ones (got {len(texts)} "
            f"texts, {num_empty} of them empty): generate longer texts"
        )
    scores = reference_lm.score([text.text for text in texts])
    num_tokens = sum(score.num_tokens for score in scores)
    return GenerativeQuality(
        # Every token weighs the same. A mean over texts would let short texts dominate.
        perplexity=math.exp(sum(score.nats for score in scores) / num_tokens),
        num_texts=len(texts),
        num_tokens=num_tokens,
        diversity=diversity([text.tokens for text in texts]),
    )


def _parse_record(record: Any) -> GeneratedText:
    text, tokens = record["text"], record["tokens"]
    is_list = isinstance(tokens, list)
    if not isinstance(text, str) or not is_list or not all(type(token) is int for token in tokens):
        raise ValueError("not a text and its token ids")
    return GeneratedText(text, tokens)
