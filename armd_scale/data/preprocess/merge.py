"""Merge the shards that several machines wrote into the files that a single run would write."""

import hashlib
from collections.abc import Iterator, Sequence
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
    split_prefix,
)
from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.preprocess.publish import SplitParts, publish, was_publishing
from armd_scale.data.preprocess.result_files import (
    SHARD_SUFFIXES,
    check_inputs_apart,
    check_tokenizer,
)
from armd_scale.data.preprocess.summary import log_summary
from armd_scale.data.preprocess.workspace import workspace
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ShardError


@final
@dataclass(frozen=True)
class _Shard:
    """One shard of a corpus.

    Attributes:
        prefix: PREFIX of its files.
        shard_index: its position among the shards.
        prefixes: prefix of its files for each split.
        manifests: manifest of each split.
    """

    prefix: str
    shard_index: ShardIndex
    prefixes: dict[str, str]
    manifests: dict[str, Manifest]

    @property
    def first_manifest(self) -> Manifest:
        """Manifest of the first split, for what all splits have in common."""
        return next(iter(self.manifests.values()))

    @property
    def compat_key(self) -> tuple[object, ...]:
        """What must be equal in all shards of one corpus."""
        manifest = self.first_manifest
        return (
            manifest.plan,
            [(source.path, source.size) for source in manifest.sources],
            manifest.tokenizer.fingerprint,
            self.shard_index.count,
            tuple(self.prefixes),
        )


def merge(prefixes: Sequence[str], output: str, *, overwrite: bool = False) -> list[Manifest]:
    """Merge the shards of one corpus into the same bytes that a single run would write.

    Args:
        prefixes: PREFIX of every shard, in any order; the files of a split are found from it.
        output: PREFIX of the result.
        overwrite: whether to replace files of an existing result.

    Returns:
        The manifests of the result, one per split.

    Raises:
        ShardError: a shard is missing, damaged or from another corpus.
    """
    shards = sorted(map(_load_shard, prefixes), key=lambda shard: shard.shard_index.index)
    _check_complete(shards)
    first = shards[0]
    splits = {
        name: SplitParts(
            [_indexed_part(shard.prefixes[name]) for shard in shards],
            merge_manifests(
                [shard.manifests[name] for shard in shards],
                tokenizer_folder=f"{Path(output).name}.tokenizer",
            ),
        )
        for name in first.prefixes
    }
    # An interrupted merge of the same shards starts again in its own workspace; it has no state to
    # continue from, since joining is little more than copying.
    key = hashlib.sha256(repr((first.compat_key, prefixes)).encode()).hexdigest()
    tokenizer = first.first_manifest.tokenizer_folder(first.prefix)
    check_inputs_apart(output, list(splits), inputs=_files(shards), tokenizer=str(tokenizer))
    with workspace(
        output, list(splits), key=key, overwrite=overwrite, has_progress=lambda _: False
    ) as folder:
        with translate_os_errors(folder):
            load_tokenizer(tokenizer).save(folder / "tokenizer")
        check_tokenizer(
            output,
            list(splits),
            new=folder / "tokenizer",
            was_publishing=was_publishing(folder),
        )
        manifests = publish(output, splits, folder=folder)
    log_summary(manifests, [split_prefix(output, name) for name in splits])
    return manifests


def _files(shards: Sequence[_Shard]) -> Iterator[str]:
    """Yield the files of all shards."""
    for shard in shards:
        for prefix in shard.prefixes.values():
            yield from (prefix + suffix for suffix in SHARD_SUFFIXES)


def _load_shard(prefix: str) -> _Shard:
    """Load and verify the files of one shard.

    Raises:
        ShardError: they are missing, damaged, or not a shard.
    """
    prefixes = existing_splits(prefix)
    manifests: dict[str, Manifest] = {}
    shard_index: ShardIndex | None = None
    for name, dataset in prefixes.items():
        manifest = load_manifest(dataset)
        shard_index = manifest.shard if manifest else None
        if manifest is None or shard_index is None:
            raise ShardError(
                f"{dataset} must be a shard made with --shard i/n, but no manifest says so: "
                "give the prefixes that end in .shard-i-of-n"
            )
        # All bytes are read here: merging damaged files would give them new, matching checksums,
        # and nothing could find the damage after that.
        verify(dataset)
        manifests[name] = manifest
    assert shard_index is not None
    return _Shard(prefix, shard_index, prefixes, manifests)


def _check_complete(shards: Sequence[_Shard]) -> None:
    """Check that these are all shards of one corpus, each given once.

    Raises:
        ShardError: they are not.
    """
    first = shards[0]
    for shard in shards:
        if shard.compat_key != first.compat_key:
            raise ShardError(
                f"all shards must come from the same command, but {shard.prefix} differs from "
                f"{first.prefix} in its inputs, arguments or tokenizer: run one of them again"
            )
    count = first.shard_index.count
    indices = [shard.shard_index.index for shard in shards]
    if indices != list(range(count)):
        raise ShardError(
            f"each of the {count} shards must be given once (got those of index "
            f"{', '.join(map(str, indices))}): give every prefix .shard-i-of-{count}"
        )


def _indexed_part(prefix: str) -> IndexedPart:
    """Return the documents of a .bin/.idx dataset as one part."""
    idx_path = Path(f"{prefix}.idx")
    header = read_header(idx_path)
    # An index stores the lengths and the first sequences of documents as the files of a part do. So
    # a finished dataset is a part as it is, but for the number of sequences at its end.
    return IndexedPart(
        bin_path=Path(f"{prefix}.bin"),
        lengths_path=idx_path,
        lengths_offset=HEADER.size,
        num_sequences=header.num_sequences,
        documents_path=idx_path,
        documents_offset=header.documents_offset,
        num_documents=header.num_document_indices - 1,
    )
