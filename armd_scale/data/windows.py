"""Windows of tokens: how the stream of a .bin/.idx pair is cut into samples.

A source is one stream: all documents of a .bin/.idx pair, one after another. Window w holds tokens
w * N .. w * N + N of it. Neighbours share a token, which is the last target of one and the given
first token of the other, so no target is lost between windows. (The stream's remainder, fewer than
N tokens, is left out; where documents are told apart, a document's first token is nobody's target.)
"""

from functools import partial
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int64

from armd_scale.data.indexed_reader import open_shards
from armd_scale.errors import ShardError

Packing: TypeAlias = Literal["concat", "documents"]


@runtime_checkable
class Windows(Protocol):
    """Windows of equally many tokens, by number."""

    num_windows: int

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """The tokens of a window."""
        ...

    def lengths(self, index: int) -> tuple[int, ...]:
        """Lengths of its documents, in tokens; they sum to P."""
        ...


class TokenWindows:
    """The windows of one source.

    Pickles as its arguments, so that a copy in another process opens the files for itself.

    Args:
        prefix: path of the .bin/.idx pair without its ending.
        seq_length: N, targets of a window.
        packing: `concat` takes a window for one text; `documents` tells its documents apart.
        vocab_size: number of tokens the model knows, checked in every window; None: unchecked.

    Raises:
        ShardError: files missing or damaged, or fewer than N + 1 tokens.
    """

    def __init__(
        self,
        prefix: str,
        seq_length: int,
        *,
        packing: Packing = "concat",
        vocab_size: int | None = None,
    ) -> None:
        self.prefix, self.seq_length = prefix, seq_length
        self._packing: Packing = packing
        self._vocab_size = vocab_size
        self.reopen()
        num_tokens = self._shards.num_tokens
        self.num_windows = (num_tokens - 1) // seq_length
        if self.num_windows < 1:
            raise ShardError(
                f"{prefix} must hold at least data.seq_length + 1 = {seq_length + 1} tokens, "
                f"got {num_tokens}: shorten data.seq_length or preprocess more text"
            )

    def __reduce__(self) -> tuple[object, ...]:
        build = partial(TokenWindows, packing=self._packing, vocab_size=self._vocab_size)
        return build, (self.prefix, self.seq_length)

    def reopen(self) -> None:
        """Opens the files anew, as a forked process should."""
        self._shards = open_shards(self.prefix)

    def window(self, index: int) -> Int64[np.ndarray, " P"]:
        """The N + 1 tokens of a window.

        Raises:
            ShardError: a token that the model does not know.
        """
        assert 0 <= index < self.num_windows, (index, self.num_windows)
        tokens = self._shards.read(index * self.seq_length, self.seq_length + 1)
        if (
            self._vocab_size is not None
            and not 0 <= tokens.min() <= tokens.max() < self._vocab_size
        ):
            at = int(np.argmax((tokens < 0) | (tokens >= self._vocab_size)))
            raise ShardError(
                f"tokens of {self.prefix} must be below the model's vocabulary of "
                f"{self._vocab_size}, got {tokens[at]} as token {index * self.seq_length + at}: "
                "preprocess with the model's tokenizer or raise model.vocab_size"
            )
        return tokens

    def lengths(self, index: int) -> tuple[int, ...]:
        """Lengths of the documents (or their pieces) in a window, in tokens; they sum to N + 1."""
        if self._packing == "concat":
            return (self.seq_length + 1,)
        begin = index * self.seq_length
        end = begin + self.seq_length + 1
        starts = self._shards.document_starts
        inner = starts[np.searchsorted(starts, begin, "right") : np.searchsorted(starts, end)]
        lengths = np.diff(inner, prepend=begin, append=end)
        return tuple(lengths[lengths > 0].tolist())  # an empty document has no piece
