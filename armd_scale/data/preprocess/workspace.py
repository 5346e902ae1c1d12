"""PREFIX.work/: scratch folder for resumable preprocessing, locked by one process."""

import fcntl
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from armd_scale.data.manifest import split_prefix
from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.errors import ShardError
from armd_scale.log import get_logger

# Holds the digest of the command that the folder belongs to, and carries the lock.
_KEY_FILE = "key"
_logger = get_logger(__name__)


@contextmanager
def workspace(
    prefix: str, split_names: Sequence[str], *, key: str, overwrite: bool = False
) -> Generator[Path, None, None]:
    """Open the scratch folder of a result, locked while the block runs.

    The folder is removed at the end of a block that succeeds. After an error it stays, and a later
    run with the same key continues in it.

    Args:
        prefix: PREFIX of the result.
        split_names: names of its splits.
        key: digest of everything that the work depends on. Unfinished work with another key is not
            continued.
        overwrite: whether to replace an existing result, or unfinished work with another key.

    Raises:
        ShardError: overwriting was not allowed, or another process holds the lock.
    """
    folder = Path(f"{prefix}.work")
    with translate_os_errors(folder):
        if folder.exists() and not _matches_key(folder, key):
            _discard(folder, prefix, overwrite=overwrite)
        if not folder.exists():
            _check_no_result(prefix, split_names, overwrite=overwrite)
            folder.mkdir(parents=True)
        if not (folder / _KEY_FILE).exists():
            # Renamed when complete: a key file cut short by a kill would not match any command.
            partial = folder / f"{_KEY_FILE}.partial"
            partial.write_text(key)
            partial.rename(folder / _KEY_FILE)
        lock_file = (folder / _KEY_FILE).open()
    with lock_file:
        _lock(lock_file, prefix)
        yield folder
        shutil.rmtree(folder)


def _matches_key(folder: Path, key: str) -> bool:
    """Return whether the folder was made with this key.

    True too for a folder that is empty but for an incomplete key file, as a killed run leaves it.
    """
    try:
        return (folder / _KEY_FILE).read_text() == key
    except FileNotFoundError:
        return all(path.stem == _KEY_FILE for path in folder.iterdir())


def _discard(folder: Path, prefix: str, *, overwrite: bool) -> None:
    """Remove the unfinished work of another command.

    Without `overwrite` only if it contains no tokens yet, so that nothing is lost.

    Raises:
        ShardError: it contains tokens, another process works on it, or the folder is not one of
            this program's (it has no key file).
    """
    key_file = folder / _KEY_FILE
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


def _check_no_result(prefix: str, split_names: Sequence[str], *, overwrite: bool) -> None:
    for split_name in split_names:
        for suffix in (".bin", ".idx", ".json"):
            path = Path(split_prefix(prefix, split_name) + suffix)
            if path.exists() and not overwrite:
                raise ShardError(
                    f"{path} already exists and was made from other inputs, arguments or another "
                    "tokenizer: choose another --output, or pass --overwrite to replace it"
                )
