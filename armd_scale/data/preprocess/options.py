"""Options of a preprocessing run, and the work plan that follows from them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import final

from armd_scale.data.manifest import ShardIndex, split_prefix
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.encode_job import OnError
from armd_scale.data.preprocess.sources import Source, find_sources
from armd_scale.data.preprocess.splits import SPLIT_NAMES, split_bounds
from armd_scale.data.preprocess.work_units import WorkUnit, make_work_units
from armd_scale.data.tokenizer import SpecialTokens, Tokenizer
from armd_scale.errors import CorpusError

_SMALLEST_DOCUMENT_LIMIT_BYTES = 1024


@final
@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """Options of a preprocessing run."""

    inputs: tuple[str, ...]
    """Files, folders, globs or names of hub datasets, in order."""
    output: str
    """PREFIX of the result."""
    tokenizer: str
    """A sentencepiece model, a Hugging Face tokenizer folder, or train:sentencepiece:VOCAB."""
    workers: int = 1
    """Number of worker processes."""
    reader: ReaderOptions = field(default_factory=ReaderOptions)
    split: tuple[str, ...] = ()
    """Fractions of train, valid and perhaps test, as written; empty: one dataset for all."""
    shard: ShardIndex | None = None
    """Encode only this shard of the corpus; the shards are merged afterwards."""
    input_split: str = ""
    """The split to read of input folders that hold several; "all" for every one."""
    on_error: OnError = "skip-documents"
    max_skipped: float = 0.01
    """Largest share of the documents that may be skipped; more end the run."""
    special_tokens: SpecialTokens = "text"
    """What a special token that is written out in a text becomes."""
    prepend_bos: bool | None = None
    """Whether every document starts with the tokenizer's BOS; None: as the tokenizer does."""
    append_eod: bool = True
    """Whether to append the tokenizer's end-of-sequence token to every document."""
    overwrite: bool = False
    """Whether to replace an existing result, or unfinished work of another command."""

    @property
    def prefix(self) -> str:
        """PREFIX of the files of this run; that of a shard contains its index."""
        if self.shard is None:
            return self.output
        return f"{self.output}.shard-{self.shard.index}-of-{self.shard.count}"

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits; one empty name without a split."""
        return SPLIT_NAMES[: len(self.split)] or ("",)

    @property
    def split_prefixes(self) -> dict[str, str]:
        """Prefix of the files of each split, by its name."""
        return {name: split_prefix(self.prefix, name) for name in self.split_names}


@final
@dataclass(frozen=True)
class WorkPlan:
    """The work units of the whole corpus, and the range of them that this run encodes."""

    sources: tuple[Source, ...]
    ignored: Mapping[str, int]
    """Number of files and folders in folders that are not corpus, by name or suffix."""
    units: tuple[WorkUnit, ...]
    start: int
    """Index of this run's first unit."""
    stop: int
    """Index after this run's last unit."""
    digest: str
    """Hash of the names and sizes of the inputs and of the arguments; equal in all shards."""
    workspace_key: str
    """Hash of the inputs as they were given, the arguments and the shard.

    Unfinished work belongs to it, and not to the sizes or times of the files: an input that made a
    run fail is fixed, and the same command continues with the units of the other inputs.
    """
    inputs_key: str
    """Hash of `digest` and the modification times of the files."""

    @property
    def indexed_units(self) -> list[tuple[int, WorkUnit]]:
        """The units of this run with their indices in the whole corpus."""
        return [(index, self.units[index]) for index in range(self.start, self.stop)]


def make_plan(options: PreprocessOptions, *, tokenizer: str) -> WorkPlan:
    """Look at the inputs and divide them into work units.

    Args:
        options: the options of the run.
        tokenizer: `identify_tokenizer` of it, or how it is to be trained.

    Raises:
        CorpusError: an option is invalid or an input does not exist.
    """
    _check(options)
    sources, ignored = find_sources(options.inputs, input_split=options.input_split)
    units = make_work_units(sources, options.reader)
    # on_error and max_skipped are left out: a unit is the same under all values that allow it.
    arguments = (
        options.split,
        options.prepend_bos,
        options.append_eod,
        tokenizer,
        options.special_tokens,
    )
    reader_keys = _reader_digest_keys(options.reader)
    digest = _digest([(source.path, source.size) for source in sources], reader_keys, arguments)
    shard = options.shard or ShardIndex(0, 1)
    return WorkPlan(
        tuple(sources),
        ignored,
        tuple(units),
        # Neighboring shards compute the same border, so the ranges cover all units exactly once.
        start=_shard_border(units, options.reader, shard.index, shard.count),
        stop=_shard_border(units, options.reader, shard.index + 1, shard.count),
        digest=digest,
        workspace_key=_digest(
            options.inputs, options.input_split, reader_keys, arguments, asdict(shard)
        ),
        # Not in the digest, because copies of the corpus on other machines, where other shards are
        # made, may have other times.
        inputs_key=_digest(digest, [source.mtime_ns for source in sources]),
    )


def _shard_border(units: Sequence[WorkUnit], reader: ReaderOptions, index: int, count: int) -> int:
    """Return the index of the first unit of a shard: one that does not start inside a document."""
    border = len(units) * index // count
    while border < len(units) and units[border].continues_document(reader):
        border += 1
    return border


def identify_tokenizer(tokenizer: Tokenizer) -> str:
    """Return what identifies a tokenizer and how it starts texts."""
    return f"{tokenizer.fingerprint} {tokenizer.prefix_ids}"


def _reader_digest_keys(reader: ReaderOptions) -> dict[str, object]:
    # These keys are hashed into manifests. Under other keys, existing shards would look like those
    # of another command: they could not be merged with new ones, nor be recognized as complete.
    return {
        "text_key": reader.text_key,
        "text_documents": reader.document_unit,
        # Called document_bytes where it was the size at which a document became several.
        "chunk_bytes": reader.max_document_bytes,
        "keep_empty": reader.keep_empty,
    }


def _check(options: PreprocessOptions) -> None:
    if options.workers < 1:
        raise CorpusError(f"--workers must be >= 1 (got {options.workers})")
    if options.reader.max_document_bytes < _SMALLEST_DOCUMENT_LIMIT_BYTES:
        raise CorpusError(
            f"--max-document-bytes must be >= {_SMALLEST_DOCUMENT_LIMIT_BYTES} "
            f"(got {options.reader.max_document_bytes})"
        )
    if not 0 <= options.max_skipped <= 1:
        raise CorpusError(
            f"--max-skipped must be a share from 0 to 1 (got {options.max_skipped:g})"
        )
    shard = options.shard
    if shard is not None and not 0 <= shard.index < shard.count:
        raise CorpusError(
            f"--shard must be written i/n with i from 0 to n-1 (got {shard.index}/{shard.count})"
        )
    split_bounds(options.split)


def _digest(*values: object) -> str:
    # JSON, not hash() or pickle: it is the same in every process and Python version.
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
