"""A writer of .bin/.idx pairs that shares nothing with the package: the format, a second time."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_pair(prefix: Path, documents: Sequence[Sequence[int]]) -> str:
    """Writes documents as Megatron's 32-bit pair without a manifest; returns the prefix."""
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
