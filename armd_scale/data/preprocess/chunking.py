"""Cutting what is too long for one document, or for memory, where only nearby bytes decide."""

from collections.abc import Iterator
from io import BufferedIOBase

# How far after its nominal place a cut may look for a line end before it takes any character.
_SLACK = 4096


def split_stream(
    stream: BufferedIOBase, limit: int, *, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, bytes, bool]]:
    """Cuts a stream near the multiples of `limit` in [start, stop).

    A cut depends on the bytes around it only, so any piece can be found without those before it.

    Args:
        stream: seekable where `start` is not 0.
        limit: bytes of a piece, give or take the slack; at least 8.
        start: a multiple of `limit`.
        stop: likewise; None for the end of the stream.

    Yields:
        offset, content, and whether it is the first of several. An empty stream is one empty piece.
    """
    slack = min(_SLACK, limit)  # so that cuts stay in order
    offset = start
    if start:
        stream.seek(start - 1)
        offset += _cut(stream.read(slack + 1), slack)
        stream.seek(offset)
    buffer, target_end = b"", start
    while stop is None or target_end < stop:
        target_end += limit
        buffer += stream.read(target_end + slack - offset - len(buffer))
        whole = len(buffer) <= target_end - offset
        end = (
            len(buffer)
            if whole
            else target_end - offset + _cut(buffer[target_end - offset - 1 :], slack)
        )
        if end or not start + offset:
            yield offset, buffer[:end], offset == 0 and end < len(buffer)
        if whole:
            return
        buffer = buffer[end:]
        offset += end


def _cut(window: bytes, slack: int) -> int:
    """How far after its nominal place a cut is; the window begins one byte before that place."""
    line_end = window.find(b"\n", 0, slack)
    if line_end >= 0:
        return line_end
    # Continuation bytes of UTF-8 stay with their character, of which there are three at most.
    after = window[1:4]
    return next((i for i, byte in enumerate(after) if byte & 0xC0 != 0x80), len(after))
