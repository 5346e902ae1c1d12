"""Decoding strategies: in which order tokens are generated, and how many of them per round.

A strategy and a text make a `GenerationSpec`: which tokens are known, and in which generation block
each of the others is predicted. Given text is block 0; a prompt is a row of known targets in the
earliest blocks. Sequential, strided, group-wise and random-order decoding and infilling differ in
their specs only. Two strategies use the spec in another way: speculative decoding commits several
one-token blocks in one round, and confidence-based decoding chooses its blocks while it runs.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Int, UInt64

from armd_scale.errors import GenerationError
from armd_scale.order.policies.groups import group_blocks, permuted_group_blocks
from armd_scale.order.policies.left_to_right import left_to_right_blocks
from armd_scale.order.policies.strided import strided_blocks

TO_GENERATE = -1
"""Takes the place of a token that is to be generated. It is never fed to the network."""

_SIZE = re.compile(r"-?[0-9]{1,15}")

ConfidenceRule = Literal["confidence", "entropy", "margin", "random"]


@dataclass(frozen=True)
class ConfidenceSchedule:
    """Dynamic decoding: score all remaining positions each round and commit the best of them.

    Source: the dynamic resampling of A3 (arXiv 2601.13228).

    Raises:
        GenerationError: `tokens_per_round` is below 1.
    """

    rule: ConfidenceRule
    """How positions are ranked: by the log-probability of the drawn token (`confidence`), by low
    entropy, by the margin between the two most likely tokens, or at random."""
    tokens_per_round: int
    """Tokens of each text that a round commits."""

    def __post_init__(self) -> None:
        _require_positive("tokens that dynamic decoding commits per round", self.tokens_per_round)

    @classmethod
    def parse(cls, text: str) -> "ConfidenceSchedule":
        """Parse `RULE:k`, for example `confidence:4`.

        Raises:
            GenerationError: the rule is unknown, or k is not a whole number of at least 1.
        """
        rule, _, size = text.partition(":")
        # A minus sign is let through, so that the message for k < 1 is the one of __post_init__.
        if rule not in get_args(ConfidenceRule) or not _SIZE.fullmatch(size):
            choices = ", ".join(f"{name}:k" for name in get_args(ConfidenceRule))
            raise GenerationError(
                f"dynamic decoding must be one of {choices} (got '{text[:80]}'): write, for "
                "example, confidence:4"
            )
        return cls(cast(ConfidenceRule, rule), int(size))


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Order of generation, and tokens per round. The default generates one token at a time.

    Raises:
        GenerationError: a number is too small, or two strategies exclude each other.
    """

    streams: int = 1
    """Number of contiguous segments that are generated in parallel (ARMD, arXiv 2601.16971)."""
    group: int | None = None
    """Number of neighboring tokens that are generated together (A3, arXiv 2601.13228)."""
    random_order: bool = False
    """Generate tokens in a random order, drawn for each sample; with `group`, random groups."""
    dynamic: ConfidenceSchedule | None = None
    """Choose the tokens of each round by their confidence."""
    speculative: int | None = None
    """Maximum number of tokens that a round commits in speculative decoding. Drafts are accepted or
    replaced such that the text is distributed exactly as in one-at-a-time decoding."""

    def __post_init__(self) -> None:
        _require_positive("streams", self.streams)
        if self.group is not None:
            _require_positive("tokens per group", self.group)
        if self.speculative is not None and self.speculative < 2:
            raise GenerationError(
                f"speculative decoding must commit at least 2 tokens per round (got "
                f"{self.speculative}): use 2 or more, or leave the option out to decode one by one"
            )
        self._check_combination()

    def _check_combination(self) -> None:
        is_used = {
            "streams": self.streams > 1,
            "group": self.group is not None,
            "random order": self.random_order,
            "dynamic": self.dynamic is not None,
            "speculative": self.speculative is not None,
        }
        used = [name for name, is_set in is_used.items() if is_set]
        # Random order is a property of groups, or of the one-token blocks that drafts need;
        # streams:S with speculative decoding is the chain rule over the same slots.
        allowed_pairs = [
            {"group", "random order"},
            {"streams", "speculative"},
            {"random order", "speculative"},
        ]
        if len(used) > 1 and set(used) not in allowed_pairs:
            raise GenerationError(
                f"only one decoding strategy can be used (got {' and '.join(used)}): choose one of "
                "them (random order can be combined with group or with speculative, streams with "
                "speculative)"
            )

    def make_blocks(self, random_words: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the generation blocks 1..T of n tokens, in text order.

        Args:
            random_words: uniform 64-bit integers, one per token; only random orders use them.

        Raises:
            GenerationError: there are more streams than tokens.
        """
        num_tokens = len(random_words)
        if self.streams > num_tokens:
            raise GenerationError(
                f"streams must be between 1 and the {num_tokens} tokens to generate (got "
                f"{self.streams}): use fewer streams or generate more tokens"
            )
        if self.dynamic is not None:
            # One block of everything: the decoder splits it while it runs.
            return np.ones(num_tokens, dtype=np.int64)
        if self.random_order:
            return permuted_group_blocks(random_words, self.group or 1)
        if self.group is not None:
            return group_blocks(num_tokens, self.group)
        # Speculative decoding verifies tokens one at a time, so its blocks are singletons.
        return strided_blocks(num_tokens, self.streams, joint=self.speculative is None)


@dataclass(frozen=True, eq=False)
class GenerationSpec:
    """A text to be completed: P positions, the first of which is given."""

    tokens: Int[np.ndarray, " P"]
    """Tokens by position; the values at unknown positions do not matter."""
    block: Int[np.ndarray, " P"]
    """Generation block by position: 0 is given, and known blocks come before all unknown ones."""
    known: Bool[np.ndarray, " P"]
    """Which tokens are known."""


def continuation_spec(
    prompt: Int[np.ndarray, " m"],
    strategy: Strategy,
    random_words: UInt64[np.ndarray, " n"],
) -> GenerationSpec:
    """Return the spec of a prompt that is continued by n tokens.

    The first token of the prompt is given (block 0); the others are known targets in one block
    each, left to right. If the whole prompt were one given block, its tokens would see each other
    in both directions and would have no query rows in the upper layers. Read left to right, a
    network that was converted from an AR model is exactly that model on its prompt.

    In S streams, the first tokens of the S segments are predicted one at a time, left to right;
    then every round predicts one token of each segment, independently of one another. That takes
    S + ceil(n / S) - 1 rounds (fewer if segments of ceil(n / S) tokens do not fill S streams).

    Args:
        prompt: tokens from position 0 on; at least the token that starts a document.
        strategy: order of the new tokens.
        random_words: a random 64-bit integer for each token to generate.

    Raises:
        GenerationError: the prompt is empty, n is 0, or there are more streams than tokens.
    """
    _require_start_token(prompt)
    _require_positive("tokens to generate", len(random_words))
    num_known = len(prompt) - 1
    # Blocks 1..num_known are the prompt, so that all unknown blocks come after all known ones.
    blocks = [
        np.zeros(1, dtype=np.int64),
        left_to_right_blocks(num_known),
        num_known + strategy.make_blocks(random_words),
    ]
    return GenerationSpec(
        tokens=np.concatenate((prompt, np.zeros(len(random_words), dtype=np.int64))),
        block=np.concatenate(blocks),
        known=np.arange(len(prompt) + len(random_words)) < len(prompt),
    )


def infill_spec(
    text: Int[np.ndarray, " P"],
    strategy: Strategy,
    random_words: UInt64[np.ndarray, " n"],
) -> GenerationSpec:
    """Return the spec of a text with holes; all tokens outside of the holes are given (block 0).

    The strategy orders the n tokens of all holes as if they were one contiguous text.

    Args:
        text: tokens from position 0 on, the first of which starts a document; `TO_GENERATE` stands
            for each of the n tokens to generate.
        strategy: order of the new tokens.
        random_words: a random 64-bit integer for each token to generate.

    Raises:
        GenerationError: the first token is missing, the text has no hole, or there are more
            streams than tokens.
    """
    is_hole = text == TO_GENERATE
    # Empty if the text is empty or position 0 is a hole: both lack the token that starts it.
    _require_start_token(text[:1][~is_hole[:1]])
    _require_positive("tokens to generate", len(random_words))
    block = np.zeros(len(text), dtype=np.int64)
    block[is_hole] = strategy.make_blocks(random_words)
    return GenerationSpec(tokens=np.where(is_hole, 0, text), block=block, known=~is_hole)


def _require_start_token(text: np.ndarray) -> None:
    if len(text) == 0:
        raise GenerationError(
            "a text must contain at least the token that starts a document (got none): put the "
            "tokenizer's end-of-document token at position 0"
        )


def _require_positive(what: str, number: int) -> None:
    if number < 1:
        raise GenerationError(
            f"the number of {what} must be at least 1 (got {number}): use 1 or more"
        )
