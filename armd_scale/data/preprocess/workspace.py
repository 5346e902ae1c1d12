"""PREFIX.work/: scratch folder for resumable preprocessing, locked by one process."""

import fcntl
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.preprocess.folders import WORKSPACE_KEY_FILE
from armd_scale.data.preprocess.publish import was_publishing
from armd_scale.data.preprocess.result_files import check_replaceable
from armd_scale.errors import ShardError
from armd_scale.log import get_logger

_logger = get_logger(__name__)


@contextmanager
def workspace(
    prefix: str,
    split_names: Sequence[str],
    *,
    key: str,
    overwrite: bool = False,
    has_progress: Callable[[Path], bool],
) -> Generator[Path, None, None]:
    """Open the scratch folder of a result, locked while the block runs.

    The folder is removed at the end of a block that succeeds. After an error it stays if it holds
    something that a later run with the same key can continue.

    Args:
        prefix: PREFIX of the result.
        split_names: names of its splits.
        key: digest of everything that the work depends on. Unfinished work with another key is not
            continued.
        overwrite: whether to replace an existing result, or unfinished work with another key.
        has_progress: tells from the folder whether a later run would save work by it.

    Raises:
        ShardError: overwriting was not allowed, or another process holds the lock.
    """
    folder = Path(f"{prefix}.work")
    with translate_os_errors(folder):
        if folder.exists() and not _matches_key(folder, key):
            _discard(folder, prefix, overwrite=overwrite)
        check_replaceable(
            prefix, split_names, overwrite=overwrite, was_publishing=was_publishing(folder)
        )
        new_folders = _make_folders(folder)
        try:
            lock_file = _write_key(folder, key).open()
        except BaseException:
            _remove(new_folders)
            raise
    with lock_file:
        _lock(lock_file, prefix)
        try:
            yield folder
        except BaseException:
            if not has_progress(folder) and not was_publishing(folder):
                _remove(new_folders or [folder])
            raise
        with translate_os_errors(folder):
            shutil.rmtree(folder)


def discard_published(prefix: str, key: str) -> None:
    """Remove the scratch folder of a result that is complete, if a stopped run has left it."""
    folder = Path(f"{prefix}.work")
    with translate_os_errors(folder):
        if was_publishing(folder) and _matches_key(folder, key):
            _discard(folder, prefix, overwrite=True)


def _make_folders(folder: Path) -> list[Path]:
    """Create a folder and its parents; return those that did not exist, the innermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except BaseException:
        _remove(new)
        raise
    return new


def _remove(folders: Sequence[Path]) -> None:
    """Remove a workspace, and the parents that were created for it if nothing else is in them."""
    workspace_folder, *parents = folders
    shutil.rmtree(workspace_folder, ignore_errors=True)
    for folder in parents:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _write_key(folder: Path, key: str) -> Path:
    path = folder / WORKSPACE_KEY_FILE
    if not path.exists():
        # Renamed when complete: a key file cut short by a kill would not match any command.
        partial = folder / f"{WORKSPACE_KEY_FILE}.partial"
        partial.write_text(key)
        partial.rename(path)
    return path


def _matches_key(folder: Path, key: str) -> bool:
    """Return whether the folder was made with this key.

    True too for a folder that is empty but for an incomplete key file, as a killed run leaves it.
    """
    try:
        return (folder / WORKSPACE_KEY_FILE).read_text() == key
    except FileNotFoundError:
        return all(path.stem == WORKSPACE_KEY_FILE for path in folder.iterdir())


def _discard(folder: Path, prefix: str, *, overwrite: bool) -> None:
    """Remove the unfinished work of another command.

    Without `overwrite` only if it contains no tokens yet, so that nothing is lost.

    Raises:
        ShardError: it contains tokens, another process works on it, or the folder is not one of
            this program's (it has no key file).
    """
    key_file = folder / WORKSPACE_KEY_FILE
    if key_file.exists():
        with key_file.open() as lock_file:
            _lock(lock_file, prefix)
            has_tokens = any(path.stat().st_size for path in folder.glob("*.bin"))
            if overwrite or not has_tokens:
                shutil.rmtree(folder)
                return
    raise ShardError(
        f"{folder} must hold unfinished work of this same command, but belongs to other inputs, "
        "arguments or another tokenizer: repeat that command to finish its work, or pass "
        "--overwrite to delete it"
    )


def _lock(file: TextIO, prefix: str) -> None:
    """Lock the folder for this process; the lock is released when the file is closed.

    Raises:
        ShardError: another process holds the lock.
    """
    # flock, not a file that exists: the kernel releases the lock of a killed process by itself.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ShardError(
            f"{prefix} is being written by another process: wait for it, or choose another --output"
        ) from error
    except OSError:
        # Some network file systems have no locks. Preprocessing works there too.
        _logger.warning(
            "the file system of %s does not support locks: make sure that only one process writes "
            "to it",
            prefix,
        )
