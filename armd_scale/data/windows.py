"""Windows of tokens: how the token stream of a dataset is cut into samples.

A source is one stream: all documents of a .bin/.idx dataset, one after another. Window w holds the
tokens w * N to w * N + N of it. Neighboring windows share one token, which is the last target of
the first and the given first token of the second, so no target is lost between windows. The rest of
the stream, fewer than N tokens, is not used. (With packing `documents` the first token of a
document is given too and is never a target.) Several datasets can be one source (`JoinedWindows`);
each of them is then cut alone.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int64

from armd_scale.data.indexed_reader import has_no_tokens, open_shards
from armd_scale.errors import ShardError

Packing: TypeAlias = Literal["concat", "documents"]


@runtime_checkable
class Windows(Protocol):
    """Windows of P tokens each, by index."""

    num_windows: int

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """Return the tokens of a window."""
        ...

    def lengths(self, index: int) -> tuple[int, ...]:
        """Return the lengths of the documents in a window, in tokens; they sum to P."""
        ...

    def first_target(self, index: int) -> int:
        """Return the position of the first token of a window that is scored."""
        ...


class TokenWindows:
    """The windows of one dataset.

    Pickles as its arguments, so that a copy in another process opens the files itself.

    Args:
        prefix: path of the .bin/.idx dataset without its suffix.
        seq_length: N, the number of targets in a window.
        packing: `concat` treats a window as one text; `documents` separates its documents.
        vocab_size: vocabulary size of the model, checked in every window; None: not checked.
        may_be_empty: allow fewer than N + 1 tokens, which are no window.

    Raises:
        ShardError: files are missing or damaged, or there are fewer than N + 1 tokens.
    """

    def __init__(
        self,
        prefix: str,
        seq_length: int,
        *,
        packing: Packing = "concat",
        vocab_size: int | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self.prefix, self.seq_length = prefix, seq_length
        self._packing: Packing = packing
        self._vocab_size, self._may_be_empty = vocab_size, may_be_empty
        self._tokens = open_shards(prefix)
        num_tokens = self._tokens.num_tokens
        # The last token of a window is the first of the next: W windows need W * N + 1 tokens.
        self.num_windows = (num_tokens - 1) // seq_length
        if self.num_windows < 1 and not may_be_empty:
            raise ShardError(
                f"{prefix} must hold at least data.seq_length + 1 = {seq_length + 1} tokens, "
                f"got {num_tokens}: shorten data.seq_length or preprocess more text"
            )

    def __reduce__(self) -> tuple[object, ...]:
        # A partial, because the arguments of __reduce__ are positional and these are keyword-only.
        build = partial(
            TokenWindows,
            packing=self._packing,
            vocab_size=self._vocab_size,
            may_be_empty=self._may_be_empty,
        )
        return build, (self.prefix, self.seq_length)

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """Return the N + 1 tokens of a window.

        Raises:
            ShardError: a token is outside the model's vocabulary.
        """
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        start = index * self.seq_length
        tokens = self._tokens.read(start, self.seq_length + 1)
        # Checked at every read, although a manifest states the vocabulary: datasets of other
        # programs have none, and an invalid id would end in a CUDA assertion without a name.
        vocab_size = self._vocab_size
        if vocab_size is not None and not 0 <= tokens.min() <= tokens.max() < vocab_size:
            first = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
            raise ShardError(
                f"tokens of {self.prefix} must be below the model's vocabulary of {vocab_size}, "
                f"got {tokens[first]} as token {start + first}: preprocess with the model's "
                "tokenizer or raise model.vocab_size"
            )
        return tokens

    def first_target(self, index: int) -> int:
        """Return 1: every token but the given first one is scored."""
        return 1

    def lengths(self, index: int) -> tuple[int, ...]:
        """Return the lengths of the documents in a window, in tokens; they sum to N + 1.

        A document that starts before the window or ends after it counts with its part inside.
        """
        if self._packing == "concat":
            return (self.seq_length + 1,)
        start = index * self.seq_length
        stop = start + self.seq_length + 1
        starts = self._tokens.document_starts
        # Document starts strictly inside the window; the window's own borders are added around
        # them.
        inner = starts[np.searchsorted(starts, start, "right") : np.searchsorted(starts, stop)]
        lengths = np.diff(inner, prepend=start, append=stop)
        # Empty documents start where the next one does and would have length 0.
        return tuple(lengths[lengths > 0].tolist())


class JoinedWindows:
    """The windows of several datasets, one dataset after another, as one source.

    Args:
        parts: the windows of each; some may be empty.

    Raises:
        ShardError: all are empty.
    """

    def __init__(self, parts: Sequence[TokenWindows]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(part.num_windows for part in self._parts))
        self.num_windows = self._ends[-1]
        if self.num_windows < 1:
            first = self._parts[0]
            raise ShardError(
                f"one of {first.prefix}, ... must hold at least data.seq_length + 1 = "
                f"{first.seq_length + 1} tokens, and all {len(self._parts)} have fewer: shorten "
                "data.seq_length or preprocess more text"
            )

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """Return the tokens of a window; errors as of `TokenWindows.window`."""
        part, index_in_part = self._locate(index)
        return part.window(index_in_part)

    def lengths(self, index: int) -> tuple[int, ...]:
        """Return the lengths of the documents in a window, in tokens."""
        part, index_in_part = self._locate(index)
        return part.lengths(index_in_part)

    def first_target(self, index: int) -> int:
        """Return the position of the first token of a window that is scored."""
        part, index_in_part = self._locate(index)
        return part.first_target(index_in_part)

    def _locate(self, index: int) -> tuple[TokenWindows, int]:
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        # An empty part ends where the one before it does, so bisect_right passes over it.
        position = bisect_right(self._ends, index)
        start = self._ends[position - 1] if position else 0
        return self._parts[position], index - start


def open_windows(
    prefixes: Sequence[str],
    seq_length: int,
    *,
    packing: Packing = "concat",
    vocab_size: int | None = None,
) -> Windows:
    """Open one dataset, or several as one source; arguments and errors as of `TokenWindows`."""
    if len(prefixes) == 1:
        return TokenWindows(prefixes[0], seq_length, packing=packing, vocab_size=vocab_size)
    return JoinedWindows(
        [
            TokenWindows(
                prefix, seq_length, packing=packing, vocab_size=vocab_size, may_be_empty=True
            )
            for prefix in [p for p in prefixes if not has_no_tokens(p)] or prefixes
        ]
    )
