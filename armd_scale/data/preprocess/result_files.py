"""Which files a run may replace: only those of an earlier result, and never its own inputs."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from armd_scale.data.indexed_format import read_header
from armd_scale.data.manifest import Manifest, load_manifest, manifest_path, split_prefix
from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.tokenizer import TOKENIZER_FILES
from armd_scale.errors import ShardError

SHARD_SUFFIXES = (".bin", ".idx", ".json")


def check_inputs_apart(
    prefix: str, split_names: Sequence[str], *, inputs: Iterable[str], tokenizer: str | None = None
) -> None:
    """Check that writing the result at `prefix` replaces no file that is read for it.

    Args:
        prefix: PREFIX of the result.
        split_names: names of its splits.
        inputs: the files that are read.
        tokenizer: the file or folder of the tokenizer. It may be PREFIX.tokenizer/, which is then
            left as it is.

    Raises:
        ShardError: an input is one of the files of the result, or in one of its folders.
    """
    folders = [Path(f"{prefix}.work"), Path(f"{prefix}.tokenizer")]
    with translate_os_errors(Path(prefix)):
        files = [*_shard_files(prefix, split_names), *folders]
        outputs = {_identity(path) for path in (*files, *_files_below(folders))} - {None}
        if not outputs:
            return  # nothing is there yet, so nothing of it is an input
        work = {_identity(path) for path in _files_below(folders[:1])}
        results = {_identity(path) for path in _shard_files(prefix, split_names)}
        for name in inputs:
            if _identity(Path(name)) in outputs:
                raise _input_error(name, prefix)
        if tokenizer is not None:
            path = Path(tokenizer)
            read = [path, *(path / name for name in TOKENIZER_FILES)]
            if ({_identity(part) for part in read} - {None}) & (work | results):
                raise _input_error(tokenizer, prefix)


def check_replaceable(
    prefix: str, split_names: Sequence[str], *, overwrite: bool, was_publishing: bool
) -> None:
    """Check that the shards at `prefix` may be written, and replaced if there are some.

    Args:
        prefix: PREFIX of the result.
        split_names: names of its splits.
        overwrite: whether token shards may be replaced.
        was_publishing: whether an earlier run of the same command was stopped while it moved its
            files here; then shards without a manifest are its own.

    Raises:
        ShardError: shards exist and may not be replaced, or something else is in their place.
    """
    with translate_os_errors(Path(prefix)):
        for split_name in split_names:
            dataset = split_prefix(prefix, split_name)
            existing = [path for path in _shard_files(prefix, [split_name]) if _exists(path)]
            for path in existing:
                if not path.is_file():
                    raise _foreign_error(path)
            if existing and not overwrite and not was_publishing:
                raise ShardError(
                    f"{existing[0]} already exists and was made from other inputs, arguments or "
                    "another tokenizer: choose another --output, or pass --overwrite to replace it"
                )
            if existing and not was_publishing and not _is_dataset(dataset):
                raise _foreign_error(existing[-1])


def check_tokenizer(
    prefix: str, split_names: Sequence[str], *, new: Path, was_publishing: bool
) -> None:
    """Check that PREFIX.tokenizer/ holds the tokenizer of the result, or may be replaced by it.

    Args:
        prefix: PREFIX of the result.
        split_names: names of its splits, whose manifests are replaced.
        new: folder of the tokenizer of the result.
        was_publishing: as for `check_replaceable`.

    Raises:
        ShardError: it is not of an earlier result, or other shards need it.
    """
    target = Path(f"{prefix}.tokenizer")
    with translate_os_errors(target):
        if not _exists(target) or is_same_tokenizer(new, target):
            return
        replaced = {manifest_path(split_prefix(prefix, name)) for name in split_names}
        owners = _manifests_with_tokenizer(target)
        if others := sorted(str(path) for path in owners if path not in replaced):
            raise ShardError(
                f"{target} must stay the tokenizer of {others[0]}, but this result has another "
                "one: choose another --output"
            )
        is_ours = bool(owners) or was_publishing
        if not is_ours or target.is_symlink() or not _has_only_tokenizer_files(target):
            raise _foreign_error(target)


def is_same_tokenizer(new: Path, target: Path) -> bool:
    """Return whether every file of the folder `new` is in `target` with the same content."""
    return all(
        (target / path.name).is_file() and (target / path.name).read_bytes() == path.read_bytes()
        for path in new.iterdir()
    )


def _shard_files(prefix: str, split_names: Sequence[str]) -> list[Path]:
    return [
        Path(split_prefix(prefix, name) + suffix)
        for name in split_names
        for suffix in SHARD_SUFFIXES
    ]


def _files_below(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (Path(root, name) for root, _, names in os.walk(folder) for name in names)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what is equal for two names of one file; None if nothing is there."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _exists(path: Path) -> bool:
    """Return whether there is something at a path, also a link to nothing.

    Raises:
        OSError: there cannot be: the name is too long, or a parent is not a folder.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _is_dataset(prefix: str) -> bool:
    """Return whether the files at a prefix are token shards, so that `overwrite` means them."""
    try:
        if load_manifest(prefix) is not None:
            return True
        header = read_header(Path(f"{prefix}.idx"))
        return Path(f"{prefix}.idx").stat().st_size >= header.idx_bytes
    except (OSError, ShardError):
        return False


def _manifests_with_tokenizer(folder: Path) -> Mapping[Path, Manifest]:
    """Find the manifests that name a tokenizer folder, among those whose names begin like it."""
    found: dict[Path, Manifest] = {}
    for path in folder.parent.iterdir():
        if path.name.startswith(folder.stem) and path.suffix == ".json":
            with suppress(ShardError):  # not a manifest
                manifest = load_manifest(path.with_suffix(""))
                if manifest is not None and manifest.tokenizer.folder == folder.name:
                    found[path] = manifest
    return found


def _has_only_tokenizer_files(folder: Path) -> bool:
    return folder.is_dir() and all(path.name in TOKENIZER_FILES for path in folder.iterdir())


def _input_error(name: str, prefix: str) -> ShardError:
    return ShardError(
        f"{name} must not be read and replaced by the same command, but is one of the files of the "
        f"result {prefix}: choose another --output"
    )


def _foreign_error(path: Path) -> ShardError:
    return ShardError(
        f"{path} must be a file of token shards to be replaced, but this program did not write it: "
        "choose another --output, or move it away"
    )
