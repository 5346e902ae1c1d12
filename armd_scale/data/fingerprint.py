"""Tell in milliseconds whether a source of .bin/.idx datasets still has the tokens it had."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from armd_scale.data.manifest import load_manifest
from armd_scale.errors import ShardError

_NUM_BLOCKS, _BLOCK_BYTES = 256, 4096
_MIN_BLOCKS_PER_FILE = 2


@final
@dataclass(frozen=True)
class DataFingerprint:
    """What identifies the content of a source, wherever its files are."""

    sampled: str
    """Hash of the sizes of its .bin and .idx files, and of blocks spread over them."""
    recorded: str | None = None
    """SHA-256 of the whole .bin according to the manifest, of several .bin files a hash of theirs;
    None where one has no manifest."""

    def matches(self, other: "DataFingerprint") -> bool:
        """Whether both can be of the same content."""
        both = (self.recorded, other.recorded)
        return self.sampled == other.sampled and (None in both or self.recorded == other.recorded)


def fingerprint(prefixes: Sequence[str]) -> DataFingerprint:
    """Return the fingerprint of a source.

    At most 2 MB of it are read, and at most 16 KB of each dataset where there are over 128.
    A change between the sampled blocks is noticed only if the manifest was written anew, as
    preprocessing does.

    Args:
        prefixes: of its datasets, in order.

    Raises:
        ShardError: a file cannot be read.
    """
    digest = hashlib.sha256()
    num_blocks = max(_MIN_BLOCKS_PER_FILE, _NUM_BLOCKS // len(prefixes))
    for path in (Path(prefix + suffix) for prefix in prefixes for suffix in (".bin", ".idx")):
        try:
            for data in _size_and_blocks(path, num_blocks):
                digest.update(data)
        except OSError as error:
            raise ShardError(
                f"{path} must be readable ({error.strerror}): fix data.train or the permissions"
            ) from error
    return DataFingerprint(digest.hexdigest(), _recorded_hash(prefixes))


def _recorded_hash(prefixes: Sequence[str]) -> str | None:
    hashes: list[str] = []
    for prefix in prefixes:
        manifest = load_manifest(prefix)
        recorded = None if manifest is None else manifest.sha256.get("bin")
        if recorded is None:
            return None
        hashes.append(recorded)
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _size_and_blocks(path: Path, num_blocks: int) -> Iterator[bytes]:
    """The size of a file as text, and blocks of it from start to end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        yield f"{size} ".encode()
        last = max(0, size - _BLOCK_BYTES)
        # Without repetitions: a small file is read once.
        for start in sorted({last * block // (num_blocks - 1) for block in range(num_blocks)}):
            file.seek(start)
            yield file.read(_BLOCK_BYTES)
