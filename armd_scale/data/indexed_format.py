"""Megatron's `.bin`/`.idx` format, byte for byte as its `IndexedDatasetBuilder` writes it.

`.bin` holds the tokens of all documents one after another, in one integer width, without a header.
`.idx` is little-endian:

    9 bytes   magic
    u64       version, 1
    u8        code of the token width
    u64 S     number of sequences (a document is one, or several if it is very long)
    u64 D     number of documents + 1
    i32[S]    length of each sequence in tokens
    i64[S]    offset of each sequence in `.bin`, in bytes
    i64[D]    document indices: the first sequence of each document, and S at the end

Everything is streamed, so memory does not grow with the corpus.
"""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from armd_scale.errors import ShardError

IntDType: TypeAlias = np.dtype[Any]

_Integer = TypeVar("_Integer", np.int32, np.int64)

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# Megatron's codes of the integer widths. Its codes for floats and bytes are not token ids.
DTYPES = {3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_VERSION = 1
_BLOCK_BYTES = 4 << 20
_SEQUENCES_PER_BLOCK = 1 << 19
MAX_SEQUENCE_TOKENS = 2**31 - 1
"""Largest length that the format can store."""


@final
@dataclass(frozen=True)
class Header:
    """The first 34 bytes of an `.idx` file."""

    dtype: IntDType
    num_sequences: int
    num_document_indices: int

    @property
    def documents_offset(self) -> int:
        """Position of the document indices in the `.idx` file, in bytes."""
        # Per sequence an i32 length and an i64 offset.
        return HEADER.size + 12 * self.num_sequences

    @property
    def idx_bytes(self) -> int:
        """Size of the whole `.idx` file, without the modes of Megatron's multimodal format."""
        return self.documents_offset + 8 * self.num_document_indices


@final
@dataclass(frozen=True)
class IndexedPart:
    """Some consecutive sequences: their tokens, their lengths, and which of them start a document.

    The first sequences may continue the last document of the part before.

    Attributes:
        bin_path: the tokens.
        lengths_path: file with the lengths of the sequences as int32.
        lengths_offset: position of the first length in that file, in bytes.
        num_sequences: number of sequences.
        documents_path: file with the index in the part of each document's first sequence, as int64.
        documents_offset: position of the first index in that file, in bytes.
        num_documents: number of documents that start in the part.
    """

    bin_path: Path
    lengths_path: Path
    lengths_offset: int
    num_sequences: int
    documents_path: Path
    documents_offset: int
    num_documents: int

    def lengths(self) -> Iterator[NDArray[np.int32]]:
        """Yield the lengths of the sequences in tokens, a block of them at a time."""
        return _read_array(self.lengths_path, self.lengths_offset, self.num_sequences, np.int32)

    def document_indices(self) -> Iterator[NDArray[np.int64]]:
        """Yield the index in the part of each document's first sequence, a block at a time."""
        return _read_array(self.documents_path, self.documents_offset, self.num_documents, np.int64)


def dtype_for(vocab_size: int) -> IntDType:
    """Return the token width that Megatron chooses: u16 below 65,500 ids, i32 from there on."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def read_header(idx_path: Path) -> Header:
    """Read the header of an `.idx` file.

    Raises:
        ShardError: it is not an index file, or of another version or token type.
    """
    with idx_path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise ShardError(f"{idx_path} is not a Megatron index file: build the shards again")
    _, version, code, num_sequences, num_document_indices = HEADER.unpack(head)
    if version != _VERSION or code not in DTYPES:
        raise ShardError(
            f"{idx_path} must have version {_VERSION} and integer tokens, but has version "
            f"{version} and dtype code {code}: build the shards again"
        )
    return Header(np.dtype(DTYPES[code]), num_sequences, num_document_indices)


def write_bin(path: Path, parts: Iterable[IndexedPart]) -> str:
    """Write the tokens of all parts into one `.bin` file; return its SHA-256."""
    return _write(path, (block for part in parts for block in _blocks(part.bin_path)))


def write_idx(path: Path, parts: Sequence[IndexedPart], *, dtype: IntDType) -> str:
    """Write the `.idx` file of all parts; return its SHA-256."""
    return _write(path, _index_blocks(parts, dtype))


def _index_blocks(parts: Sequence[IndexedPart], dtype: IntDType) -> Iterator[bytes]:
    """Yield the content of an `.idx` file.

    The format stores all lengths before all offsets, so the lengths are read twice instead of kept
    in memory.
    """
    num_sequences = sum(part.num_sequences for part in parts)
    num_documents = sum(part.num_documents for part in parts)
    yield HEADER.pack(MAGIC, _VERSION, _CODES[dtype.type], num_sequences, num_documents + 1)
    yield from (lengths.tobytes() for part in parts for lengths in part.lengths())
    offset = 0
    for part in parts:
        for lengths in part.lengths():
            # int64 before the sum: the offsets of a corpus over 2 GiB do not fit in int32.
            ends = offset + np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
            yield np.concatenate([[offset], ends[:-1]]).astype(np.int64).tobytes()
            offset = int(ends[-1])
    first_sequence = 0
    for part in parts:
        yield from ((first_sequence + block).tobytes() for block in part.document_indices())
        first_sequence += part.num_sequences
    yield np.int64(num_sequences).tobytes()


def _read_array(
    path: Path, offset: int, length: int, dtype: type[_Integer]
) -> Iterator[NDArray[_Integer]]:
    """Yield an array that a file holds at an offset, a block of it at a time."""
    with path.open("rb") as file:
        file.seek(offset)
        for start in range(0, length, _SEQUENCES_PER_BLOCK):
            count = min(_SEQUENCES_PER_BLOCK, length - start)
            yield np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)


def _write(path: Path, blocks: Iterable[bytes]) -> str:
    """Write a file and sync it to the disk; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks:
            digest.update(block)
            file.write(block)
        file.flush()
        # The file is renamed after this. Without the sync a power failure could keep the rename but
        # lose the content, and the final name would stand for an empty file.
        os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
