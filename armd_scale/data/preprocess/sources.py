"""Find the files that the inputs of a preprocessing command name, and their order.

The result depends only on names and sizes, never on the number of workers or shards. Together with
`work_units` this makes a sharded, resumed or differently parallel run produce the same bytes.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from armd_scale.data.preprocess.compression import compression_suffix
from armd_scale.data.preprocess.folders import find_folder_files, raise_unreadable
from armd_scale.data.preprocess.formats import (
    SourceKind,
    check_supported,
    has_known_suffix,
    source_kind,
)
from armd_scale.errors import CorpusError
from armd_scale.files import regular_file_status

_MAX_COUNTS = 10
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
        return compression_suffix(self.path) != ""


def find_sources(
    inputs: Sequence[str], *, input_split: str = ""
) -> tuple[list[Source], Mapping[str, int]]:
    """Find the files of all inputs.

    Args:
        inputs: files, folders, globs and names of hub datasets.
        input_split: the split to read of a folder that holds several; see `dataset_splits`.

    Returns:
        The sources, in the order of the inputs and sorted within a folder or glob. And by name or
        suffix the number of files and folders in folders that were ignored, because no reader is
        known for them or because they are not corpus.

    Raises:
        CorpusError: an input does not exist or contains no file that can be read.
    """
    if input_split and not any(map(os.path.isdir, inputs)):
        raise CorpusError(
            f"--input-split {input_split} chooses among the splits in a folder, but no --input is "
            "a folder: leave the option out, or write the split of a hub dataset NAME:CONFIG:SPLIT"
        )
    num_ignored: Counter[str] = Counter()
    sources: list[Source] = []
    for name in inputs:
        ignored: Counter[str] = Counter()
        expanded = list(_expand(name, ignored, input_split))
        if not expanded:
            others = f" and only others ({describe_counts(ignored)})" if ignored else ""
            raise CorpusError(
                f"input {name} must contain text, JSON lines, CSV, Parquet or Arrow files, but "
                f"contains none of them{others}: check the path or give a glob that matches the "
                "files"
            )
        sources += expanded
        num_ignored += ignored
    return sources, dict(sorted(num_ignored.items()))


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return counts by name as text, the largest first: `3 .pyc, 1 LICENSE, ...`."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} {name}" for name, count in largest[:_MAX_COUNTS])
    return text + (", ..." if len(largest) > _MAX_COUNTS else "")


def _expand(name: str, num_ignored: Counter[str], input_split: str) -> Iterator[Source]:
    if not name or "\0" in name:
        raise CorpusError(f"an input must be a path or the name of a dataset (got {name!r})")
    # The functions of os.path, and not the methods of Path, which raise errors for a name that is
    # too long or a `~user` that does not exist.
    path = os.path.expanduser(name)  # noqa: PTH111
    if os.path.isdir(path):  # noqa: PTH112
        yield from map(_file_source, find_folder_files(Path(path), num_ignored, input_split))
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
    looks_like_file = has_known_suffix(name) or ("/" in name and Path(name).parent.is_dir())
    return _HUB_NAME.fullmatch(name) is not None and not looks_like_file


def _file_source(path: str) -> Source:
    check_supported(path)
    try:
        status = regular_file_status(path)
    except OSError as error:
        raise_unreadable(error)
    return Source(path, status.st_size, source_kind(path), status.st_mtime_ns)
