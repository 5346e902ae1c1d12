"""Open files as byte streams, decompressing .gz, .zst, .bz2 and .xz in bounded memory.

A few bytes can be compressed data of terabytes. Such a file would keep a run busy for days, so
reading ends where the content is larger than any text would be: more than 32 MiB, and more than 200
times its compressed size. Text has factors of 3 to 10, and logs and tables rarely more than 100.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

_COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
READ_ERRORS = (OSError, EOFError, zlib.error)
"""Exceptions of reading a file that is missing, unreadable or damaged."""
MAX_EXPANSION = 200
"""Compressed data that becomes more than this many times as large is not text."""
_READ_BYTES = 1 << 18
# The smallest block of a zstd frame has four bytes and may contain 128 KiB: this much input is at
# most 64 MiB of output, which the library returns in one piece.
_ZSTD_READ_BYTES = 1 << 11
_MAX_WINDOW_BYTES = 128 << 20
_BLOCK_BYTES = 1 << 14
_EXPANSION_CHECK_BYTES = 32 << 20


def compression_suffix(path: str) -> str:
    """Return the suffix that names the compression of a file; an empty text if there is none."""
    return next((path[-len(s) :] for s in _COMPRESSED_SUFFIXES if path.lower().endswith(s)), "")


@contextmanager
def open_stream(path: str) -> Generator[io.BufferedIOBase, None, None]:
    """Open the decompressed content of a file; seekable unless the file is compressed."""
    with Path(path).open("rb") as file:
        match compression_suffix(path).lower():
            case "":
                yield file
                return
            case ".gz":
                # readinto1: an error of the next block must not lose what was decompressed before.
                read = gzip.GzipFile(fileobj=file).readinto1
            case ".zst":
                read = _ZstdStream(file).readinto
            case ".bz2":
                read = _StandardStream(file, bz2.BZ2Decompressor).readinto
            case _:
                read = _StandardStream(file, _xz_decompressor).readinto
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


def _xz_decompressor() -> lzma.LZMADecompressor:
    # The decompressor allocates what a file says: without the limit, 32 bytes could take 4 GiB.
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MAX_WINDOW_BYTES)


@final
class _StandardStream(io.RawIOBase):
    """The decompressed streams of a .bz2 or .xz file, one after another.

    The file classes of the standard library end without an error at data that follows a stream, and
    that of .xz has no limit on its memory.

    Args:
        file: the compressed data.
        new_decompressor: makes the decompressor of one stream.
    """

    def __init__(self, file: io.BufferedIOBase, new_decompressor: Callable[[], Any]) -> None:
        self._file, self._new_decompressor = file, new_decompressor
        self._decompressor: Any = None  # None between two streams
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor is None:
                # Between two streams .xz files may be padded with NUL bytes.
                while not (data := self._compressed.lstrip(b"\0")):
                    self._compressed = self._file.read(_BLOCK_BYTES)
                    if not self._compressed:
                        return 0
                self._compressed = data
                self._decompressor = self._new_decompressor()
            elif self._decompressor.needs_input:
                self._compressed = self._file.read(_BLOCK_BYTES)
                if not self._compressed:
                    raise EOFError("the compressed data ends early")
            if content := self._decompress(len(buffer)):
                buffer[: len(content)] = content
                return len(content)

    def _decompress(self, max_bytes: int) -> bytes:
        """Decompress at most `max_bytes`; go on to the next stream at the end of one."""
        compressed, self._compressed = self._compressed, b""
        try:
            content = self._decompressor.decompress(compressed, max_bytes)
        except (OSError, lzma.LZMAError) as error:
            if "emory usage limit" in str(error):
                raise EOFError(
                    "it needs over 128 MiB of memory: compress it again with a preset of xz"
                ) from error
            raise EOFError(str(error)) from error
        if self._decompressor.eof:
            self._compressed, self._decompressor = self._decompressor.unused_data, None
        return content
