"""Token shards opened for reading, and the check that finds truncation and bit rot."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np

from armd_scale.data.indexed_format import HEADER, Header, read_header
from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ShardError
from armd_scale.files import sha256_file

_CHUNK_TOKENS = 1 << 22
_CHUNK_SEQUENCES = 1 << 19


@final
class IndexedTokens:
    """The tokens of a pair as one stream; made by `open_shards`, and pickled as its prefix.

    Attributes:
        prefix: of the files.
        manifest: None for a pair that came without one.
        num_tokens: in all documents.
        num_documents: documents.
        document_starts: int64 [num_documents], place of each document's first token.
    """

    def __init__(self, prefix: str) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        header = _check_files(prefix)
        self.prefix = prefix
        self.manifest: Manifest | None = load_manifest(prefix)
        # Kept for as long as we are: its arrays are views of a mapping that it closes when it goes.
        self._dataset = IndexedDataset(prefix)
        self._dtype = header.dtype
        ends = np.cumsum(self._dataset.sequence_lengths, dtype=np.int64)
        self.num_tokens = int(ends[-1])
        firsts = self._dataset.document_indices[:-1]
        self.document_starts: np.ndarray = np.concatenate([[0], ends])[firsts]
        self.num_documents = len(self.document_starts)

    def read(self, start: int, count: int) -> np.ndarray:
        """A copy of `count` tokens from place `start` on, int64, across documents."""
        assert 0 <= start <= start + count <= self.num_tokens, (start, count, self.num_tokens)
        # The format has no gaps between sequences, which opening has checked at both ends.
        offset = start * self._dtype.itemsize
        tokens = self._dataset.bin_reader.read(dtype=self._dtype.type, count=count, offset=offset)
        return tokens.astype(np.int64)

    def __reduce__(self) -> tuple[type["IndexedTokens"], tuple[str]]:
        return IndexedTokens, (self.prefix,)


def open_shards(prefix: str | Path) -> IndexedTokens:
    """Opens PREFIX.bin and PREFIX.idx after a check that costs no reading of tokens.

    Raises:
        ShardError: a file is missing, of another kind, truncated, or without tokens.
    """
    return IndexedTokens(str(prefix))


def verify(prefix: str | Path) -> Manifest | None:
    """Reads everything and compares it with itself and with the manifest.

    Returns:
        the manifest; without one no bit rot can be found that leaves the tokens in range.

    Raises:
        ShardError: the first thing that is wrong.
    """
    prefix = str(prefix)
    header = _check_files(prefix, may_be_empty=True)
    manifest = load_manifest(prefix)
    if manifest is not None:
        for kind in ("idx", "bin"):
            if sha256_file(Path(f"{prefix}.{kind}")) != manifest.sha256[kind]:
                raise _corrupt_error(
                    f"{prefix}.{kind}", "its sha256 is not the one in the manifest"
                )
    _check_index(prefix, header)
    _check_tokens(prefix, header, manifest)
    if manifest is not None:
        _check_counts(prefix, header, manifest)
    return manifest


def _check_files(prefix: str, *, may_be_empty: bool = False) -> Header:
    """The header, once the sizes of both files agree with it."""
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in (bin_path, idx_path):
        if not path.is_file():
            split = Path(f"{prefix}_train.bin").is_file()
            raise ShardError(
                f"{path} does not exist: "
                + (
                    f"give {prefix}_train or another side of the split"
                    if split
                    else "check the prefix, or build the shards with tools/preprocess.py"
                )
            )
    header = read_header(idx_path)
    size = idx_path.stat().st_size
    # Megatron's multimodal index has one more byte a sequence at its end.
    if size not in (header.idx_bytes, header.idx_bytes + header.num_sequences):
        raise _corrupt_error(idx_path, f"it must have {header.idx_bytes} bytes, but has {size}")
    num_bytes = _bin_bytes(idx_path, header)
    if bin_path.stat().st_size != num_bytes:
        raise _corrupt_error(
            bin_path, f"its index asks for {num_bytes} bytes, but it has {bin_path.stat().st_size}"
        )
    if not num_bytes and not may_be_empty:
        raise ShardError(
            f"{prefix} holds no tokens: build the shards from a corpus with text in it"
        )
    return header


def _bin_bytes(idx_path: Path, header: Header) -> int:
    """Where the last sequence ends."""
    if not header.num_sequences:
        return 0
    lengths, offsets, _ = _index_arrays(idx_path, header)
    return int(offsets[-1]) + int(lengths[-1]) * header.dtype.itemsize


def _index_arrays(idx_path: Path, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, offsets and document bounds, mapped from the file."""
    count, at = header.num_sequences, HEADER.size
    arrays: list[np.ndarray] = []
    for dtype, length in (
        (np.int32, count),
        (np.int64, count),
        (np.int64, header.num_document_indices),
    ):
        # An empty range cannot be mapped.
        array = (
            np.memmap(idx_path, dtype, "r", at, (length,)) if length else np.empty(0, dtype=dtype)
        )
        arrays.append(array)
        at += array.nbytes
    return arrays[0], arrays[1], arrays[2]


def _check_index(prefix: str, header: Header) -> None:
    idx_path = Path(f"{prefix}.idx")
    lengths, offsets, bounds = _index_arrays(idx_path, header)
    end = 0
    for start in range(0, header.num_sequences, _CHUNK_SEQUENCES):
        some = np.asarray(lengths[start : start + _CHUNK_SEQUENCES], np.int64)
        ends = end + np.cumsum(some) * header.dtype.itemsize
        expected = np.concatenate([[end], ends[:-1]])
        if some.min() < 0 or (offsets[start : start + _CHUNK_SEQUENCES] != expected).any():
            raise _corrupt_error(idx_path, "its offsets do not follow from its lengths")
        end = int(ends[-1])
    last = -1
    for start in range(0, header.num_document_indices, _CHUNK_SEQUENCES):
        some = np.asarray(bounds[start : start + _CHUNK_SEQUENCES])
        if some[0] < last or (np.diff(some) < 0).any():
            raise _corrupt_error(idx_path, "its document bounds are not in order")
        last = int(some[-1])
    if not header.num_document_indices or bounds[0] != 0 or last != header.num_sequences:
        raise _corrupt_error(idx_path, "its documents do not cover its sequences")


def _check_tokens(prefix: str, header: Header, manifest: Manifest | None) -> None:
    limit = manifest.vocab_size if manifest is not None else math.inf
    for start, tokens in _token_chunks(Path(f"{prefix}.bin"), header.dtype):
        wrong = np.flatnonzero((tokens < 0) | (tokens >= limit))
        if wrong.size:
            where = start + int(wrong[0])
            raise _corrupt_error(
                f"{prefix}.bin",
                f"token {where} is {tokens[wrong[0]]}, outside the vocabulary of {limit}",
            )


def _token_chunks(bin_path: Path, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    start = 0
    with bin_path.open("rb") as file:
        while data := file.read(_CHUNK_TOKENS * dtype.itemsize):
            tokens = np.frombuffer(data, dtype)
            yield start, tokens
            start += tokens.size


def _check_counts(prefix: str, header: Header, manifest: Manifest) -> None:
    tokens = Path(f"{prefix}.bin").stat().st_size // header.dtype.itemsize
    there = (header.num_document_indices - 1, tokens, header.dtype.name)
    noted = (manifest.documents, manifest.tokens, manifest.dtype)
    if there != noted:
        raise _corrupt_error(
            f"{prefix}.json",
            f"it notes {noted} documents, tokens and dtype, but the pair has {there}",
        )
    found = load_tokenizer(manifest.tokenizer_folder(prefix)).fingerprint
    if found != manifest.tokenizer.fingerprint:
        raise _corrupt_error(
            manifest.tokenizer_folder(prefix), "it is not the tokenizer that made the shards"
        )


def _corrupt_error(path: str | Path, what: str) -> ShardError:
    return ShardError(f"{path} is damaged ({what}): copy it again or build the shards again")
