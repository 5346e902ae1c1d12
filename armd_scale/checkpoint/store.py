"""Checkpoint folders on disk: create, commit, list and verify.

A checkpoint is written under a temporary name that starts with a dot. Its manifest, which holds the
size and SHA-256 of every file, is written last, and then the folder is renamed. So a folder with a
checkpoint's name is complete, and a file that changed later is detected.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armd_scale.config.codec import decode_dataclass
from armd_scale.errors import CheckpointError
from armd_scale.files import partial_path, path_inside, sha256_file
from armd_scale.json_files import json_sha256, read_json_object
from armd_scale.log import get_logger

MANIFEST = "manifest.json"
FORMAT = 3
"""Version of the folder's layout, of the recipe's keys and of the tensor names in it."""
_FORMAT_ADVICE = {2: "convert it with python tools/upgrade_checkpoint.py"}
_CHECKPOINT_NAME = re.compile(r"step_\d{8}|\.step_\d{8}\.replaced")


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the manifest of a checkpoint says."""

    format: int
    step: int
    files: Mapping[str, FileEntry]
    """By name, relative to the checkpoint."""
    sha256: str | None = None
    """Of all other values; checkpoints of earlier versions lack it."""


class _FormatError(CheckpointError):
    """A checkpoint of another format version, which is intact but cannot be read."""


def folder_name(step: int) -> str:
    """Name of the checkpoint taken after `step` optimizer steps."""
    return f"step_{step:08d}"


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Folder in which the checkpoint of `step` is written before it gets its final name."""
    return partial_path(checkpoints / folder_name(step))


def create_partial(checkpoints: Path, step: int, *, subfolders: Sequence[str] = ()) -> Path:
    """Create the folder to write a checkpoint into, and remove leftovers of interrupted saves.

    Args:
        checkpoints: folder with the checkpoints of a run; created if missing.
        step: optimizer steps done.
        subfolders: names of empty folders to create in it.

    Returns:
        The path of the new folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    partial = partial_folder(checkpoints, step)
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        # A checkpoint still under its ".replaced" name belongs to a save that was killed between
        # its two renames (see `commit`): it is the only complete one of its step, so restore it.
        for folder in list_checkpoints(checkpoints):
            if folder.name.startswith("."):
                folder.rename(checkpoints / folder_name(_step_of(folder)))
        for leftover in checkpoints.glob(".step_*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        for name in subfolders:
            (partial / name).mkdir()
    except OSError as error:
        raise write_error(checkpoints, error) from error
    return partial


def commit(
    partial: Path, *, keep: int, keep_every: int = 0, hashed: Mapping[str, Any] | None = None
) -> Path:
    """Turn a written folder into a checkpoint, then remove all but the newest `keep` checkpoints.

    Args:
        partial: from `create_partial`, with all files written.
        keep: number of checkpoints to keep; 0 keeps all.
        keep_every: checkpoints of a step that is a multiple of this are kept besides; 0: none.
        hashed: `{"bytes", "sha256"}` by file name, of files that were hashed while they were
            written; the other files are read and hashed here.

    Returns:
        The path of the checkpoint.

    Raises:
        CheckpointError: the folder cannot be written, or a file in `hashed` is missing.
    """
    step = _step_of(partial)
    final = partial.parent / folder_name(step)
    try:
        write_manifest(partial, step=step, hashed=hashed or {})
        # A rename cannot overwrite a folder. A checkpoint of the same step moves aside first, under
        # a name that `list_checkpoints` still finds: a kill between the two renames loses nothing.
        replaced = _replaced_path(final)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        # Damaged ones neither count nor are removed: they must not push a sound one out.
        sound = [folder for folder in list_checkpoints(partial.parent) if _looks_sound(folder)]
        if keep_every > 0:  # those that stay for good do not take the place of one of `keep`
            sound = [folder for folder in sound if _step_of(folder) % keep_every != 0]
        for old in sound[:-keep] if keep > 0 else []:
            shutil.rmtree(old)
    except OSError as error:
        raise write_error(partial.parent, error) from error
    return final


def write_manifest(folder: Path, *, step: int, hashed: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of all files in `folder`, and flush everything to disk.

    Args:
        folder: a checkpoint under its temporary name, with all files written.
        step: optimizer steps done.
        hashed: as of `commit`.

    Raises:
        CheckpointError: a file in `hashed` is missing.
        OSError: a file cannot be read or written.
    """
    hashed = hashed or {}
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    _require_all_written(folder, set(hashed) - set(names))
    files = {name: hashed.get(name) or _file_record(folder / name) for name in names}
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": files}
    manifest["sha256"] = json_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _fsync_tree(folder)


def _looks_sound(folder: Path) -> bool:
    """Whether all files are there with their sizes; nothing is read but the manifest."""
    try:
        files = read_manifest(folder).files
        return all((folder / name).stat().st_size == files[name].bytes for name in files)
    except (OSError, CheckpointError):
        return False


def set_aside_after(checkpoints: Path, step: int, *, suffix: str) -> list[Path]:
    """Rename the checkpoints of later steps, so that a run that continues from `step` leaves them.

    A run that falls back to an older checkpoint, or is told to start from one, makes a new branch.
    Under their own names the later checkpoints would be taken for the newest of it.

    Args:
        checkpoints: folder with the checkpoints of a run.
        step: the step that the run continues from.
        suffix: what the new names end in, such as `damaged`.

    Returns:
        The new paths.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    renamed = []
    for folder in list_checkpoints(checkpoints):
        if _step_of(folder) <= step:
            continue
        base = checkpoints / f"{folder_name(_step_of(folder))}.{suffix}"
        numbered = (base.with_name(f"{base.name}{number}") for number in itertools.count(2))
        target = next(path for path in itertools.chain([base], numbered) if not path.exists())
        try:
            renamed.append(folder.rename(target))
        except OSError as error:
            raise write_error(checkpoints, error) from error
    return renamed


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first.

    Includes a checkpoint under its ".replaced" name if the save that was to replace it was killed.
    """
    if not checkpoints.is_dir():
        return []
    paths = checkpoints.iterdir()
    steps = {_step_of(path) for path in paths if _CHECKPOINT_NAME.fullmatch(path.name)}
    folders = (checkpoints / folder_name(step) for step in sorted(steps))
    return [folder if folder.exists() else _replaced_path(folder) for folder in folders]


def latest_valid(checkpoints: Path, *, prefix: str | tuple[str, ...] = "") -> Path | None:
    """Return the newest checkpoint that passes `verify`; log a warning for each that does not.

    Args:
        checkpoints: folder with the checkpoints of a run.
        prefix: as of `verify`.

    Returns:
        The path of the checkpoint, or None if there is no valid one.

    Raises:
        CheckpointError: the newest undamaged checkpoint has another format version. Older ones have
            that version too, and starting over without a checkpoint would surprise the user.
    """
    for folder in reversed(list_checkpoints(checkpoints)):
        try:
            verify(folder, prefix=prefix)
        except _FormatError:
            raise
        except CheckpointError as error:
            get_logger(__name__).warning("%s; falling back to the previous checkpoint", error)
            continue
        return folder
    return None


def verify(
    folder: Path, *, prefix: str | tuple[str, ...] = "", expected_format: int = FORMAT
) -> None:
    """Compare the files of a checkpoint with its manifest.

    Args:
        folder: the checkpoint.
        prefix: check only files whose names start with this, or with one of these.
        expected_format: format version of the checkpoint.

    Raises:
        CheckpointError: the folder is not a checkpoint, a file is missing, truncated or changed,
            or there is one in its subfolders that the manifest does not list.
    """
    files = read_manifest(folder, expected_format=expected_format).files
    _refuse_unlisted(folder, files, prefix)
    for name, expected in files.items():
        if not name.startswith(prefix):
            continue
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "is missing")
        if path.stat().st_size != expected.bytes:
            raise _damaged(path, f"has {path.stat().st_size} bytes instead of {expected.bytes}")
        if sha256_file(path) != expected.sha256:
            raise _damaged(path, "has changed since it was written (SHA-256 differs)")


def _refuse_unlisted(folder: Path, files: Mapping[str, Any], prefix: str | tuple[str, ...]) -> None:
    """Refuse files in subfolders that nobody vouches for, such as another tokenizer.json."""
    for path in sorted(folder.glob("*/**/*")):
        name = path.relative_to(folder).as_posix()
        # Hidden files are the system's (.nfs..., .DS_Store), and nothing here reads them.
        is_ours = not path.is_dir() and not path.name.startswith(".")
        if name.startswith(prefix) and is_ours and name not in files:
            raise _damaged(path, "is not listed in its manifest")


def read_manifest(folder: Path, *, expected_format: int = FORMAT) -> Manifest:
    """Read the manifest of a checkpoint, and check it against its own SHA-256.

    Raises:
        CheckpointError: there is no manifest, it cannot be read, or it has another format version.
    """
    if folder.name.endswith(".partial"):
        raise CheckpointError(
            f"a checkpoint must be complete, and {folder} was left by an interrupted save: "
            "use an older checkpoint; the next save removes this one"
        )
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"a checkpoint folder must contain {MANIFEST}, and {folder} does not: "
            "give a checkpoint, a run folder, or its checkpoints folder"
        )
    advice = "use another checkpoint"
    values = read_json_object(path, error_class=CheckpointError, advice=advice)
    # First, because the keys depend on it.
    _check_format(folder, values.get("format"), expected_format)
    manifest = decode_dataclass(
        values, Manifest, source=path, error_class=CheckpointError, advice=advice
    )
    values.pop("sha256", None)
    if manifest.sha256 not in (None, json_sha256(values)):
        raise _damaged(path, "has changed since it was written (its own SHA-256 differs)")
    for name in manifest.files:
        try:
            path_inside(folder, name, follow_links=True)  # the hash says what a link must lead to
        except ValueError as error:
            raise _damaged(path, f"cannot be used ({error})") from error
    return manifest


def _check_format(folder: Path, number: object, expected: int) -> None:
    if type(number) is not int:
        raise _damaged(folder / MANIFEST, "has no format number")
    if number != expected:
        advice = _FORMAT_ADVICE.get(number, "read it with the version of armd_scale that wrote it")
        raise _FormatError(
            f"{folder} must be a checkpoint of format {expected} (got format {number}): {advice}"
        )


def write_error(folder: Path, error: OSError) -> CheckpointError:
    """Return the error to raise when something in a folder of checkpoints cannot be written."""
    return CheckpointError(
        f"cannot write checkpoints to {folder} ({error.strerror or error}): free space or fix the "
        "permissions there, then rerun the same command to resume"
    )


def _replaced_path(folder: Path) -> Path:
    """Name of a checkpoint while another one of the same step takes its place."""
    return folder.parent / f".{folder.name}.replaced"


def _step_of(folder: Path) -> int:
    """The step in any of the names: step_N, .step_N.partial, .step_N.replaced."""
    return int(folder.name.removeprefix(".")[len("step_") :].partition(".")[0])


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint must be as it was written, and {path} {reason}: use another checkpoint"
    )


def _require_all_written(folder: Path, missing: set[str]) -> None:
    # Rank 0 commits what all ranks wrote. If it does not see a file, the ranks write to different
    # disks, and the checkpoint would be incomplete.
    if missing:
        raise CheckpointError(
            f"all ranks must write to the same folder {folder.parent}, and rank 0 does not see "
            f"{folder / min(missing)}, which another rank has written: set run.folder to a "
            "filesystem that all machines share"
        )


def _file_record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _fsync_tree(folder: Path) -> None:
    """Flush all files and folders to disk.

    A rename can reach the disk before the data does: without this, a power cut could leave a folder
    with a checkpoint's name and empty files in it.
    """
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
