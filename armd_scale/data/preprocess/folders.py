"""Find the corpus in a folder: which files are documents, and which only lie beside them.

Folders are often clones: of a dataset, with its card, licence and loader, or of a program. What is
left out is counted by name or suffix, for the summary of the run.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from armd_scale.data.preprocess.dataset_splits import (
    DATASET_DICT,
    select_saved_splits,
    select_split_files,
)
from armd_scale.data.preprocess.formats import (
    check_supported,
    content_suffix,
    has_known_suffix,
    is_packed_data,
    source_kind,
)
from armd_scale.data.tokenizer import HF_FILE, SENTENCEPIECE_FILE, TOKENIZER_FILES
from armd_scale.errors import CorpusError
from armd_scale.files import path_inside, read_regular_file

WORKSPACE_KEY_FILE = "key"
"""File in a workspace that holds the digest of the command it belongs to, and carries the lock."""
_SAVED_DATASET = "state.json"  # written by `Dataset.save_to_disk` beside its .arrow files
_METADATA_FILES = ("dataset_infos.json", "dataset_info.json", DATASET_DICT, "croissant.json")
_IGNORED_FOLDERS = ("CVS", "_darcs", "__MACOSX")
# The best one first: a dataset in Parquet files may have statistics in CSV files beside them.
_DATA_KINDS = ("parquet", "arrow", "lines", "csv")
_DATA_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson")
# Names of files about the data beside them; without data they are documents like others.
_ABOUT_FILES = ("readme", "license", "licence", "copying", "notice", "citation", "changelog")
_GIT_ATTRIBUTES_BYTES = 1 << 16


def find_folder_files(folder: Path, num_ignored: Counter[str], input_split: str) -> list[str]:
    """Return the files of a folder that are corpus, in an order that is the same on every machine.

    Args:
        folder: the folder.
        num_ignored: is increased by the number of files and folders that are not, by name or
            suffix.
        input_split: the split of a dataset to read; "all" for every one, "" if it has only one.

    Raises:
        CorpusError: the folder cannot be read, or holds several splits and none was chosen.
    """
    saved: list[str] = []  # .arrow files of saved datasets, whose splits are folders
    loose: list[str] = []
    dataset_roots: set[Path] = set()
    for root, names in _walk(folder, num_ignored, input_split):
        if _SAVED_DATASET in names:
            saved += _saved_arrow_files(root)
            continue
        if _is_dataset_clone(root, names):
            dataset_roots.add(root)
        loose += [str(root / name) for name in _known_files(root, names, num_ignored)]
    kind_of = _dataset_kinds(loose, dataset_roots)
    corpus = _data_files(loose, kind_of, num_ignored)
    selected = select_split_files(
        str(folder), corpus, "" if saved and not corpus else input_split, with_text=bool(kind_of)
    )
    if len(corpus) > len(selected):
        num_ignored["of other splits"] += len(corpus) - len(selected)
    return [*saved, *selected]


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise the error for an input that cannot be opened or listed."""
    raise CorpusError(
        f"{error.filename} cannot be read ({error.strerror}): check the input"
    ) from error


def _walk(
    folder: Path, num_ignored: Counter[str], input_split: str
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below `folder` that may hold corpus, with the sorted names of their files.

    Results of preprocessing in the folder are left out: with an --output below the input, the files
    of an earlier run would become documents of the next.
    """
    for root, folders, names in os.walk(folder, onerror=raise_unreadable):
        names = sorted(names)
        candidates = sorted(name for name in folders if not _is_result_folder(Path(root, name)))
        if DATASET_DICT in names:
            candidates = select_saved_splits(Path(root), input_split)
        ignored = [name for name in candidates if _is_ignored_folder(Path(root, name))]
        num_ignored.update(ignored)
        # os.walk descends into this very list, so sorting it fixes the order
        folders[:] = [name for name in candidates if name not in ignored]
        yield Path(root), names


def _is_ignored_folder(folder: Path) -> bool:
    # A link could lead back to a folder above it, without end; os.walk does not follow it.
    return folder.name.startswith(".") or folder.name in _IGNORED_FOLDERS or folder.is_symlink()


def _known_files(folder: Path, names: Sequence[str], num_ignored: Counter[str]) -> Iterator[str]:
    """Yield the names of the files that a reader is known for; count the others."""
    for name in names:
        if name.startswith(".") or name in (*_METADATA_FILES, *TOKENIZER_FILES):
            num_ignored[name] += 1
        elif is_packed_data(name):
            check_supported(str(folder / name))
        elif not has_known_suffix(name):
            num_ignored[content_suffix(name) or "(none)"] += 1
        elif not _is_manifest(folder / name):
            yield name


def _dataset_kinds(paths: Sequence[str], roots: set[Path]) -> dict[Path, str]:
    """Return the kind of the data of each dataset, by its folder.

    A folder with a dataset's card but without files of data is a folder like others, unless it has
    nothing but the card and a loader: then its kind is none that a file has.
    """
    kinds: dict[Path, str] = {}
    for root in roots:
        inside = [Path(path) for path in paths if root in Path(path).parents]
        kind = next((k for k in _DATA_KINDS if k in {source_kind(str(p)) for p in inside}), None)
        is_loader = all(
            path.suffix == ".py" or path.name.lower().startswith(_ABOUT_FILES) for path in inside
        )
        if kind is not None or is_loader:
            kinds[root] = kind or "none"
    return kinds


def _data_files(
    paths: Sequence[str], kind_of: Mapping[Path, str], num_ignored: Counter[str]
) -> list[str]:
    """Return the files without those that only describe the data beside them.

    Args:
        paths: the files.
        kind_of: kind of the data of each dataset, by its folder.
        num_ignored: is increased by the number of the others.
    """
    # Every folder with data in it or below it.
    data_folders = {
        folder
        for path in paths
        if content_suffix(path) in _DATA_SUFFIXES
        or not kind_of.keys().isdisjoint(Path(path).parents)
        for folder in Path(path).parents
    }
    files: list[str] = []
    for path in paths:
        suffix, name = content_suffix(path), Path(path).name
        # The innermost dataset that it is in.
        root = next((folder for folder in Path(path).parents if folder in kind_of), None)
        if suffix in (".md", ".txt", ".rst") and name.lower().startswith(_ABOUT_FILES):
            is_corpus, counted_as = Path(path).parent not in data_folders, name
        else:
            # A dataset has one format. What is in another one beside it is a script or a statistic.
            is_corpus, counted_as = root is None or source_kind(path) == kind_of[root], suffix
        if is_corpus:
            files.append(path)
        else:
            num_ignored[counted_as] += 1
    return files


def _is_dataset_clone(folder: Path, names: Sequence[str]) -> bool:
    """Return whether a folder is a dataset of the hub, by its card, metadata or attributes."""
    if any(name in _METADATA_FILES for name in names):
        return True
    return ("README.md" in names and _starts_with(folder / "README.md", b"---")) or (
        # Of the hub, which stores data in Git LFS; a program has no tables there.
        ".gitattributes" in names and _contains(folder / ".gitattributes", b"*.parquet filter=lfs")
    )


def _starts_with(path: Path, start: bytes) -> bool:
    return _head(path, len(start)) == start


def _contains(path: Path, text: bytes) -> bool:
    return text in _head(path, _GIT_ATTRIBUTES_BYTES)


def _head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a file; none if it is not a regular file that can be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError:
        return b""


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


def _saved_arrow_files(folder: Path) -> Iterator[str]:
    """Yield the .arrow files of a saved dataset in its own order.

    The folder may also hold `cache-*.arrow` files of earlier transformations, so the dataset's list
    is used and not a glob.
    """
    path = folder / _SAVED_DATASET
    try:
        state = json.loads(read_regular_file(path))
        paths = [path_inside(folder, entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(
            f"{path} must list the .arrow files of a saved dataset, but does not ({error!r}): save "
            "the dataset again, or give a glob of its .arrow files"
        ) from error
    yield from map(str, paths)
