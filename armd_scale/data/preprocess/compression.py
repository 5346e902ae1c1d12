"""Files opened for reading bytes, unpacked where they are compressed."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

COMPRESSED = (".gz", ".zst")
BROKEN_STREAM = (OSError, EOFError, zlib.error)
"""What reading a missing, unreadable or damaged file raises."""
_READ_BYTES = 1 << 18


@contextmanager
def open_stream(path: str) -> Iterator[io.BufferedIOBase]:
    """The content of a file; seekable unless it is compressed."""
    if path.endswith(".gz"):
        with gzip.open(path) as stream:
            yield stream
        return
    with Path(path).open("rb") as file:
        yield io.BufferedReader(_ZstdStream(file), _READ_BYTES) if path.endswith(".zst") else file


@final
class _ZstdStream(io.RawIOBase):
    """The frames of a zstd file on end; the library's own reader takes truncation for the end."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        import zstandard

        self._file, self._library = file, zstandard
        self._frame: Any = None
        self._packed = self._unpacked = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked and self._fill():
            pass
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _fill(self) -> bool:
        """Unpacks some more; False at the end of the file."""
        packed = self._packed or self._file.read(_READ_BYTES)
        self._packed = b""
        if not packed:
            if self._frame is not None:
                raise EOFError("the compressed data ends early")
            return False
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            self._unpacked = self._frame.decompress(packed)
        except self._library.ZstdError as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True
