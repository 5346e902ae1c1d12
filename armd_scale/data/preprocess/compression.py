"""Open files as byte streams, decompressing .gz and .zst."""

import gzip
import io
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

COMPRESSED_SUFFIXES = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error)
"""Exceptions of reading a file that is missing, unreadable or damaged."""
_READ_BYTES = 1 << 18


@contextmanager
def open_stream(path: str) -> Generator[io.BufferedIOBase, None, None]:
    """Open the decompressed content of a file; seekable unless the file is compressed."""
    if path.endswith(".gz"):
        with gzip.open(path) as stream:
            yield stream
        return
    with Path(path).open("rb") as file:
        yield io.BufferedReader(_ZstdStream(file), _READ_BYTES) if path.endswith(".zst") else file


@final
class _ZstdStream(io.RawIOBase):
    """The decompressed frames of a zstd file, one after another.

    The library's own stream reader treats a truncated file like one that ends there, which would
    drop the rest of a damaged corpus silently. This one raises EOFError.
    """

    def __init__(self, file: io.BufferedIOBase) -> None:
        # Imported here, because most corpora do not need it and every worker would pay for it.
        import zstandard

        self._file, self._zstandard = file, zstandard
        self._frame: Any = None  # decompressor of the current frame; None between two frames
        self._compressed = self._decompressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # A block of a frame may decompress to nothing (a header alone): read on until there is
        # data.
        while not self._decompressed and self._decompress_more():
            pass
        count = min(len(buffer), len(self._decompressed))
        buffer[:count] = self._decompressed[:count]
        self._decompressed = self._decompressed[count:]
        return count

    def _decompress_more(self) -> bool:
        """Decompress the next block of input; return False at the end of the file."""
        compressed = self._compressed or self._file.read(_READ_BYTES)
        self._compressed = b""
        if not compressed:
            if self._frame is not None:
                raise EOFError("the compressed data ends early")
            return False
        if self._frame is None:
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        try:
            self._decompressed = self._frame.decompress(compressed)
        except self._zstandard.ZstdError as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            # Tools that compress in parallel write many frames; the rest of the input is the next.
            self._compressed, self._frame = self._frame.unused_data, None
        return True
