"""PREFIX.parts/: where unfinished work lies, whose it is, and that only one process is at it."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from armd_scale.data.manifest import split_prefix
from armd_scale.data.preprocess.encode_unit import translate_os_errors
from armd_scale.errors import ShardError
from armd_scale.log import get_logger

_GUARD = "guard"
_logger = get_logger(__name__)


@contextmanager
def workspace(
    prefix: str, sides: Sequence[str], *, guard: str, overwrite: bool = False
) -> Iterator[Path]:
    """The folder of unfinished work, ours alone while we are in it, and gone when all went well.

    Args:
        prefix: of the result.
        sides: of its split.
        guard: digest of what the work depends on; unfinished work of another is not continued.
        overwrite: whether a result and unfinished work of others may be dropped.

    Raises:
        ShardError: they may not, or another process is at it.
    """
    folder = Path(f"{prefix}.parts")
    with translate_os_errors(folder):
        if folder.exists() and not _matches_key(folder, guard):
            _discard(folder, prefix, overwrite=overwrite)
        if not folder.exists():
            _refuse_existing(prefix, sides, overwrite=overwrite)
            folder.mkdir(parents=True)
        if not (folder / _GUARD).exists():
            unfinished = folder / f"{_GUARD}.unfinished"
            unfinished.write_text(guard)
            unfinished.rename(folder / _GUARD)
        lock = (folder / _GUARD).open()
    with lock:
        _lock(lock, prefix)
        yield folder
        shutil.rmtree(folder)


def _matches_key(folder: Path, guard: str) -> bool:
    """Whether the unfinished work is of this digest; a folder with none is anyone's."""
    try:
        return (folder / _GUARD).read_text() == guard
    except FileNotFoundError:
        return all(path.stem == _GUARD for path in folder.iterdir())


def _discard(folder: Path, prefix: str, *, overwrite: bool) -> None:
    """Removes what another command left, unless its tokens would be lost or it is still at it."""
    guard = folder / _GUARD
    if guard.exists():
        with guard.open() as lock:
            _lock(lock, prefix)
            has_tokens = any(path.stat().st_size for path in folder.glob("*.bin"))
            if overwrite or not has_tokens:
                shutil.rmtree(folder)
                return
    raise ShardError(
        f"{folder} must hold unfinished work of this very command, but holds that of other inputs, "
        "arguments or tokenizer: give those again to finish it, or pass --overwrite to drop it"
    )


def _lock(file: TextIO, prefix: str) -> None:
    # The kernel drops the lock with its holder, so a killed run never has to be cleaned up after.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ShardError(
            f"{prefix} is being written by another process: wait for it, or choose another --output"
        ) from error
    except OSError:
        _logger.warning("no locks on the disk of %s: see that only one process writes it", prefix)


def _refuse_existing(prefix: str, sides: Sequence[str], *, overwrite: bool) -> None:
    for side in sides:
        for suffix in (".bin", ".idx", ".json"):
            path = Path(split_prefix(prefix, side) + suffix)
            if path.exists() and not overwrite:
                raise ShardError(
                    f"{path} is there already, from other inputs, arguments or tokenizer: choose "
                    "another --output, or pass --overwrite to replace it"
                )
