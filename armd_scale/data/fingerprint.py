"""Tell in milliseconds whether a .bin/.idx dataset still has the tokens that it had."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from armd_scale.data.manifest import load_manifest
from armd_scale.errors import ShardError

_NUM_BLOCKS, _BLOCK_BYTES = 256, 4096


@final
@dataclass(frozen=True)
class DataFingerprint:
    """What identifies the content of a dataset, wherever its files are."""

    sampled: str
    """Hash of the sizes of its .bin and .idx, and of blocks spread over them."""
    recorded: str | None = None
    """SHA-256 of the whole .bin according to the manifest; None without one."""

    def matches(self, other: "DataFingerprint") -> bool:
        """Whether both can be of the same content."""
        both = (self.recorded, other.recorded)
        return self.sampled == other.sampled and (None in both or self.recorded == other.recorded)


def fingerprint(prefix: str) -> DataFingerprint:
    """Return the fingerprint of a dataset; at most 2 MB of it are read.

    A change between the sampled blocks is noticed only if the manifest was written anew, as
    preprocessing does.

    Raises:
        ShardError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for suffix in (".bin", ".idx"):
        path = Path(prefix + suffix)
        try:
            for data in _sizes_and_blocks(path):
                digest.update(data)
        except OSError as error:
            raise ShardError(
                f"{path} must be readable ({error.strerror}): fix data.train or the permissions"
            ) from error
    manifest = load_manifest(prefix)
    return DataFingerprint(
        digest.hexdigest(), None if manifest is None else manifest.sha256.get("bin")
    )


def _sizes_and_blocks(path: Path) -> Iterator[bytes]:
    """The size of a file as text, and blocks of it from start to end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        yield f"{size} ".encode()
        last = max(0, size - _BLOCK_BYTES)
        # Without repetitions: a small file is read once.
        for start in sorted({last * block // (_NUM_BLOCKS - 1) for block in range(_NUM_BLOCKS)}):
            file.seek(start)
            yield file.read(_BLOCK_BYTES)
