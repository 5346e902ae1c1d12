"""The manifest PREFIX.json beside a .bin/.idx dataset: counts, checksums, sources, tokenizer."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast, final

from armd_scale.config.codec import decode_dataclass
from armd_scale.config.messages import format_value
from armd_scale.errors import ShardError
from armd_scale.files import path_inside, regular_file_status
from armd_scale.json_files import json_sha256, read_json_object

VERSION = 1
_HASH = "manifest_sha256"
"""Key with the SHA-256 of all others; manifests of earlier versions lack it."""
_SPLIT_KEYS = {"side": "split_name"}
"""Keys of format version 1, which existing shards have, and the fields that they are now."""
_ADVICE = "build the shards again, or delete it to read them without a manifest"
# Skipped documents that are described one by one; their count is always complete.
MAX_EXAMPLES = 20


@final
@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer of a dataset; `folder` is relative to the folder of the manifest."""

    kind: str
    fingerprint: str
    folder: str


@final
@dataclass(frozen=True)
class SourceRecord:
    """An input file: its path as the command found it, its size in bytes, and its content.

    `content_hash` is that of `preprocess.input_hash`; in a shard, of the parts that it contains.
    None for a hub dataset, and in manifests of earlier versions.
    """

    path: str
    size: int
    content_hash: str | None = None

    def __post_init__(self) -> None:
        add_hashes([self.content_hash])  # raises ValueError if it is not a hash


@final
@dataclass(frozen=True)
class Skipped:
    """Documents that could not be read: how many, and the first ones as `file:line: reason`.

    `files` lists all files that could not be read, or not to their end, in the same form. `reasons`
    counts the documents by the class of their reason, such as `not UTF-8`; `reason_examples` has
    the first of each class. Manifests of earlier versions lack both.
    """

    count: int = 0
    examples: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    reason_examples: Mapping[str, str] = field(default_factory=dict[str, str])

    def plus(self, other: "Skipped") -> "Skipped":
        """Return the sum; the examples of this one come first."""
        return Skipped(
            self.count + other.count,
            (self.examples + other.examples)[:MAX_EXAMPLES],
            self.files + other.files,
            add_counts(self.reasons, other.reasons),
            dict(sorted({**other.reason_examples, **self.reason_examples}.items())),
        )


@final
@dataclass(frozen=True)
class RoundTrip:
    """Sampled documents that were decoded again, and how many of them came back changed.

    `example` says what was lost of the first of those.
    """

    documents: int = 0
    changed: int = 0
    example: str = ""

    def plus(self, other: "RoundTrip") -> "RoundTrip":
        """Return the sum; the example of this one comes first."""
        documents, changed = self.documents + other.documents, self.changed + other.changed
        return RoundTrip(documents, changed, self.example or other.example)


@final
@dataclass(frozen=True)
class ReadRecord:
    """What was read of the whole input; every split of a corpus says the same."""

    documents: int = 0
    """Documents that are in the shards, in all splits together."""
    text_bytes: int = 0
    """Their UTF-8 bytes."""
    special_tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    """How often special tokens are written out in the text, by their spelling."""
    round_trip: RoundTrip = RoundTrip()

    def plus(self, other: "ReadRecord") -> "ReadRecord":
        """Return the sum."""
        return ReadRecord(
            self.documents + other.documents,
            self.text_bytes + other.text_bytes,
            add_counts(self.special_tokens, other.special_tokens),
            self.round_trip.plus(other.round_trip),
        )


@final
@dataclass(frozen=True)
class SplitRecord:
    """Which split a dataset is (train, valid or test), and the fractions as the user wrote them."""

    split_name: str
    fractions: tuple[str, ...]


@final
@dataclass(frozen=True)
class ShardIndex:
    """Shard `index` of `count`, from 0; shards are contiguous parts of a corpus."""

    index: int
    count: int


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything known about a dataset besides its tokens."""

    documents: int
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents, used to convert nats per token to bits per byte."""
    chunked_documents: int
    """Number of documents over the size limit, which were encoded in chunks."""
    vocab_size: int
    eod: int | None
    """Token at the end of every document; None if none was added."""
    prefix_ids: tuple[int, ...] = ()
    """Tokens at the start of every document; none in manifests of earlier versions."""
    dtype: str
    """NumPy name of the width of a token in the .bin file."""
    tokenizer: TokenizerRecord
    sha256: Mapping[str, str]
    """Hex checksums of the files, under `bin` and `idx`."""
    sources: tuple[SourceRecord, ...]
    skipped: Skipped
    """In the whole input; every split of a corpus says the same."""
    ignored: Mapping[str, int]
    """Number of files and folders in input folders that are not corpus, by name or suffix."""
    split: SplitRecord | None
    shard: ShardIndex | None
    plan: str
    """Digest of the inputs and arguments, equal in all shards of a corpus."""
    read: ReadRecord = ReadRecord()
    """Empty in manifests of earlier versions."""
    special_tokens: str = "ids"
    """`text` or `ids`: what special tokens that are written out in the text became."""
    version: int = VERSION

    def __post_init__(self) -> None:
        names = ("documents", "tokens", "text_bytes", "chunked_documents", "vocab_size")
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0 (got {getattr(self, name)})")

    def save(self, path: Path) -> None:
        """Write the manifest as JSON, one key per line."""
        mapping = _to_mapping(self)
        mapping[_HASH] = json_sha256(mapping)
        path.write_text(json.dumps(mapping, indent=1) + "\n", encoding="utf-8")

    def tokenizer_folder(self, prefix: str | Path) -> Path:
        """Return the folder of the tokenizer of the dataset at `prefix`.

        Raises:
            ShardError: it is not in the folder of the manifest.
        """
        try:
            return path_inside(Path(prefix).parent, self.tokenizer.folder)
        except ValueError as error:
            raise ShardError(
                f"the tokenizer of shards must be in the folder of their manifest, and "
                f"{manifest_path(prefix)} says that {error}: copy PREFIX.tokenizer beside it"
            ) from error


def split_prefix(prefix: str, split_name: str) -> str:
    """Return the prefix of a split; the prefix itself for the empty name of an unsplit dataset."""
    return f"{prefix}_{split_name}" if split_name else prefix


def existing_splits(prefix: str) -> dict[str, str]:
    """Find the datasets at `prefix`: one dataset, or those of a split.

    Returns:
        Prefixes by split name; the name is empty for an unsplit dataset.

    Raises:
        ShardError: there are none.
    """
    # The unsplit dataset first: PREFIX itself is the more direct reading of what the user typed.
    for split_names in (("",), ("train", "valid", "test")):
        prefixes = {name: split_prefix(prefix, name) for name in split_names}
        existing = {
            name: dataset
            for name, dataset in prefixes.items()
            if any(Path(dataset + suffix).exists() for suffix in (".bin", ".idx", ".json"))
        }
        if existing:
            return existing
    raise ShardError(
        f"neither {prefix}.idx nor {prefix}_train.idx exists: check the prefix, or build the "
        "shards with tools/preprocess.py"
    )


def manifest_path(prefix: str | Path) -> Path:
    """Return PREFIX.json."""
    return Path(f"{prefix}.json")


def load_manifest(prefix: str | Path) -> Manifest | None:
    """Load the manifest of a dataset; None for one without, as other programs write it.

    Raises:
        ShardError: the file exists but is not a manifest.
    """
    path = manifest_path(prefix)
    # A missing file is normal (datasets of other programs), a file that is not a manifest is not.
    try:
        regular_file_status(path)
    except FileNotFoundError:
        return None
    except OSError:
        pass  # reported below
    return _from_mapping(read_json_object(path, error_class=ShardError, advice=_ADVICE), path)


def merge_manifests(manifests: Sequence[Manifest], *, tokenizer_folder: str) -> Manifest:
    """Return the manifest of all shards together, as a single run writes it, without checksums.

    Args:
        manifests: of all shards, in order.
        tokenizer_folder: folder of the tokenizer, relative to the merged manifest.
    """
    first = manifests[0]
    skipped, read = Skipped(), ReadRecord()
    for manifest in manifests:
        skipped, read = skipped.plus(manifest.skipped), read.plus(manifest.read)
    # Each shard lists the sources and ignored files of the whole corpus, so these are not summed;
    # but the hash of a source is a sum over the parts that are in the shards.
    sources = tuple(
        replace(records[0], content_hash=add_hashes(record.content_hash for record in records))
        for records in zip(*(manifest.sources for manifest in manifests), strict=True)
    )
    return replace(
        first,
        documents=sum(m.documents for m in manifests),
        tokens=sum(m.tokens for m in manifests),
        text_bytes=sum(m.text_bytes for m in manifests),
        chunked_documents=sum(m.chunked_documents for m in manifests),
        tokenizer=replace(first.tokenizer, folder=tokenizer_folder),
        sha256={},
        sources=sources,
        skipped=skipped,
        read=read,
        shard=None,
    )


def add_hashes(hashes: Iterable[str | None]) -> str | None:
    """Add the content hashes of parts of a file; None if one of them is not known."""
    values = list(hashes)
    known = [int(value, 16) for value in values if value is not None]
    return f"{sum(known) % (1 << 256):064x}" if len(known) == len(values) else None


def add_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Add counts by name; the result is sorted by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def _to_mapping(manifest: Manifest) -> dict[str, Any]:
    mapping = asdict(manifest)
    if manifest.split is not None:
        keys = {field: key for key, field in _SPLIT_KEYS.items()}
        mapping["split"] = {keys.get(name, name): value for name, value in mapping["split"].items()}
    return mapping


def _from_mapping(mapping: dict[str, Any], path: Path) -> Manifest:
    if mapping.get("version") != VERSION:
        raise ShardError(
            f"{path} must be a manifest of version {VERSION} (got version "
            f"{format_value(mapping.get('version'))}): {_ADVICE}"
        )
    recorded = mapping.pop(_HASH, None)
    if recorded is not None and recorded != json_sha256(mapping):
        raise ShardError(
            f"{path} must be as it was written, and has changed since ({_HASH} differs): {_ADVICE}"
        )
    # Documents that earlier versions split into several.
    if "cut_documents" in mapping:
        mapping["chunked_documents"] = mapping.pop("cut_documents")
    split = mapping.get("split")
    if isinstance(split, dict):  # see _to_mapping
        named = cast(dict[str, Any], split)
        mapping["split"] = {_SPLIT_KEYS.get(key, key): value for key, value in named.items()}
    return decode_dataclass(mapping, Manifest, source=path, error_class=ShardError, advice=_ADVICE)
