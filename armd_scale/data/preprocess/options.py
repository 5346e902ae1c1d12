"""What a preprocessing run is asked to do, and the digests by which two runs are the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Literal, final

from armd_scale.data.manifest import ShardIndex, split_prefix
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.sources import Source, WorkUnit, find_sources, make_work_units
from armd_scale.errors import CorpusError

_SIDES = ("train", "valid", "test")
_SMALLEST_DOCUMENT_LIMIT = 1024


@final
@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """A preprocessing command."""

    inputs: tuple[str, ...]
    """Files, folders, globs or hub names, in order."""
    output: str
    """PREFIX of the files written."""
    tokenizer: str
    """A sentencepiece file, an HF tokenizer folder, or train:sentencepiece:VOCAB."""
    workers: int = 1
    reading: ReaderOptions = field(default_factory=ReaderOptions)
    split: tuple[str, ...] = ()
    """Fractions of train, valid and perhaps test, as written; none for a single pair."""
    shard: ShardIndex | None = None
    """Do only this part of the work; the parts are merged afterwards."""
    on_error: Literal["skip", "refuse"] = "skip"
    append_eod: bool = True
    overwrite: bool = False

    @property
    def prefix(self) -> str:
        """PREFIX of this run's files, which for a part of many names the part."""
        if self.shard is None:
            return self.output
        return f"{self.output}.shard-{self.shard.index}-of-{self.shard.count}"

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the sides of the split; one empty name without one."""
        return _SIDES[: len(self.split)] or ("",)

    @property
    def pairs(self) -> dict[str, str]:
        """Prefix of the pair of each side."""
        return {side: split_prefix(self.prefix, side) for side in self.sides}


@final
@dataclass(frozen=True)
class WorkPlan:
    """The work of the whole corpus, and where this run's part of it begins and ends."""

    sources: tuple[Source, ...]
    ignored: Mapping[str, int]
    units: tuple[WorkUnit, ...]
    start: int
    stop: int
    digest: str
    """Of what matters of the arguments, and names and sizes of inputs; equal for all shards."""
    workspace_key: str
    """As `digest`, with the part and the times of the files: what unfinished work belongs to."""

    @property
    def tasks(self) -> list[tuple[int, WorkUnit]]:
        """This run's units with their numbers."""
        return [(number, self.units[number]) for number in range(self.start, self.stop)]


def make_plan(options: PreprocessOptions, *, tokenizer: str) -> WorkPlan:
    """Looks at the input and cuts it into units.

    Args:
        options: the command.
        tokenizer: the fingerprint, or how one is to be trained.

    Raises:
        CorpusError: an option or input that cannot be.
    """
    _check(options)
    sources, ignored = find_sources(options.inputs)
    units = make_work_units(
        sources,
        text_documents=options.reading.document_unit,
        document_bytes=options.reading.max_document_bytes,
    )
    digest = _digest(
        [(source.path, source.size) for source in sources],
        asdict(options.reading),
        # Not on_error: finished work without a bad document is good for either choice.
        (options.split, options.append_eod, tokenizer),
    )
    shard = options.shard or ShardIndex(0, 1)
    times = [_mtime(source) for source in sources]
    return WorkPlan(
        tuple(sources),
        ignored,
        tuple(units),
        start=len(units) * shard.index // shard.count,
        stop=len(units) * (shard.index + 1) // shard.count,
        digest=digest,
        workspace_key=_digest(digest, asdict(shard), times),
    )


def split_bounds(fractions: Sequence[str]) -> tuple[int, ...]:
    """Upper ends of the sides' shares of the 2^64 hashes; all of them for one without a split.

    Raises:
        CorpusError: not two or three positive fractions of sum 1.
    """
    if not fractions:
        return (2**64,)
    try:
        values = [Fraction(text) for text in fractions]
    except (ValueError, ZeroDivisionError):
        values = []
    if len(values) not in (2, 3) or min(values) <= 0 or sum(values) != 1:
        raise CorpusError(
            "a split must be two or three positive fractions of sum 1 for train, valid and test, "
            f"such as 0.98,0.01,0.01, but got {','.join(fractions)}"
        )
    return tuple(int(bound * 2**64) for bound in accumulate(values))


def _check(options: PreprocessOptions) -> None:
    if options.workers < 1:
        raise CorpusError(f"workers must be at least 1, but got {options.workers}")
    if options.reading.max_document_bytes < _SMALLEST_DOCUMENT_LIMIT:
        raise CorpusError(
            f"the size at which documents are cut must be at least {_SMALLEST_DOCUMENT_LIMIT} "
            f"bytes, but got {options.reading.max_document_bytes}"
        )
    shard = options.shard
    if shard is not None and not 0 <= shard.index < shard.count:
        raise CorpusError(
            f"a shard must be written i/n with i from 0 to n-1, but got {shard.index}/{shard.count}"
        )
    split_bounds(options.split)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _mtime(source: Source) -> int:
    return 0 if source.kind == "hub" else Path(source.path).stat().st_mtime_ns
