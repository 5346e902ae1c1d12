"""Which tokens a text may get, and what ends it early: EOS, or strings of the user's choice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import GenerationError
from armd_scale.generation.text_decoder import CONTEXT_TOKENS, decode_rest

# A character has at most four bytes, and a token is at least one of them.
_TOKENS_PER_CHARACTER = 4


@dataclass(frozen=True)
class OutputRules:
    """What the tokenizer and the user say about generated texts; the earliest end counts.

    Raises:
        GenerationError: a stop string is empty, or there is no tokenizer to find it with.
    """

    tokenizer: Tokenizer | None = None
    """The model's. Ids that it has no token for are not generated; None: all ids are."""
    eos_ids: tuple[int, ...] = ()
    """Ids that end a text, and are not part of it."""
    stops: tuple[str, ...] = ()
    """Strings that end a text, and are not part of it."""

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise GenerationError("a stop string must have at least one character (got none)")
        if self.stops and self.tokenizer is None:
            raise GenerationError(
                "a stop string must be found by the tokenizer that the model was trained with, but "
                "the model's folder contains none: leave out --stop"
            )

    @property
    def has_end(self) -> bool:
        """Whether anything ends a text early."""
        return bool(self.eos_ids or self.stops)

    def allowed_ids(self, vocab_size: int) -> Bool[np.ndarray, " vocabulary"] | None:
        """Return which ids of a model may be generated; None: all.

        A model may have rows for ids that its tokenizer lacks. They have no text.
        """
        if self.tokenizer is None:
            return None
        allowed = np.zeros(vocab_size, dtype=np.bool_)
        is_used = self.tokenizer.is_used[:vocab_size]
        allowed[: len(is_used)] = is_used
        # The configuration of a model may name ids that its tokenizer file lacks.
        allowed[[i for i in self.eos_ids if i < vocab_size]] = True
        return None if allowed.all() else allowed

    def find_end(self, tokens: Int[np.ndarray, " P"], first: int, *, start: int = 0) -> int | None:
        """Return how many tokens a text has until its end; None if it goes on.

        The token that completes a stop string is counted, although a part of it may come after the
        end; `cut_text` removes the string.

        Args:
            tokens: the text.
            first: position of the first generated token; nothing before it ends the text.
            start: position up to which the text was searched before.
        """
        start = max(start, first)
        ends = np.flatnonzero(np.isin(tokens[start:], self.eos_ids)) + start
        end = int(ends[0]) if len(ends) else None
        stop = self._stop_of_string(tokens[:end], first, start)
        return end if stop is None else stop

    def cut_text(self, text: str) -> str:
        """Cut a generated text before the earliest stop string in it."""
        return truncate_at_stop(text, self.stops)

    def _stop_of_string(self, tokens: Int[np.ndarray, " P"], first: int, start: int) -> int | None:
        """Return the position after the token that completes a stop string."""
        if not self.stops or self.tokenizer is None:
            return None
        longest = max(map(len, self.stops))
        # A string may begin in what was searched before.
        begin = max(first, start - _TOKENS_PER_CHARACTER * longest)
        if not self._has_stop(tokens, begin, len(tokens)):
            return None
        # By bisection: with every further token the text only grows at its end.
        low, high = begin, len(tokens)
        while high - low > 1:
            middle = (low + high) // 2
            if self._has_stop(tokens, begin, middle):
                high = middle
            else:
                low = middle
        return high

    def _has_stop(self, tokens: Int[np.ndarray, " P"], begin: int, stop: int) -> bool:
        assert self.tokenizer is not None
        context = tokens[max(0, begin - CONTEXT_TOKENS) : begin]
        text = decode_rest(self.tokenizer, context, tokens[begin:stop])
        return any(string in text for string in self.stops)


def rules_of(
    tokenizer: Tokenizer | None, *, stop_at_eos: bool = False, stops: Sequence[str] = ()
) -> OutputRules:
    """Return the rules of a tokenizer, which end texts at its EOS if requested.

    Raises:
        GenerationError: as of `OutputRules`.
    """
    eos_ids = tokenizer.eos_ids if tokenizer is not None and stop_at_eos else ()
    if tokenizer is not None:
        # Special tokens have no text that could be searched.
        eos_ids += tuple(i for stop in stops if (i := _special_id(tokenizer, stop)) is not None)
    return OutputRules(tokenizer, eos_ids, tuple(stops))


def _special_id(tokenizer: Tokenizer, text: str) -> int | None:
    """Return the id of a special token that is written out; None for any other text."""
    common = [i for i in (tokenizer.eod, tokenizer.bos) if i is not None]
    if text in (spellings := {tokenizer.spell(i): i for i in common}):
        return spellings[text]
    if not text or text not in tokenizer.special_spellings:
        return None
    (ids,) = tokenizer.encode_batch([text])
    return int(ids[0]) if len(ids) == 1 else None


NO_RULES = OutputRules()
"""Any id may be generated, and a text has as many tokens as were requested."""


class EndFinder:
    """Tells which texts of a batch are known up to their end.

    In an order other than left to right an end can be generated before tokens to its left, so such
    a text is finished only when those are known too.

    Args:
        rules: what ends the texts.
        first: position of the first token of each text that is generated.
    """

    def __init__(self, rules: OutputRules, first: Sequence[int]) -> None:
        self._rules, self._first = rules, list(first)
        # Up to where each text was searched; what was known there did not end it.
        self._num_searched = list(first)
        self.ends: list[int | None] = [None] * len(self._first)
        """Number of tokens of each finished text; None for the others."""
        self.is_needed = rules.has_end
        """Whether anything ends a text."""

    def find(
        self, tokens: Int[np.ndarray, "b P"], known: Bool[np.ndarray, "b P"]
    ) -> Bool[np.ndarray, " b"]:
        """Search what has become known; return which texts are finished.

        Args:
            tokens: the texts so far.
            known: which of their tokens are known.
        """
        for index, first in enumerate(self._first):
            if self.ends[index] is None:
                num_known = int(np.append(known[index], False).argmin())
                text, start = tokens[index, :num_known], self._num_searched[index]
                self.ends[index] = self._rules.find_end(text, first, start=start)
                self._num_searched[index] = max(num_known, first)
        return np.array([end is not None for end in self.ends])

    def end_at_unknown(
        self, known: Bool[np.ndarray, "b P"], lengths: Int[np.ndarray, " b"]
    ) -> None:
        """End each text that has not ended before its first unknown token.

        Args:
            known: which tokens are known.
            lengths: number of tokens of each text.
        """
        for index, length in enumerate(lengths):
            if self.ends[index] is None:
                self.ends[index] = min(int(np.append(known[index], False).argmin()), int(length))


def truncate_at_stop(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the earliest of the stop strings."""
    positions = [text.find(stop) for stop in stops if stop in text]
    return text[: min(positions, default=None)]
