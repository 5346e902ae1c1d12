"""Turn errors of the disk into a message for the user."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from armd_scale.errors import ShardError

# EFBIG is a limit on the size of a file (ulimit -f), which also calls for more space.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate_os_errors(folder: Path) -> Generator[None, None, None]:
    """Raise a ShardError for an OSError of the block, such as a full disk or a read-only folder.

    Args:
        folder: named in the message if the OSError does not name a file, as that of a write does
            not.
    """
    try:
        if "\0" in str(folder):  # which Python reports as a ValueError, at every use of the path
            raise OSError(errno.EINVAL, "its name has a NUL character", str(folder))
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            advice = "free some space"
        elif error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            advice = "choose another --output"
        else:
            advice = "make the folder writable"
        raise ShardError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}): {advice} "
            "and run the same command again; finished work is kept"
        ) from error
