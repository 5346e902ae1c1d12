"""Megatron's `.bin`/`.idx` format, byte for byte as its `IndexedDatasetBuilder` writes it.

`.bin` is the tokens of all documents on end, in one width, without a header. `.idx` is
little-endian: magic, u64 version 1, u8 dtype code, u64 sequences, u64 documents + 1, then i32
sequence lengths, i64 byte offsets and i64 document bounds (as sequence numbers). Everything here
is streamed: memory does not grow with the corpus.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from armd_scale.errors import ShardError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Megatron's codes of the integer widths; floats and bytes are not token ids.
DTYPES = {3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_CHUNK_BYTES = 4 << 20
_CHUNK_SEQUENCES = 1 << 19


@final
@dataclass(frozen=True)
class Header:
    """What the first 34 bytes of an `.idx` file say."""

    dtype: np.dtype
    num_sequences: int
    num_document_indices: int

    @property
    def idx_bytes(self) -> int:
        """Size that the whole `.idx` file must have (without Megatron's optional modes)."""
        return HEADER.size + 12 * self.num_sequences + 8 * self.num_document_indices


@final
@dataclass(frozen=True)
class IndexedPart:
    """Some documents on end: a file of tokens, and their lengths, i32 from an offset of another."""

    bin_path: Path
    lengths_path: Path
    lengths_offset: int
    num_documents: int

    def lengths(self) -> Iterator[np.ndarray]:
        """The documents' lengths in tokens, int32, some at a time."""
        with self.lengths_path.open("rb") as file:
            file.seek(self.lengths_offset)
            for start in range(0, self.num_documents, _CHUNK_SEQUENCES):
                count = min(_CHUNK_SEQUENCES, self.num_documents - start)
                yield np.frombuffer(file.read(4 * count), np.int32)


def dtype_for(vocab_size: int) -> np.dtype:
    """Width of a token: u16 below 65,500 ids and i32 from there on, as Megatron chooses."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def read_header(idx_path: Path) -> Header:
    """The header of an `.idx` file.

    Raises:
        ShardError: the file is not one.
    """
    with idx_path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise ShardError(f"{idx_path} is not a Megatron index file: build the shards again")
    _, version, code, num_sequences, num_bounds = HEADER.unpack(head)
    if version != 1 or code not in DTYPES:
        raise ShardError(
            f"{idx_path} must be of version 1 with integer tokens, but has version {version} and "
            f"dtype code {code}: build the shards again"
        )
    return Header(np.dtype(DTYPES[code]), num_sequences, num_bounds)


def write_bin(path: Path, parts: Iterable[IndexedPart]) -> str:
    """Writes the tokens of the parts on end; returns the sha256 of the file."""
    return _write(path, (chunk for part in parts for chunk in _chunks(part.bin_path)))


def write_idx(path: Path, parts: Sequence[IndexedPart], *, dtype: np.dtype) -> str:
    """Writes the index of the parts, each document one sequence; returns the sha256 of the file."""
    return _write(path, _index_chunks(parts, dtype))


def _index_chunks(parts: Sequence[IndexedPart], dtype: np.dtype) -> Iterator[bytes]:
    num_documents = sum(part.num_documents for part in parts)
    yield HEADER.pack(MAGIC, 1, _CODES[dtype.type], num_documents, num_documents + 1)
    yield from (chunk.tobytes() for part in parts for chunk in part.lengths())
    offset = 0
    for part in parts:
        for lengths in part.lengths():
            ends = offset + np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
            yield np.concatenate([[offset], ends[:-1]]).astype(np.int64).tobytes()
            offset = int(ends[-1])
    for start in range(0, num_documents + 1, _CHUNK_SEQUENCES):
        stop = min(start + _CHUNK_SEQUENCES, num_documents + 1)
        yield np.arange(start, stop, dtype=np.int64).tobytes()


def _write(path: Path, chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        # The rename that follows must not reach the disk before the content does.
        os.fsync(file.fileno())
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
