"""Join the parts of a result and move its files to their final names, the manifest last."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from armd_scale.data.indexed_format import IndexedPart, write_bin, write_idx
from armd_scale.data.manifest import Manifest, manifest_path, split_prefix
from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.preprocess.result_files import SHARD_SUFFIXES, is_same_tokenizer

# File in the workspace that exists from the moment on when files may appear at their final names.
_MARKER = "publishing"


@final
@dataclass(frozen=True)
class SplitParts:
    """One split of a result before its files are joined.

    Attributes:
        parts: the documents, in order.
        manifest: its manifest, without the checksums.
    """

    parts: Sequence[IndexedPart]
    manifest: Manifest


def publish(prefix: str, splits: Mapping[str, SplitParts], *, folder: Path) -> list[Manifest]:
    """Join the parts of all splits and move everything to its final name.

    Args:
        prefix: PREFIX of the result.
        splits: the parts, by split name.
        folder: the workspace; on the same file system as the result, with the tokenizer in
            `tokenizer/`.

    Returns:
        The manifests with checksums, one per split.

    Raises:
        ShardError: the disk is full or not writable.
    """
    with translate_os_errors(folder):
        (folder / _MARKER).touch()
        manifests = [_join(split, folder / f"joined{name}") for name, split in splits.items()]
        # Removed first: if this process is stopped during the renames below, the manifest of an
        # older result must not describe the new files.
        for name in splits:
            manifest_path(split_prefix(prefix, name)).unlink(missing_ok=True)
        _publish_tokenizer(folder / "tokenizer", Path(f"{prefix}.tokenizer"))
        # The manifest last: where it exists, the .bin and .idx beside it are complete.
        for suffix in SHARD_SUFFIXES:
            for name in splits:
                (folder / f"joined{name}{suffix}").rename(split_prefix(prefix, name) + suffix)
    return manifests


def was_publishing(folder: Path) -> bool:
    """Return whether a run with this workspace was stopped while it published its result."""
    return (folder / _MARKER).exists()


def _join(split: SplitParts, stem: Path) -> Manifest:
    """Write STEM.bin, .idx and .json of one split; return the manifest with the checksums."""
    dtype = np.dtype(split.manifest.dtype)
    checksums = {
        "bin": write_bin(stem.with_suffix(".bin"), split.parts),
        "idx": write_idx(stem.with_suffix(".idx"), split.parts, dtype=dtype),
    }
    manifest = replace(split.manifest, sha256=checksums)
    manifest.save(stem.with_suffix(".json"))
    return manifest


def _publish_tokenizer(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source`, unless it holds the same tokenizer.

    A copy, not the folder itself: if this process is stopped right after, the next run needs the
    workspace's own tokenizer to continue.
    """
    if target.is_dir() and is_same_tokenizer(source, target):
        return
    partial = source.with_name("tokenizer.copy")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
