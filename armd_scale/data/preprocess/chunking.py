"""Split long documents into chunks, at positions that only nearby bytes decide."""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

# How far behind a multiple of the limit a line end is searched for. If there is none, the chunk
# ends at the next character instead.
_SLACK_BYTES = 4096


class Chunk(NamedTuple):
    """A part of a stream.

    Attributes:
        offset: position of its first byte in the stream.
        content: the bytes; the border to the next chunk never divides a UTF-8 character.
        is_last: whether the stream ends with it.
    """

    offset: int
    content: bytes
    is_last: bool


def split_stream(
    stream: BufferedIOBase, limit: int, *, start: int = 0, stop: int | None = None
) -> Iterator[Chunk]:
    """Split a stream near the multiples of `limit` in [start, stop).

    A border depends only on the bytes around it, so the chunks of any range can be computed without
    the ones before it. Work units rely on that: two units of one file agree on their common border.

    Args:
        stream: the bytes; must be seekable if `start` is not 0.
        limit: size of a chunk in bytes, at least 8; a chunk may differ by the slack.
        start: first byte of the range; a multiple of `limit`.
        stop: end of the range, also a multiple of `limit`; None: the end of the stream.

    Yields:
        The chunks in order. An empty stream yields one empty chunk.
    """
    slack = min(_SLACK_BYTES, limit)  # a border never moves past the next multiple of the limit
    offset = start
    if start:
        # The range before this one used the same rule for the border at `start`: find that border
        # again, from the byte before `start` on.
        stream.seek(start - 1)
        offset += _border_shift(stream.read(slack + 1), slack)
        stream.seek(offset)
    # `buffer` holds the bytes from `offset` on; `target_end` is the next multiple of the limit.
    buffer, target_end = b"", start
    while stop is None or target_end < stop:
        target_end += limit
        buffer += stream.read(target_end + slack - offset - len(buffer))
        target = target_end - offset
        if len(buffer) <= target:
            num_bytes = len(buffer)
        else:
            num_bytes = target + _border_shift(buffer[target - 1 :], slack)
        # The border is less than the slack behind its target, so the end of a buffer that was read
        # to its full size is never a border: if this is one, the stream ends here.
        is_last = num_bytes == len(buffer)
        # Nothing is left if the border before was at the end of the stream. Only a stream that is
        # empty from its first byte on yields an empty chunk.
        if num_bytes or not start + offset:
            yield Chunk(offset, buffer[:num_bytes], is_last)
        if is_last:
            return
        buffer = buffer[num_bytes:]
        offset += num_bytes


def _border_shift(window: bytes, slack: int) -> int:
    """Number of bytes between a multiple of the limit and the border near it.

    Args:
        window: bytes from one before the multiple on, so that a line end exactly there is found.
        slack: how many bytes to search for a line end.
    """
    line_end = window.find(b"\n", 0, slack)
    if line_end >= 0:
        return line_end
    # A UTF-8 character has at most three continuation bytes (10xxxxxx); they stay with their
    # character, so the border is before the first byte that is not one.
    following = window[1:4]
    return next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))
