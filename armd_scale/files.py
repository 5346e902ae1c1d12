"""Atomic writes, reading of files that may be anything, hashes, and checks of output paths.

Everything is written under a temporary name beside its final name, `.{name}.partial`, and renamed
when it is complete: a reader sees the old file, the new file or no file, but never half of one. The
temporary name is in the same folder because a rename is atomic only within one filesystem.
"""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from armd_scale.errors import ArmdError

_Error = TypeVar("_Error", bound=ArmdError)

MAX_TEXT_BYTES = 1 << 29
"""Largest text or JSON file that is read whole."""


def partial_path(path: Path) -> Path:
    """Temporary name under which `path` is written.

    Raises:
        OSError: it has no name, as `/` and `.` have none.
    """
    if not path.name:
        raise OSError(errno.EISDIR, "is a folder")
    return path.with_name(f".{path.name}.partial")


@contextmanager
def reraise_write_errors(path: Path, *, error_class: type[ArmdError] = ArmdError) -> Iterator[None]:
    """Turn an OSError into the user's error for a path that cannot be written.

    Args:
        path: file or folder to name in the message.
        error_class: class of the error.

    Raises:
        ArmdError: (`error_class`) an OSError was raised inside.
    """
    try:
        if "\0" in str(path):  # which Python reports as a ValueError, at every use of the path
            raise OSError(errno.EINVAL, "its name has a NUL character")
        yield
    except OSError as error:
        raise write_error(path, error, error_class=error_class) from error


def write_error(path: Path, error: OSError, *, error_class: type[_Error] = ArmdError) -> _Error:
    """Return the user's error for a file or folder that cannot be written."""
    return error_class(
        f"cannot write {path} ({_reason(error)}): check that its folder exists, is writable and "
        "has free space, or choose another path"
    )


@contextmanager
def atomic_file(path: Path, *, error_class: type[ArmdError] = ArmdError) -> Iterator[Path]:
    """Yield a temporary path; the file written there is renamed to `path` on success.

    On any exception the temporary file is removed and an existing `path` stays as it was. A link
    stays a link: the file that it leads to is replaced. What is no regular file (/dev/null, a pipe)
    is not replaced but written to, once everything is complete.

    Args:
        path: final name; an existing file is replaced.
        error_class: class of the error for a file that cannot be written.

    Raises:
        ArmdError: (`error_class`) the file cannot be written.
    """
    if is_special_file(path):
        with (
            tempfile.TemporaryDirectory() as folder,
            reraise_write_errors(path, error_class=error_class),
        ):
            yield Path(folder, path.name)
            with Path(folder, path.name).open("rb") as source, path.open("wb") as file:
                shutil.copyfileobj(source, file)
        return
    with reraise_write_errors(path, error_class=error_class):
        target = path.resolve() if path.is_symlink() else path
        partial = partial_path(target)
    try:
        with reraise_write_errors(path, error_class=error_class):
            yield partial
            partial.replace(target)
    finally:
        with suppress(OSError):  # usually renamed already, or its folder does not exist
            partial.unlink()


def is_special_file(path: Path) -> bool:
    """Whether there is a device, a pipe or a socket at `path`."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # nothing there, or no valid path: writing will say so
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def atomic_write_text(path: Path, text: str, *, error_class: type[ArmdError] = ArmdError) -> None:
    """Write a UTF-8 file that appears complete or not at all; errors as of `atomic_file`."""
    atomic_write_bytes(path, text.encode(), error_class=error_class)


def atomic_write_bytes(
    path: Path, data: bytes, *, error_class: type[ArmdError] = ArmdError
) -> None:
    """Write a file that appears complete or not at all; errors as of `atomic_file`."""
    with atomic_file(path, error_class=error_class) as partial:
        partial.write_bytes(data)


@contextmanager
def atomic_directory(path: Path, *, error_class: type[ArmdError] = ArmdError) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to `path` on success.

    An existing folder at `path` is replaced only once the new one is complete. On any exception the
    temporary folder is removed and an existing `path` stays as it was. Parent folders are created.

    Args:
        path: final name.
        error_class: class of the error for a folder that cannot be written.

    Raises:
        ArmdError: (`error_class`) the folder, or a file in it, cannot be written.
    """
    with reraise_write_errors(path, error_class=error_class):
        partial = partial_path(path)
    try:
        with reraise_write_errors(path, error_class=error_class):
            shutil.rmtree(partial, ignore_errors=True)  # left over from a killed process
            partial.mkdir(parents=True)
            yield partial
            _replace_directory(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_directory(new: Path, path: Path) -> None:
    # A rename cannot overwrite a folder that is not empty, so the old folder moves away first.
    # Between the two renames there is no folder at `path`. A process that is killed there leaves
    # the old one complete, as `.NAME.replaced`.
    replaced = path.with_name(f".{path.name}.replaced")
    had_old = path.exists()
    if had_old:
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    try:
        new.rename(path)
    except OSError:
        if had_old:
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, but nothing else: a pipe would wait, and a device may never end.

    Raises:
        OSError: there is no such file, it cannot be read, or it is no regular file.
    """
    regular_file_status(path)
    return path.open("rb")


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Return the text of a UTF-8 file, with its line ends as they are.

    Args:
        path: the file.
        errors: what to do with other bytes, as of `bytes.decode`.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than `MAX_TEXT_BYTES`.
        ValueError: it is not UTF-8.
    """
    return read_regular_file(path, max_bytes=MAX_TEXT_BYTES).decode(errors=errors)


def read_error_reason(error: OSError | ValueError) -> str:
    """Return in a few words why a file could not be read, to be put into brackets."""
    if isinstance(error, OSError):
        return _reason(error)
    if isinstance(error, UnicodeDecodeError):
        return f"its byte {error.start} is not UTF-8 text"
    return str(error)


def path_inside(folder: Path, name: object, *, follow_links: bool = False) -> Path:
    """Return the path of what a file in `folder` names, if it is in that folder.

    Args:
        folder: the folder.
        name: read from a file that may come from a stranger; any type.
        follow_links: allow links that lead out of the folder.

    Raises:
        ValueError: the name is no relative path, climbs out of the folder, or leads out of it.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{name!r} is not inside its folder")
    path = folder / pure
    if not follow_links and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is a link out of its folder")
    return path


def regular_file_status(path: str | Path) -> os.stat_result:
    """Return the status of a regular file, without opening it.

    For files that are about to be read: opening a pipe waits for a writer that may never come, and
    a device has no end.

    Raises:
        OSError: there is nothing at `path`, or a folder, pipe, socket or device.
    """
    try:
        status = Path(path).stat()
    except ValueError as error:  # a NUL character, or characters that no file name can have
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    except FileNotFoundError as error:
        if Path(path).is_symlink():
            raise OSError(errno.ENOENT, "a link to nothing", str(path)) from error
        raise
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return status


def read_regular_file(path: Path, *, max_bytes: int = 1 << 30) -> bytes:
    """Read a file that is expected to be small.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `max_bytes` bytes.
    """
    with open_regular(path) as file:
        # One byte more than allowed, because the size that the system tells may be wrong (/proc).
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB", str(path))
    return data


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as a hex string; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_parent_dir(
    path: Path | None, option: str, *, error_class: type[ArmdError] = ArmdError
) -> None:
    """Check, before any long work, that the folder of an output file exists.

    Args:
        path: the output file; None if the user did not ask for it.
        option: command-line option that names the file, for the message.
        error_class: class of the error.

    Raises:
        ArmdError: (`error_class`) the folder does not exist.
    """
    if path is not None and not path.absolute().parent.is_dir():
        raise error_class(
            f"{option} must name a file in an existing folder (got {path}): create the folder "
            f"{path.parent} first, or name another file"
        )


def require_writable(
    path: Path | None, option: str, *, error_class: type[ArmdError] = ArmdError
) -> None:
    """Check, before any long work, that an output file can be written; arguments as above.

    Stricter than `require_parent_dir`: also finds a read-only folder, and a folder at `path`.

    Raises:
        ArmdError: (`error_class`) the file cannot be written.
    """
    if path is None or is_special_file(path):
        return
    try:
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "its name has a NUL character")
        if path.is_dir():
            raise IsADirectoryError(0, "is a directory")
        partial = partial_path(path)
        # The temporary name, so that an existing output file is not touched.
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise error_class(
            f"{option} must name a file that can be written (got {path}: {_reason(error)}): create "
            "its folder first, or name another file"
        ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
