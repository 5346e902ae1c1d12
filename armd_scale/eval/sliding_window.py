"""One text as overlapping windows, so that every token of it is scored, and once."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64


class SlidingWindows:
    """Windows of N + 1 tokens that begin `stride` tokens apart; each scores what is new in it.

    With stride N, neighbours share one token, given in the later one. With a smaller stride every
    token but those of the first window is predicted from at least N - stride earlier ones, and the
    last window begins as far back as it must to be full. Documents are not told apart.

    With stride N, the rest that fills no window is a document of its own in the last one, so that
    it is scored whole under any order; a smaller stride has a meaning for left-to-right order only.

    Args:
        read: gives tokens `start` to `start + count`.
        num_tokens: of the whole text, at least two; the first is given.
        seq_length: N; the text's own length where that is shorter.
        stride: N or less.
    """

    def __init__(
        self,
        read: Callable[[int, int], np.ndarray],
        num_tokens: int,
        *,
        seq_length: int,
        stride: int,
    ) -> None:
        assert num_tokens > 1, num_tokens
        self._read, self._num_tokens = read, num_tokens
        self.seq_length = min(seq_length, num_tokens - 1)
        self._stride = min(stride, self.seq_length)
        self.num_windows = 1 - (self.seq_length + 1 - num_tokens) // self._stride

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """The N + 1 tokens of a window."""
        return self._read(self._begin(index), self.seq_length + 1).astype(np.int64)

    def lengths(self, index: int) -> tuple[int, ...]:
        """One document, or the text before and the rest that fills no window."""
        first = self.first_target(index)
        if self._stride < self.seq_length or first == 1:
            return (self.seq_length + 1,)
        return (first - 1, self.seq_length + 2 - first)

    def first_target(self, index: int) -> int:
        """Position in a window of the first target that no earlier window has scored."""
        if index == 0:
            return 1
        scored = self.seq_length + 1 + (index - 1) * self._stride
        return scored - self._begin(index)

    def _begin(self, index: int) -> int:
        return min(index * self._stride, self._num_tokens - self.seq_length - 1)
