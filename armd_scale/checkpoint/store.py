"""Checkpoint folders on disk: committed by one rename, checked against their manifest.

A checkpoint is written under a name that starts with a dot. Its manifest, which holds the size and
SHA-256 of every file, is written last, and the folder is renamed after that: what has a
checkpoint's name is whole, and a file that changed since is found out.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armd_scale.errors import CheckpointError
from armd_scale.log import get_logger

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step_\d{8}|\.step_\d{8}\.replaced")


def folder_name(step: int) -> str:
    """Name of the checkpoint taken after `step` optimizer steps."""
    return f"step_{step:08d}"


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it has its name."""
    return checkpoints / f".{folder_name(step)}.partial"


def create_partial(checkpoints: Path, step: int, *, subfolders: Sequence[str] = ()) -> Path:
    """A folder to write a checkpoint into; leftovers of a broken save are removed.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    partial = partial_folder(checkpoints, step)
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in list_checkpoints(checkpoints):
            if folder.name.startswith("."):
                folder.rename(checkpoints / folder_name(_step_of(folder)))
        for old in checkpoints.glob(".step_*"):
            shutil.rmtree(old)
        partial.mkdir()
        for name in subfolders:
            (partial / name).mkdir()
    except OSError as error:
        raise write_error(checkpoints, error) from error
    return partial


def commit(partial: Path, *, keep: int, hashed: Mapping[str, Any] | None = None) -> Path:
    """Makes what was written into a checkpoint, then removes all but the newest `keep`.

    Args:
        partial: from `begin`, filled.
        keep: how many checkpoints stay; 0 for all of them.
        hashed: size and SHA-256, by name, of files whose writers took them; the rest is read.

    Raises:
        CheckpointError: the folder cannot be written, or lacks a file that was.
    """
    step = _step_of(partial)
    final = partial.parent / folder_name(step)
    hashed = hashed or {}
    try:
        names = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
        _require_all(partial, set(hashed) - set(names))
        files = {name: hashed.get(name) or _file_record(partial / name) for name in names}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _flush(partial)
        # A checkpoint of the same step is replaced: set aside first, because a rename cannot
        # overwrite a folder.
        replaced = _replaced_path(final)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in list_checkpoints(partial.parent)[:-keep] if keep > 0 else []:
            shutil.rmtree(old)
    except OSError as error:
        raise write_error(partial.parent, error) from error
    return final


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first.

    One that was set aside counts where the save that was to replace it was killed.
    """
    if not checkpoints.is_dir():
        return []
    steps = {_step_of(path) for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)}
    named = (checkpoints / folder_name(step) for step in sorted(steps))
    return [folder if folder.exists() else _replaced_path(folder) for folder in named]


def latest_valid(checkpoints: Path, *, prefix: str | tuple[str, ...] = "") -> Path | None:
    """The newest checkpoint that `verify` passes; damaged ones are named and passed by."""
    for folder in reversed(list_checkpoints(checkpoints)):
        try:
            verify(folder, inside=prefix)
        except CheckpointError as error:
            get_logger(__name__).warning("%s; trying the one before it", error)
            continue
        return folder
    return None


def verify(folder: Path, *, inside: str | tuple[str, ...] = "") -> None:
    """Compares files with the manifest: all of them, or those whose names begin with `inside`.

    Raises:
        CheckpointError: the folder is no checkpoint, or a file is missing, cut short or changed.
    """
    for name, expected in read_manifest(folder)["files"].items():
        if not name.startswith(inside):
            continue
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "is missing")
        if path.stat().st_size != expected["bytes"]:
            raise _damaged(path, f"has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise _damaged(path, "has other contents than when it was written")


def read_manifest(folder: Path) -> dict:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if folder.name.endswith(".partial"):
        raise CheckpointError(
            f"a checkpoint must be whole, and {folder} is a save that was interrupted: "
            "use an older checkpoint; the next save removes this one"
        )
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"a checkpoint folder must hold {MANIFEST}, and {folder} does not: "
            "give a checkpoint, a run folder, or its checkpoints folder"
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must have format {FORMAT}, got {manifest.get('format')}: "
            "read it with the version of armd_scale that wrote it"
        )
    return manifest


def _replaced_path(folder: Path) -> Path:
    """Where a checkpoint waits while another of its step takes its name."""
    return folder.parent / f".{folder.name}.replaced"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(".")[len("step_") :].partition(".")[0])


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint must be as it was written, and {path} {how}: use another checkpoint"
    )


def _require_all(partial: Path, missing: set[str]) -> None:
    if missing:
        raise CheckpointError(
            f"all processes must write to one {partial.parent}, and the first sees no "
            f"{partial / min(missing)} that another has written: put run.folder on a filesystem "
            "that all machines share"
        )


def write_error(folder: Path, error: OSError) -> CheckpointError:
    """The error for a folder of checkpoints that something could not be written to."""
    return CheckpointError(
        f"checkpoints must be written to {folder}, and that failed ({error.strerror or error}): "
        "free space or mend permissions there, then start again to resume"
    )


def _file_record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Brings every file to disk, so that a power cut cannot leave a renamed but empty folder."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
