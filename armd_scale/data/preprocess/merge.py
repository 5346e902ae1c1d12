"""The shards that many machines wrote, joined into the files that a single run writes."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from armd_scale.data.indexed_format import HEADER, IndexedPart, read_header
from armd_scale.data.indexed_reader import verify
from armd_scale.data.manifest import (
    Manifest,
    ShardIndex,
    existing_splits,
    load_manifest,
    merge_manifests,
)
from armd_scale.data.preprocess.encode_unit import translate_os_errors
from armd_scale.data.preprocess.publish import SplitParts, publish
from armd_scale.data.preprocess.workspace import workspace
from armd_scale.errors import ShardError


@final
@dataclass(frozen=True)
class _Shard:
    """One part of many: where it is in the order, and the prefix and manifest of each side."""

    prefix: str
    shard_index: ShardIndex
    pairs: dict[str, str]
    manifests: dict[str, Manifest]

    @property
    def any_manifest(self) -> Manifest:
        """That of the first side, for what all sides share."""
        return next(iter(self.manifests.values()))

    @property
    def compat_key(self) -> tuple[object, ...]:
        """What all shards of one corpus have in common."""
        manifest = self.any_manifest
        return (
            manifest.plan,
            manifest.tokenizer.fingerprint,
            self.shard_index.count,
            tuple(self.pairs),
        )


def merge(prefixes: Sequence[str], output: str, *, overwrite: bool = False) -> list[Manifest]:
    """Joins the shards of one corpus into the very files that a single run writes.

    Args:
        prefixes: of all shards, in any order; `_train` and so on are found by themselves.
        output: PREFIX of the result.
        overwrite: whether files there may be replaced.

    Raises:
        ShardError: a shard is missing, damaged or of another corpus.
    """
    shards = sorted(
        (_load(prefix) for prefix in prefixes), key=lambda shard: shard.shard_index.index
    )
    _check_complete(shards)
    first = shards[0]
    pairs = {
        side: SplitParts(
            [_part_of(shard.pairs[side]) for shard in shards],
            merge_manifests(
                [shard.manifests[side] for shard in shards],
                tokenizer_folder=f"{Path(output).name}.tokenizer",
            ),
        )
        for side in first.pairs
    }
    guard = hashlib.sha256(repr((first.compat_key, prefixes)).encode()).hexdigest()
    with workspace(output, list(pairs), guard=guard, overwrite=overwrite) as folder:
        with translate_os_errors(folder):
            tokenizer = first.any_manifest.tokenizer_folder(first.prefix)
            shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
        return publish(output, pairs, folder=folder)


def _load(prefix: str) -> _Shard:
    pairs = existing_splits(prefix)
    manifests: dict[str, Manifest] = {}
    place: ShardIndex | None = None
    for side, pair in pairs.items():
        manifest = load_manifest(pair)
        place = manifest.shard if manifest else None
        if manifest is None or place is None:
            raise ShardError(
                f"{pair} must be a shard made with --shard i/n, but no manifest says so: give the "
                "prefixes that end in .shard-i-of-n"
            )
        # Joining damaged files would give them fresh checksums.
        verify(pair)
        manifests[side] = manifest
    assert place is not None
    return _Shard(prefix, place, pairs, manifests)


def _check_complete(shards: Sequence[_Shard]) -> None:
    first = shards[0]
    for shard in shards:
        if shard.compat_key != first.compat_key:
            raise ShardError(
                f"all shards must come from one command, but {shard.prefix} differs from "
                f"{first.prefix} in inputs, arguments or tokenizer: run one of them again"
            )
    count = first.shard_index.count
    given = [shard.shard_index.index for shard in shards]
    if given != list(range(count)):
        raise ShardError(
            f"each of the {count} shards must be given once, but got those of index "
            f"{', '.join(map(str, given))}: name every .shard-i-of-{count} prefix"
        )


def _part_of(prefix: str) -> IndexedPart:
    idx_path = Path(f"{prefix}.idx")
    # Right after the header an index holds the lengths, in the very form that a part has them.
    return IndexedPart(
        Path(f"{prefix}.bin"), idx_path, HEADER.size, read_header(idx_path).num_sequences
    )
