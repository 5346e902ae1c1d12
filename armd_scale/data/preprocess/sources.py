"""Which files an input names, in what order, and how they are cut into units of work.

Everything here is a pure function of the input (names and sizes), never of the number of workers
or shards: that is what makes a sharded, resumed or differently parallel run give the same bytes.
"""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from armd_scale.data.preprocess.compression import COMPRESSED
from armd_scale.data.preprocess.documents import TextDocuments
from armd_scale.data.preprocess.hub import num_hub_shards
from armd_scale.errors import CorpusError

Kind = Literal["lines", "text", "parquet", "arrow", "hub"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# What a folder contributes besides the above; a file named or globbed is read whatever its name.
_TEXT_SUFFIXES = frozenset(
    """
    .txt .text .md .rst .tex .html .htm .xml .csv .tsv .srt .py .pyi .pyx .c .h .cc .cpp .cxx .hpp
    .cu .cuh .rs .go .java .kt .scala .cs .swift .m .js .jsx .ts .tsx .rb .php .pl .pm .lua .r .jl
    .hs .ml .lisp .el .vim .sh .bash .bat .ps1 .sql .css .scss .yaml .yml .toml .ini .cfg .cmake
    .proto
    """.split()  # noqa: SIM905 (a column of forty lines says no more)
)
_HF_DATASET_STATE = "state.json"  # what `Dataset.save_to_disk` leaves beside its .arrow files
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]*){0,2}")
# Some hundreds of units keep many workers evenly busy; the bounds keep the overhead of a unit small
# against its encoding, and the loss small when a run is killed.
_UNITS_WANTED = 256
_MIN_UNIT_BYTES = 1 << 20
_MAX_UNIT_BYTES = 32 << 20
_MAX_UNIT_FILES = 4096


@final
@dataclass(frozen=True)
class Source:
    """An input file, or a hub dataset of unknown size (0)."""

    path: str
    size: int
    kind: Kind

    @property
    def compressed(self) -> bool:
        """Whether the file can only be read from its beginning."""
        return self.path.endswith(COMPRESSED)


@final
@dataclass(frozen=True)
class WorkUnit:
    """A piece of work: several small files, or a part of one.

    `start` and `stop` count bytes (lines, text), row groups (parquet) or shards (hub); a `stop` of
    None is the end.
    """

    kind: Kind
    paths: tuple[str, ...]
    num_bytes: int
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        first, *others = self.paths
        if others:
            return f"{first} and the {len(others)} files after it"
        what = {"parquet": "row groups", "hub": "shards"}.get(self.kind, "bytes")
        return first if self.stop is None else f"{first} {what} {self.start}-{self.stop}"


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], Mapping[str, int]]:
    """The files of all inputs, in the order given and sorted within a folder or glob.

    Returns:
        the sources, and by extension the number of files in folders that no reader is known for.

    Raises:
        CorpusError: an input that names nothing.
    """
    ignored: Counter[str] = Counter()
    sources: list[Source] = []
    for name in inputs:
        found = list(_expand(name, ignored))
        if not found:
            raise CorpusError(
                f"input {name} must name text, JSON lines, parquet or arrow files, but holds none "
                "of them: check the path or give a glob of the files"
            )
        sources += found
    return sources, dict(sorted(ignored.items()))


def make_work_units(
    sources: Sequence[Source], *, text_documents: TextDocuments, document_bytes: int
) -> list[WorkUnit]:
    """The work, in the order in which its results are joined.

    Args:
        sources: the files, in order.
        text_documents: what a document of a text file is.
        document_bytes: size at which a longer text file is cut.
    """
    total = sum(source.size for source in sources)
    unit_bytes = min(max(total // _UNITS_WANTED, _MIN_UNIT_BYTES), _MAX_UNIT_BYTES)
    units: list[WorkUnit] = []
    group: list[Source] = []
    room = unit_bytes
    for source in sources:
        small = source.kind in ("text", "lines") and source.size < unit_bytes
        fits = small and group and source.kind == group[0].kind and source.size <= room
        if group and (not fits or len(group) == _MAX_UNIT_FILES):
            units.append(_whole(group))
            group, room = [], unit_bytes
        if small:
            group.append(source)
            room -= source.size
        else:
            units += _cut(source, unit_bytes, text_documents, document_bytes)
    return units + ([_whole(group)] if group else [])


def kind_of(path: str) -> Kind:
    """The reader that a file's extension asks for; plain text for what is not known."""
    return _KINDS.get(_suffix(path), "text")


def _expand(name: str, ignored: Counter[str]) -> Iterator[Source]:
    path = Path(name).expanduser()
    if path.is_file():
        yield _source(str(path))
    elif path.is_dir():
        yield from map(_source, _walk(path, ignored))
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        yield from (_source(match) for match in matches if Path(match).is_file())
    elif _may_be_hub_name(name):
        yield Source(name, 0, "hub")
    else:
        raise CorpusError(f"input {name} does not exist: check the path")


def _may_be_hub_name(name: str) -> bool:
    """Whether what names no file could name a dataset; without a network, asking takes long."""
    looks_like_file = _suffix(name) in {*_KINDS, *_TEXT_SUFFIXES} or (
        "/" in name and Path(name).parent.is_dir()
    )
    return _HUB_NAME.fullmatch(name) is not None and not looks_like_file


def _walk(folder: Path, ignored: Counter[str]) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        if _HF_DATASET_STATE in names:
            yield from _saved_arrow_files(Path(root))
            continue
        for name in sorted(names):
            if _suffix(name) in _KINDS or _suffix(name) in _TEXT_SUFFIXES:
                # The names of a saved DatasetDict's parts; the parts are folders of their own.
                if name != "dataset_dict.json":
                    yield str(Path(root, name))
            else:
                ignored[_suffix(name) or "(none)"] += 1


def _saved_arrow_files(folder: Path) -> Iterator[str]:
    try:
        state = json.loads((folder / _HF_DATASET_STATE).read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{folder / _HF_DATASET_STATE} must list the .arrow files of a saved dataset, but does "
            f"not ({error!r}): save the dataset again, or give a glob of its .arrow files"
        ) from error
    yield from (str(folder / name) for name in names)


def _source(path: str) -> Source:
    try:
        return Source(path, Path(path).stat().st_size, kind_of(path))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): check the input") from error


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()


def _whole(group: Sequence[Source]) -> WorkUnit:
    return WorkUnit(group[0].kind, tuple(s.path for s in group), sum(s.size for s in group))


def _cut(
    source: Source, unit_bytes: int, text_documents: TextDocuments, document_bytes: int
) -> list[WorkUnit]:
    """The units of one large file; what has no random access by bytes stays whole."""
    if source.kind == "parquet":
        return _cut_by_count(source, _num_row_groups(source.path))
    if source.kind == "hub":
        return _cut_by_count(source, num_hub_shards(source.path))
    by_line = source.kind == "lines" or (source.kind == "text" and text_documents == "line")
    by_size = source.kind == "text" and text_documents == "file"
    if source.compressed or not (by_line or by_size):
        return [_whole([source])]
    # A long text is cut near multiples of document_bytes, so a unit takes some of them whole.
    step = unit_bytes if by_line else max(1, unit_bytes // document_bytes) * document_bytes
    return [
        WorkUnit(source.kind, (source.path,), min(step, source.size - start), start, start + step)
        for start in range(0, source.size, step)
    ]


def _cut_by_count(source: Source, count: int | None) -> list[WorkUnit]:
    if count is None:
        return [_whole([source])]
    return [
        WorkUnit(source.kind, (source.path,), source.size // count, i, i + 1) for i in range(count)
    ]


def _num_row_groups(path: str) -> int | None:
    """Row groups of a parquet file; None when it is damaged, which its reader will then report."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.num_row_groups or None
    except (pyarrow.ArrowException, OSError):
        return None
