"""A second, independent writer of the .bin/.idx format, which shares no code with the package."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_pair(prefix: Path, documents: Sequence[Sequence[int]]) -> str:
    """Write documents as an int32 dataset without a manifest; return the prefix."""
    lengths = np.array([len(document) for document in documents], dtype="<i4")
    tokens = np.concatenate([np.asarray(document, dtype="<i4") for document in documents])
    offsets = 4 * np.concatenate([[0], np.cumsum(lengths[:-1])]).astype("<i8")
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, len(lengths), len(lengths) + 1)
    bounds = np.arange(len(lengths) + 1, dtype="<i8")
    Path(f"{prefix}.idx").write_bytes(
        head + lengths.tobytes() + offsets.astype("<i8").tobytes() + bounds.tobytes()
    )
    return str(prefix)
