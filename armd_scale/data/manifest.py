"""The manifest beside a pair of shards: counts, digests, source files, tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from armd_scale.errors import ShardError

VERSION = 1
# Names kept of what was skipped; the count is always complete.
MAX_EXAMPLES = 20


@final
@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer of a pair; `folder` is relative to the manifest's own folder."""

    kind: str
    fingerprint: str
    folder: str


@final
@dataclass(frozen=True)
class SourceRecord:
    """One input file, by the name that the command gave it, and its size in bytes."""

    path: str
    size: int


@final
@dataclass(frozen=True)
class Skipped:
    """What could not be read: how many, and the first of them as `file:line: reason`."""

    count: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, other: "Skipped") -> "Skipped":
        """Both, this one first."""
        return Skipped(self.count + other.count, (self.examples + other.examples)[:MAX_EXAMPLES])


@final
@dataclass(frozen=True)
class SplitRecord:
    """Which side of a split the pair is, and the fractions of all sides as they were written."""

    split_name: str
    fractions: tuple[str, ...]


@final
@dataclass(frozen=True)
class ShardIndex:
    """The pair holds the `index`-th of `count` contiguous parts of the corpus."""

    index: int
    count: int


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known of a pair besides its tokens."""

    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents, so that nats per token turn into bits per byte."""
    cut_documents: int
    """Documents over the size limit, which were cut at line ends into several."""
    vocab_size: int
    eod: int | None
    """Token that ends every document; None where none was added."""
    dtype: str
    tokenizer: TokenizerRecord
    sha256: Mapping[str, str]
    """Hex digests under `bin` and `idx`."""
    sources: tuple[SourceRecord, ...]
    skipped: Skipped
    """Of the whole input, on every side of a split."""
    ignored: Mapping[str, int]
    """Files that a folder held and no reader is known for, counted by extension."""
    split: SplitRecord | None
    shard: ShardIndex | None
    plan: str
    """Digest of the inputs and arguments; parts of one corpus share it."""
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes JSON with one key a line."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def tokenizer_folder(self, prefix: str | Path) -> Path:
        """Where the tokenizer of the pair at `prefix` lies."""
        return Path(prefix).parent / self.tokenizer.folder


def split_prefix(prefix: str, side: str) -> str:
    """Prefix of the pair of a side of a split; the prefix itself for the empty side."""
    return f"{prefix}_{side}" if side else prefix


def existing_splits(prefix: str) -> dict[str, str]:
    """Prefixes by side of what is there at `prefix`: one pair, or those of a split.

    Raises:
        ShardError: neither is.
    """
    for split_names in (("",), ("train", "valid", "test")):
        pairs = {side: split_prefix(prefix, side) for side in split_names}
        there = {
            side: dataset
            for side, dataset in pairs.items()
            if any(Path(dataset + suffix).exists() for suffix in (".bin", ".idx", ".json"))
        }
        if there:
            return there
    raise ShardError(
        f"neither {prefix}.idx nor {prefix}_train.idx exists: check the prefix, or build the "
        "shards with tools/preprocess.py"
    )


def manifest_path(prefix: str | Path) -> Path:
    """PREFIX.json."""
    return Path(f"{prefix}.json")


def load_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of the pair at `prefix`; None for a pair that came without one.

    Raises:
        ShardError: the file is there but is not a manifest.
    """
    path = manifest_path(prefix)
    try:
        return _from_mapping(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{path} must be the manifest of a pair of shards, but is not ({error!r}): build the "
            "shards again, or remove it to read the pair without"
        ) from error


def merge_manifests(manifests: Sequence[Manifest], *, tokenizer_folder: str) -> Manifest:
    """The manifest of all parts together, that of a single run but for the digests.

    Args:
        manifests: of all parts, in order.
        tokenizer_folder: its new place, relative to the new manifest.
    """
    first = manifests[0]
    skipped = Skipped()
    for manifest in manifests:
        skipped = skipped.plus(manifest.skipped)
    return replace(
        first,
        documents=sum(m.documents for m in manifests),
        tokens=sum(m.tokens for m in manifests),
        text_bytes=sum(m.text_bytes for m in manifests),
        cut_documents=sum(m.cut_documents for m in manifests),
        tokenizer=replace(first.tokenizer, folder=tokenizer_folder),
        sha256={},
        skipped=skipped,
        shard=None,
    )


def _from_mapping(mapping: dict[str, Any]) -> Manifest:
    if mapping["version"] != VERSION:
        raise ValueError(f"version {mapping['version']}, known is {VERSION}")
    skipped, split, shard = mapping["skipped"], mapping["split"], mapping["shard"]
    records = {
        "tokenizer": TokenizerRecord(**mapping["tokenizer"]),
        "sources": tuple(SourceRecord(**source) for source in mapping["sources"]),
        "skipped": Skipped(skipped["count"], tuple(skipped["examples"])),
        "split": split and SplitRecord(split["side"], tuple(split["fractions"])),
        "shard": shard and ShardIndex(**shard),
    }
    return Manifest(**{**mapping, **records})
