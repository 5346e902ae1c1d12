"""Many parts into the pairs of the result, which appear by rename, the manifest last."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np

from armd_scale.data.indexed_format import IndexedPart, write_bin, write_idx
from armd_scale.data.manifest import Manifest, manifest_path, split_prefix
from armd_scale.data.preprocess.encode_unit import translate_os_errors


@final
@dataclass(frozen=True)
class SplitParts:
    """One side of a result before it is written; its manifest still lacks the digests."""

    parts: Sequence[IndexedPart]
    manifest: Manifest


def publish(prefix: str, pairs: Mapping[str, SplitParts], *, folder: Path) -> list[Manifest]:
    """Joins the parts of all sides and moves everything to its final name.

    Args:
        prefix: of the result.
        pairs: by side.
        folder: of unfinished work, on the same disk, with the tokenizer in `tokenizer/`.

    Raises:
        ShardError: the disk is full or not writable.
    """
    with translate_os_errors(folder):
        manifests = [_join(pair, folder / f"joined{side}") for side, pair in pairs.items()]
        # An old manifest must not stand beside new files, were we to be stopped in between.
        for side in pairs:
            manifest_path(split_prefix(prefix, side)).unlink(missing_ok=True)
        _publish_tokenizer(folder / "tokenizer", Path(f"{prefix}.tokenizer"))
        for suffix in (".bin", ".idx", ".json"):
            for side in pairs:
                (folder / f"joined{side}{suffix}").rename(split_prefix(prefix, side) + suffix)
    return manifests


def _join(pair: SplitParts, stem: Path) -> Manifest:
    dtype = np.dtype(pair.manifest.dtype)
    digests = {
        "bin": write_bin(stem.with_suffix(".bin"), pair.parts),
        "idx": write_idx(stem.with_suffix(".idx"), pair.parts, dtype=dtype),
    }
    manifest = replace(pair.manifest, sha256=digests)
    manifest.save(stem.with_suffix(".json"))
    return manifest


def _publish_tokenizer(new: Path, old: Path) -> None:
    """Moves a copy, for a run stopped right after this still needs its own to continue."""
    unfinished = new.with_name("tokenizer.copy")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(new, unfinished)
    if old.exists():
        shutil.rmtree(old)
    unfinished.rename(old)
