"""Open files as byte streams, decompressing .gz and .zst in bounded memory.

A few bytes can be compressed data of terabytes. Such a file would keep a run busy for days, so
reading ends where the content is larger than any text would be: more than 32 MiB, and more than 200
times its compressed size. Text has factors of 3 to 10, and logs and tables rarely more than 100.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

COMPRESSED_SUFFIXES = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error)
"""Exceptions of reading a file that is missing, unreadable or damaged."""
MAX_EXPANSION = 200
"""Compressed data that becomes more than this many times as large is not text."""
_READ_BYTES = 1 << 18
# The smallest block of a zstd frame has four bytes and may contain 128 KiB: this much input is at
# most 64 MiB of output, which the library returns in one piece.
_ZSTD_READ_BYTES = 1 << 11
_EXPANSION_CHECK_BYTES = 32 << 20


@contextmanager
def open_stream(path: str) -> Generator[io.BufferedIOBase, None, None]:
    """Open the decompressed content of a file; seekable unless the file is compressed."""
    with Path(path).open("rb") as file:
        if not path.endswith(COMPRESSED_SUFFIXES):
            yield file
            return
        # readinto1: an error of the next block must not lose what was decompressed before it.
        is_zstd = path.endswith(".zst")
        read = _ZstdStream(file).readinto if is_zstd else gzip.GzipFile(fileobj=file).readinto1
        yield io.BufferedReader(_LimitedStream(read, file), _READ_BYTES)


def check_expansion(num_bytes: int, compressed_bytes: int) -> None:
    """Check that the content of a compressed file could be text.

    Args:
        num_bytes: size of the content so far.
        compressed_bytes: size of the compressed data that it was made from.

    Raises:
        EOFError: it is larger than that of any text.
    """
    if num_bytes > _EXPANSION_CHECK_BYTES and num_bytes > MAX_EXPANSION * compressed_bytes:
        raise expansion_error()


def expansion_error() -> EOFError:
    """Make the error of a file whose content is larger than that of any text."""
    return EOFError(f"it expands to more than {MAX_EXPANSION} times its size, which no text does")


@final
class _LimitedStream(io.RawIOBase):
    """Decompressed content that ends with an EOFError where it expands without end.

    Args:
        read: fills a buffer with decompressed content.
        file: the file that it is read from.
    """

    def __init__(self, read: Callable[[Any], int], file: io.BufferedIOBase) -> None:
        self._read, self._file = read, file
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._read(buffer)
        self._num_bytes += count
        check_expansion(self._num_bytes, self._file.tell())
        return count


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
        self._compressed = b""
        # A view, because a block may be decompressed to much more than is read at a time.
        self._decompressed = memoryview(b"")

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
        compressed = self._compressed or self._file.read(_ZSTD_READ_BYTES)
        self._compressed = b""
        if not compressed:
            if self._frame is not None:
                raise EOFError("the compressed data ends early")
            return False
        if self._frame is None:
            self._frame = self._zstandard.ZstdDecompressor().decompressobj()
        try:
            self._decompressed = memoryview(self._frame.decompress(compressed))
        except self._zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise EOFError(
                    "its window is over 128 MiB: compress it again without the option --long"
                ) from error
            raise EOFError(str(error)) from error
        if self._frame.eof:
            # Tools that compress in parallel write many frames; the rest of the input is the next.
            self._compressed, self._frame = self._frame.unused_data, None
        return True
