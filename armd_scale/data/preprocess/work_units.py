"""Group and cut the source files into work units: what one worker encodes in one go.

The units depend only on the sources, never on the number of workers or shards, and their results
are joined in the order of the units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from armd_scale.data.preprocess.columnar import num_row_groups
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.formats import SourceKind
from armd_scale.data.preprocess.hub import num_hub_shards
from armd_scale.data.preprocess.sources import Source

# A few hundred units keep many workers evenly busy. The bounds on their size keep the fixed cost of
# a unit (three small files) low against encoding it, and the work that a killed run loses small.
_TARGET_NUM_UNITS = 256
_MIN_UNIT_BYTES = 1 << 20
_MAX_UNIT_BYTES = 32 << 20
# Empty files add nothing to the size of a unit, so their number is limited separately.
_MAX_UNIT_FILES = 4096


@final
@dataclass(frozen=True)
class WorkUnit:
    """Several small files, or a range of one large file.

    Attributes:
        kind: how the files are read.
        paths: the files in order.
        num_bytes: size for progress reports; an estimate for row groups and hub shards.
        start: start of the range, in bytes (lines, text), row groups (parquet) or shards (hub).
        stop: end of the range in the same unit; None: the end of the file.
        stamps: size and modification time of each file, when the unit was made; none for a hub
            dataset.
    """

    kind: SourceKind
    paths: tuple[str, ...]
    num_bytes: int
    start: int = 0
    stop: int | None = None
    stamps: tuple[tuple[int, int], ...] = ()

    def continues_document(self, options: ReaderOptions) -> bool:
        """Return whether the unit starts inside a document, which the unit before starts."""
        return self.kind == "text" and options.document_unit == "file" and self.start > 0

    def __str__(self) -> str:
        first, *others = self.paths
        if others:
            return f"{first} and the {len(others)} files after it"
        range_unit = {"parquet": "row groups", "hub": "shards"}.get(self.kind, "bytes")
        return first if self.stop is None else f"{first} {range_unit} {self.start}-{self.stop}"


def make_work_units(sources: Sequence[Source], options: ReaderOptions) -> list[WorkUnit]:
    """Divide the sources into work units.

    Neighboring small files share a unit, and large files are cut into several units.

    Args:
        sources: the files in order.
        options: how files are turned into documents, which decides where a file may be cut.

    Returns:
        The units, in the order in which their results are joined.

    Raises:
        CorpusError: a hub dataset cannot be loaded.
    """
    total_bytes = sum(source.size for source in sources)
    unit_bytes = min(max(total_bytes // _TARGET_NUM_UNITS, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    units: list[WorkUnit] = []
    group: list[Source] = []  # small files collected for the next unit
    room_bytes = unit_bytes
    for source in sources:
        is_small = source.kind in ("text", "lines", "csv") and source.size < unit_bytes
        fits = is_small and group and source.kind == group[0].kind and source.size <= room_bytes
        if group and (not fits or len(group) == _MAX_UNIT_FILES):
            units.append(_unit_of_files(group))
            group, room_bytes = [], unit_bytes
        if is_small:
            group.append(source)
            room_bytes -= source.size
        else:
            units += _cut(source, unit_bytes, options)
    return units + ([_unit_of_files(group)] if group else [])


def _unit_of_files(files: Sequence[Source]) -> WorkUnit:
    num_bytes = sum(file.size for file in files)
    stamps = tuple(stamp for file in files for stamp in _stamps(file))
    return WorkUnit(files[0].kind, tuple(file.path for file in files), num_bytes, stamps=stamps)


def _stamps(source: Source) -> tuple[tuple[int, int], ...]:
    return () if source.kind == "hub" else ((source.size, source.mtime_ns),)


def _cut(source: Source, unit_bytes: int, options: ReaderOptions) -> list[WorkUnit]:
    """Cut one large file into units; a file without random access by bytes stays whole."""
    if source.kind == "parquet":
        return _cut_by_count(source, num_row_groups(source.path))
    if source.kind == "hub":
        return _cut_by_count(source, num_hub_shards(source.path))
    is_by_line = source.kind == "lines" or (
        source.kind == "text" and options.document_unit == "line"
    )
    is_by_size = source.kind == "text" and options.document_unit == "file"
    # Paragraphs are not cut: where one starts is only known from the lines before it.
    if source.is_compressed or not (is_by_line or is_by_size):
        return [_unit_of_files([source])]
    # A long text is read in chunks that end near multiples of max_document_bytes, and a unit must
    # take whole chunks, so its size is a multiple too. Lines may be cut anywhere: a line belongs to
    # the unit in which it starts.
    chunk_bytes = options.max_document_bytes
    step = unit_bytes if is_by_line else max(1, unit_bytes // chunk_bytes) * chunk_bytes
    return [
        WorkUnit(
            source.kind,
            (source.path,),
            min(step, source.size - start),
            start,
            start + step,
            _stamps(source),
        )
        for start in range(0, source.size, step)
    ]


def _cut_by_count(source: Source, count: int | None) -> list[WorkUnit]:
    """Make one unit per row group or shard; a single unit if their number is not known."""
    if count is None:
        return [_unit_of_files([source])]
    return [
        WorkUnit(source.kind, (source.path,), source.size // count, i, i + 1, _stamps(source))
        for i in range(count)
    ]
