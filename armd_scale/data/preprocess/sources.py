"""Find the files that the inputs of a preprocessing command name, and their order.

The result depends only on names and sizes, never on the number of workers or shards. Together with
`work_units` this makes a sharded, resumed or differently parallel run produce the same bytes.
"""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeAlias, final

from armd_scale.data.preprocess.compression import COMPRESSED_SUFFIXES
from armd_scale.data.tokenizer import HF_FILE, SENTENCEPIECE_FILE
from armd_scale.errors import CorpusError
from armd_scale.files import path_inside, read_regular_file, regular_file_status

SourceKind: TypeAlias = Literal["lines", "text", "parquet", "arrow", "hub"]
"""The reader of a source; `lines` are JSON lines."""

_KIND_OF_SUFFIX: dict[str, SourceKind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# Files that are read as plain text when they are found in a folder. A file that is named, or
# matched by a glob, is read whatever its suffix.
_TEXT_SUFFIXES = frozenset(
    """
    .txt .text .md .rst .tex .html .htm .xml .csv .tsv .srt .py .pyi .pyx .c .h .cc .cpp .cxx .hpp
    .cu .cuh .rs .go .java .kt .scala .cs .swift .m .js .jsx .ts .tsx .rb .php .pl .pm .lua .r .jl
    .hs .ml .lisp .el .vim .sh .bash .bat .ps1 .sql .css .scss .yaml .yml .toml .ini .cfg .cmake
    .proto
    """.split()  # noqa: SIM905 - as a list this would be forty lines
)
WORKSPACE_KEY_FILE = "key"
"""File in a workspace that holds the digest of the command it belongs to, and carries the lock."""
_HF_DATASET_STATE = "state.json"  # written by `Dataset.save_to_disk` beside its .arrow files
# The hub has no names over 96 characters.
_HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?(:[\w.-]*){0,2}")


@final
@dataclass(frozen=True)
class Source:
    """An input file, or a dataset of the Hugging Face hub.

    Attributes:
        path: path of the file, or name of the dataset.
        size: bytes; 0 for a hub dataset, whose size is not known.
        kind: how it is read.
        mtime_ns: modification time; with the size, it shows that the file was changed.
    """

    path: str
    size: int
    kind: SourceKind
    mtime_ns: int = 0

    @property
    def is_compressed(self) -> bool:
        """Whether the file can only be read from its start."""
        return self.path.endswith(COMPRESSED_SUFFIXES)


def find_sources(inputs: Sequence[str]) -> tuple[list[Source], Mapping[str, int]]:
    """Find the files of all inputs.

    Args:
        inputs: files, folders, globs and names of hub datasets.

    Returns:
        The sources, in the order of the inputs and sorted within a folder or glob. And by suffix
        the number of files in folders that were ignored, because no reader is known for them.

    Raises:
        CorpusError: an input does not exist or contains no file that can be read.
    """
    num_ignored: Counter[str] = Counter()
    sources: list[Source] = []
    for name in inputs:
        expanded = list(_expand(name, num_ignored))
        if not expanded:
            raise CorpusError(
                f"input {name} must contain text, JSON lines, Parquet or Arrow files, but contains "
                "none of them: check the path or give a glob that matches the files"
            )
        sources += expanded
    return sources, dict(sorted(num_ignored.items()))


def source_kind(path: str) -> SourceKind:
    """Return how a file is read, from its suffix; plain text if the suffix is not known."""
    return _KIND_OF_SUFFIX.get(_suffix(path), "text")


def _expand(name: str, num_ignored: Counter[str]) -> Iterator[Source]:
    if not name or "\0" in name:
        raise CorpusError(f"an input must be a path or the name of a dataset (got {name!r})")
    # The functions of os.path, and not the methods of Path, which raise errors for a name that is
    # too long or a `~user` that does not exist.
    path = os.path.expanduser(name)  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        yield from map(_file_source, _walk(Path(path), num_ignored))
    elif os.path.lexists(path):
        yield _file_source(str(Path(path)))
    elif glob.has_magic(name):
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - absolute patterns
        yield from (_file_source(match) for match in matches if not Path(match).is_dir())
    elif _may_be_hub_name(name):
        yield Source(name, 0, "hub")
    else:
        raise CorpusError(f"input {name} does not exist: check the path")


def _may_be_hub_name(name: str) -> bool:
    """Return whether a name that is not a path could name a hub dataset.

    A mistyped path should not be looked up on the hub: without a network that takes long, and the
    error would be about datasets. So a name with the suffix of a file, or inside an existing
    folder, is taken for a path.
    """
    looks_like_file = _suffix(name) in {*_KIND_OF_SUFFIX, *_TEXT_SUFFIXES} or (
        "/" in name and Path(name).parent.is_dir()
    )
    return _HUB_NAME.fullmatch(name) is not None and not looks_like_file


def _walk(folder: Path, num_ignored: Counter[str]) -> Iterator[str]:
    """Yield the readable files below a folder, in an order that is the same on every machine.

    Results of preprocessing in the folder are left out: with an --output below the input, the files
    of an earlier run would become documents of the next.
    """
    for root, folders, names in os.walk(folder, onerror=_raise_unreadable):
        # os.walk descends into this very list, so sorting it fixes the order
        folders[:] = sorted(name for name in folders if not _is_result_folder(Path(root, name)))
        if _HF_DATASET_STATE in names:
            yield from _saved_arrow_files(Path(root))
            continue
        for name in sorted(names):
            if _suffix(name) in _KIND_OF_SUFFIX or _suffix(name) in _TEXT_SUFFIXES:
                # This file of a saved DatasetDict lists its splits, each a folder of its own.
                if name != "dataset_dict.json" and not _is_manifest(Path(root, name)):
                    yield str(Path(root, name))
            else:
                num_ignored[_suffix(name) or "(none)"] += 1


def _is_result_folder(folder: Path) -> bool:
    """Return whether a folder is the workspace or the tokenizer of a result."""
    if folder.suffix == ".work":
        return (folder / WORKSPACE_KEY_FILE).is_file()
    return folder.suffix == ".tokenizer" and any(
        (folder / name).is_file() for name in (SENTENCEPIECE_FILE, HF_FILE)
    )


def _is_manifest(path: Path) -> bool:
    return path.suffix == ".json" and all(
        path.with_suffix(suffix).is_file() for suffix in (".bin", ".idx")
    )


def _raise_unreadable(error: OSError) -> NoReturn:
    raise CorpusError(
        f"{error.filename} cannot be read ({error.strerror}): check the input"
    ) from error


def _saved_arrow_files(folder: Path) -> Iterator[str]:
    """Yield the .arrow files of a saved dataset in its own order.

    The folder may also hold `cache-*.arrow` files of earlier transformations, so the dataset's list
    is used and not a glob.
    """
    path = folder / _HF_DATASET_STATE
    try:
        state = json.loads(read_regular_file(path))
        paths = [path_inside(folder, entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(
            f"{path} must list the .arrow files of a saved dataset, but does not ({error!r}): save "
            "the dataset again, or give a glob of its .arrow files"
        ) from error
    yield from map(str, paths)


def _file_source(path: str) -> Source:
    try:
        status = regular_file_status(path)
    except OSError as error:
        _raise_unreadable(error)
    return Source(path, status.st_size, source_kind(path), status.st_mtime_ns)


def _suffix(name: str) -> str:
    """Return the suffix below a compression suffix, in lower case: .jsonl of a.JSONL.gz."""
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
