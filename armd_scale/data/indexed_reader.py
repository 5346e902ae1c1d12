"""Open token shards for reading, and verify them against truncation and changed bits."""

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from armd_scale.data.indexed_format import HEADER, Header, IntDType, read_header
from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ShardError
from armd_scale.files import sha256_file

IntArray: TypeAlias = NDArray[Any]

_TOKENS_PER_BLOCK = 1 << 22
_SEQUENCES_PER_BLOCK = 1 << 19
# A run may have thousands of shards, but a process often no more than 1024 open files, and others
# need some of them. Few samples in a row come from one shard, so more would help little either.
_MAX_OPEN_FILES = 128


@final
class IndexedTokens:
    """The tokens of a .bin/.idx dataset as one stream; see `open_shards`.

    No file stays open for it: those that were read last are kept open by a pool of the process.
    Pickles as its prefix: a copy in another process checks the files itself.

    Attributes:
        prefix: prefix of the files.
        manifest: the manifest; None for a dataset without one.
        num_tokens: number of tokens in all documents.
        num_documents: number of documents.
        document_starts: position of each document's first token, int64 [num_documents].
    """

    def __init__(self, prefix: str) -> None:
        header = _check_files(prefix)
        self.prefix = prefix
        self.manifest: Manifest | None = load_manifest(prefix)
        ends, document_indices = _check_positions(prefix, header)
        self._bin_path = f"{prefix}.bin"
        self._identity = _FileIdentity.of(Path(self._bin_path).stat())
        self._dtype = header.dtype
        self.num_tokens = int(ends[-1])
        # Elsewhere a document may consist of several sequences, so its start is looked up from the
        # index of its first sequence. The result is a copy: a memory mapping of the index would
        # hold an open file.
        self.document_starts: NDArray[np.int64] = np.concatenate([[0], ends])[document_indices[:-1]]
        self.num_documents = len(self.document_starts)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return a copy of `count` tokens from position `start` on, across document borders.

        Returns:
            Token ids, int64 [count].

        Raises:
            ShardError: the file cannot be read, or was truncated or replaced since it was opened.
        """
        assert 0 <= start <= start + count <= self.num_tokens, (start, count, self.num_tokens)
        # The position in the stream is the position in the file, because the format has no gaps
        # between sequences: _check_files has compared the end of the last one with the file size.
        offset, num_bytes = start * self._dtype.itemsize, count * self._dtype.itemsize
        # Not through a memory mapping: a file that was truncated since would end the process with
        # SIGBUS there. pread also leaves the offset alone that forked workers share.
        try:
            file = _open_file(self._bin_path, self._identity)
            data = os.pread(file.descriptor, num_bytes, offset)
        except OSError as error:
            raise _corrupt_error(self._bin_path, f"it cannot be read: {error.strerror}") from error
        if len(data) < num_bytes:
            raise _corrupt_error(self._bin_path, "it was truncated since it was opened")
        return np.frombuffer(data, self._dtype).astype(np.int64)

    def __reduce__(self) -> tuple[type["IndexedTokens"], tuple[str]]:
        return IndexedTokens, (self.prefix,)


class _FileIdentity(NamedTuple):
    """What tells a file from another one that has taken its name."""

    inode: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_FileIdentity":
        return cls(status.st_ino, status.st_mtime_ns)

    def is_replaced_by(self, other: "_FileIdentity") -> bool:
        # Both differ for another file. One alone may differ for the same file: its time after
        # `touch`, with which scratch disks are kept from being purged, and its inode where a file
        # system in user space numbers anew.
        return self.inode != other.inode and self.modified_ns != other.modified_ns


@final
class _OpenFile:
    """A file that is open for reading as long as somebody refers to it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # os.open may have failed
            os.close(self.descriptor)


@lru_cache(maxsize=_MAX_OPEN_FILES)
def _open_file(path: str, identity: _FileIdentity) -> _OpenFile:
    """Return a file, open; the one that was used longest ago is closed for it.

    A reader that still refers to that one in another thread keeps it open until it is done.

    Args:
        path: of the file.
        identity: what it was when its index was checked.
    """
    file = _OpenFile(path)
    if identity.is_replaced_by(_FileIdentity.of(os.fstat(file.descriptor))):
        raise ShardError(
            f"{path} must stay as it is during a run, but was replaced since the run opened it: "
            "run the same command again"
        )
    return file


def open_shards(prefix: str | Path) -> IndexedTokens:
    """Open PREFIX.bin and PREFIX.idx, after a check that reads no tokens.

    Raises:
        ShardError: a file is missing, not of this format, truncated, or contains no tokens.
    """
    return IndexedTokens(str(prefix))


def has_no_tokens(prefix: str | Path) -> bool:
    """Return whether a dataset is empty, as that of a part of a corpus without text is.

    Raises:
        ShardError: a file is missing, not of this format or truncated.
    """
    _check_files(str(prefix), may_be_empty=True)
    return Path(f"{prefix}.bin").stat().st_size == 0


def verify(prefix: str | Path) -> Manifest | None:
    """Read all of a dataset and check it for consistency and against its manifest.

    Returns:
        The manifest; None for a dataset without one. Then only damage that leaves the format or the
        range of tokens is found.

    Raises:
        ShardError: the first error found.
    """
    prefix = str(prefix)
    header = _check_files(prefix, may_be_empty=True)
    manifest = load_manifest(prefix)
    if manifest is not None:
        for kind in ("idx", "bin"):
            if sha256_file(Path(f"{prefix}.{kind}")) != manifest.sha256[kind]:
                raise _corrupt_error(f"{prefix}.{kind}", "its sha256 differs from the manifest")
    _check_index(prefix, header)
    _check_tokens(prefix, header, manifest)
    if manifest is not None:
        _check_manifest(prefix, header, manifest)
    return manifest


def _check_files(prefix: str, *, may_be_empty: bool = False) -> Header:
    """Return the header of the index, once the sizes of both files agree with it."""
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in (bin_path, idx_path):
        if not path.is_file():
            has_splits = Path(f"{prefix}_train.bin").is_file()
            raise ShardError(
                f"{path} does not exist: "
                + (
                    f"give {prefix}_train or another split of this corpus"
                    if has_splits
                    else "check the prefix, or build the shards with tools/preprocess.py"
                )
            )
    header = read_header(idx_path)
    idx_bytes = idx_path.stat().st_size
    # Megatron's multimodal index has one more byte per sequence at its end.
    if idx_bytes not in (header.idx_bytes, header.idx_bytes + header.num_sequences):
        raise _corrupt_error(
            idx_path, f"it must have {header.idx_bytes} bytes, but has {idx_bytes}"
        )
    expected_bytes, bin_bytes = _bin_bytes(idx_path, header), bin_path.stat().st_size
    if bin_bytes != expected_bytes:
        raise _corrupt_error(
            bin_path, f"by its index it must have {expected_bytes} bytes, but has {bin_bytes}"
        )
    if not expected_bytes and not may_be_empty:
        raise ShardError(
            f"{prefix} contains no tokens: build the shards from a corpus with text in it"
        )
    return header


def _bin_bytes(idx_path: Path, header: Header) -> int:
    """Return the end of the last sequence, which is the size of the .bin file."""
    if not header.num_sequences:
        return 0
    lengths, offsets, _ = _index_arrays(idx_path, header)
    return int(offsets[-1]) + int(lengths[-1]) * header.dtype.itemsize


def _index_arrays(idx_path: Path, header: Header) -> tuple[IntArray, IntArray, IntArray]:
    """Map the lengths, offsets and document indices from the file."""
    num_sequences, offset = header.num_sequences, HEADER.size
    arrays: list[IntArray] = []
    for dtype, length in (
        (np.int32, num_sequences),
        (np.int64, num_sequences),
        (np.int64, header.num_document_indices),
    ):
        # np.memmap cannot map an empty range.
        array = (
            np.memmap(idx_path, dtype, "r", offset, (length,))
            if length
            else np.empty(0, dtype=dtype)
        )
        arrays.append(array)
        offset += array.nbytes
    return arrays[0], arrays[1], arrays[2]


def _check_positions(prefix: str, header: Header) -> tuple[NDArray[np.int64], IntArray]:
    """Check what reading relies on: that no position lies outside of the .bin file.

    Returns:
        The position of the end of each sequence, in tokens, and the index of the first sequence of
        each document, with the number of sequences at the end.
    """
    idx_path = Path(f"{prefix}.idx")
    num_bytes = Path(f"{prefix}.bin").stat().st_size
    lengths, _, document_indices = _index_arrays(idx_path, header)
    ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64)
    if lengths.min() < 0 or int(ends[-1]) * header.dtype.itemsize != num_bytes:
        raise _corrupt_error(idx_path, "its lengths do not add up to the tokens of the .bin file")
    if (
        len(document_indices) == 0
        or document_indices[0] != 0
        or document_indices[-1] != header.num_sequences
        or (np.diff(document_indices) < 0).any()
    ):
        raise _corrupt_error(idx_path, "its documents do not cover its sequences")
    return ends, document_indices


def _check_index(prefix: str, header: Header) -> None:
    """Check that the arrays of the index are consistent, block by block."""
    idx_path = Path(f"{prefix}.idx")
    lengths, offsets, document_indices = _index_arrays(idx_path, header)
    # Each offset must be the end of the sequence before; the sum is carried from block to block.
    end_offset = 0
    for start in range(0, header.num_sequences, _SEQUENCES_PER_BLOCK):
        block = np.asarray(lengths[start : start + _SEQUENCES_PER_BLOCK], np.int64)
        ends = end_offset + np.cumsum(block) * header.dtype.itemsize
        expected = np.concatenate([[end_offset], ends[:-1]])
        if block.min() < 0 or (offsets[start : start + _SEQUENCES_PER_BLOCK] != expected).any():
            raise _corrupt_error(idx_path, "its offsets do not follow from its lengths")
        end_offset = int(ends[-1])
    # Document indices must not decrease, start at 0 and end at the number of sequences.
    last = -1
    for start in range(0, header.num_document_indices, _SEQUENCES_PER_BLOCK):
        block = np.asarray(document_indices[start : start + _SEQUENCES_PER_BLOCK])
        if block[0] < last or (np.diff(block) < 0).any():
            raise _corrupt_error(idx_path, "its document indices are not in order")
        last = int(block[-1])
    if not header.num_document_indices or document_indices[0] != 0 or last != header.num_sequences:
        raise _corrupt_error(idx_path, "its documents do not cover its sequences")


def _check_tokens(prefix: str, header: Header, manifest: Manifest | None) -> None:
    """Check that every token is in the vocabulary (without a manifest: that none is negative)."""
    vocab_size = manifest.vocab_size if manifest is not None else math.inf
    for start, tokens in _token_blocks(Path(f"{prefix}.bin"), header.dtype):
        invalid = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
        if invalid.size:
            first = int(invalid[0])
            raise _corrupt_error(
                f"{prefix}.bin",
                f"token {start + first} is {tokens[first]}, outside the vocabulary of {vocab_size}",
            )


def _token_blocks(bin_path: Path, dtype: IntDType) -> Iterator[tuple[int, IntArray]]:
    """Yield blocks of tokens, each with the position of its first token."""
    start = 0
    with bin_path.open("rb") as file:
        while data := file.read(_TOKENS_PER_BLOCK * dtype.itemsize):
            tokens = np.frombuffer(data, dtype)
            yield start, tokens
            start += tokens.size


def _check_manifest(prefix: str, header: Header, manifest: Manifest) -> None:
    """Check the counts and the tokenizer of the manifest."""
    num_tokens = Path(f"{prefix}.bin").stat().st_size // header.dtype.itemsize
    actual = (header.num_document_indices - 1, num_tokens, header.dtype.name)
    recorded = (manifest.documents, manifest.tokens, manifest.dtype)
    if actual != recorded:
        raise _corrupt_error(
            f"{prefix}.json",
            f"it records {recorded} documents, tokens and dtype, but the files have {actual}",
        )
    folder = manifest.tokenizer_folder(prefix)
    if load_tokenizer(folder).fingerprint != manifest.tokenizer.fingerprint:
        raise _corrupt_error(folder, "it is not the tokenizer that the shards were made with")


def _corrupt_error(path: str | Path, reason: str) -> ShardError:
    return ShardError(f"{path} is damaged ({reason}): copy it again or build the shards again")
