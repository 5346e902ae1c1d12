"""Overlapping windows over one text, so that every token is scored exactly once."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64


class SlidingWindows:
    """Windows of N + 1 tokens that start `stride` tokens apart; each scores its new tokens only.

    With stride N, neighboring windows share one token, which is given in the later one. With a
    smaller stride every token outside the first window is predicted from at least N - stride
    earlier tokens. Document boundaries are ignored.

    The last window is always full: it starts early enough to end with the text. With stride N the
    unscored rest of the text becomes a document of its own in that window, so that it can be scored
    under any order. With a smaller stride the overlap serves as context, which is only meaningful
    in left-to-right order.

    Args:
        read: `read(start, count)` returns tokens `start` to `start + count`.
        num_tokens: length of the whole text, at least 2; its first token is given.
        seq_length: N; reduced to the length of the text if that is shorter.
        stride: at most N.
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
        # One window plus ceil((num_tokens - (N + 1)) / stride) more; -(a // b) with a negative `a`
        # is the ceiling.
        self.num_windows = 1 - (self.seq_length + 1 - num_tokens) // self._stride

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """The N + 1 tokens of a window."""
        return self._read(self._start(index), self.seq_length + 1).astype(np.int64)

    def lengths(self, index: int) -> tuple[int, ...]:
        """Lengths of the documents in a window, in tokens; they sum to N + 1.

        One document, except in a last window at stride N that repeats scored tokens.
        """
        first = self.first_target(index)
        if self._stride < self.seq_length or first == 1:
            return (self.seq_length + 1,)
        # The second document starts one token before the first new target: that token is given.
        return (first - 1, self.seq_length + 2 - first)

    def first_target(self, index: int) -> int:
        """Position in the window of the first target that no earlier window has scored."""
        if index == 0:
            return 1
        # Windows before this one end at stride * (index - 1) + N: only the last one is shifted.
        num_scored = self.seq_length + 1 + (index - 1) * self._stride
        return num_scored - self._start(index)

    def _start(self, index: int) -> int:
        return min(index * self._stride, self._num_tokens - self.seq_length - 1)
