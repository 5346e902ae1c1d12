"""Choose among the splits of a dataset in a folder, so that train and test are not mixed up."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from armd_scale.data.preprocess.formats import source_kind
from armd_scale.errors import CorpusError
from armd_scale.files import read_regular_file

DATASET_DICT = "dataset_dict.json"
"""File of `DatasetDict.save_to_disk` that lists the splits, each a folder beside it."""
ALL_SPLITS = "all"
# The hub finds splits by these words in the names of files and folders.
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])", re.I)
# And by any word in front of the number of a file, in a folder `data`.
_NUMBERED = re.compile(r"(?:^|/)data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*$")


def select_saved_splits(folder: Path, input_split: str) -> list[str]:
    """Return the folders of the chosen splits of a saved `DatasetDict`.

    Args:
        folder: the folder with dataset_dict.json.
        input_split: name of a split; "all" for every one, "" if there is only one.

    Raises:
        CorpusError: the file does not list splits, or there are several and none was chosen.
    """
    path = folder / DATASET_DICT
    try:
        splits = json.loads(read_regular_file(path))["splits"]
        if not (isinstance(splits, list) and splits and all(map(_is_folder_name, splits))):  # pyright: ignore[reportUnknownArgumentType]
            raise ValueError("no list of names under 'splits'")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(
            f"{path} must list the splits of a saved dataset, but does not ({error!r}): save the "
            "dataset again, or give the folder of one split"
        ) from error
    names = [str(name) for name in splits]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    chosen = _choose(str(folder), names, input_split)
    missing = [name for name in chosen if not (folder / name).is_dir()]
    if missing:
        raise CorpusError(
            f"{folder / missing[0]} must be the folder of a split that {path} lists, but does not "
            "exist: copy the dataset again"
        )
    return chosen


def select_split_files(
    folder: str, paths: Sequence[str], input_split: str, *, with_text: bool
) -> list[str]:
    """Return the files of the chosen split, for files whose names say which split they are of.

    Args:
        folder: the input that they were found in.
        paths: the files.
        input_split: as for `select_saved_splits`.
        with_text: whether plain text files are looked at as well; among the files of a program,
            `test` is not the name of a split.

    Raises:
        CorpusError: they are of several splits and none was chosen, or of none of that name.
    """
    splits = {
        path: _find_split(PurePath(path).relative_to(folder).as_posix())
        for path in paths
        if with_text or source_kind(path) != "text"
    }
    names = list(dict.fromkeys(name for name in splits.values() if name))
    if not names and paths and input_split not in ("", ALL_SPLITS):
        raise CorpusError(
            f"--input-split {input_split} must be a split of {folder}, but the names of its files "
            "tell no splits apart: leave the option out, or give a glob of the files"
        )
    if not names:
        return list(paths)
    chosen = _choose(folder, names, input_split)
    if len(chosen) == len(names):
        return list(paths)
    return [path for path in paths if splits.get(path) in chosen]


def _choose(folder: str, names: Sequence[str], input_split: str) -> list[str]:
    """Return the names that the user chose among those of all splits.

    Raises:
        CorpusError: there are several and none was chosen, or none has the chosen name.
    """
    if input_split == ALL_SPLITS or (not input_split and len(names) == 1):
        return list(names)
    wanted = {input_split, _WORDS.get(input_split.lower(), input_split)}
    if chosen := [name for name in names if name in wanted]:
        return chosen
    listed = ", ".join(names)
    if not input_split:
        raise CorpusError(
            f"input {folder} must be one split of a dataset, but holds {listed}: choose one by "
            f"--input-split {names[0]}, or read them together by --input-split {ALL_SPLITS}"
        )
    raise CorpusError(
        f"--input-split must be a split of {folder} (got {input_split}): choose one of {listed} "
        f"or {ALL_SPLITS}"
    )


def _find_split(path: str) -> str | None:
    """Return the split that the path of a file names, None if it names none."""
    if numbered := _NUMBERED.search(path):
        return _WORDS.get(numbered[1].lower(), numbered[1])
    words: Iterable[str] = _WORD.findall(path)
    # The last one: the file's own name says more than the folders around it.
    return next((_WORDS[word.lower()] for word in reversed(list(words))), None)


def _is_folder_name(name: object) -> bool:
    return isinstance(name, str) and PurePath(name).name == name and name not in (".", "..")
