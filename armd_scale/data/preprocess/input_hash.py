"""Notice that an input changed: while it is read, or since a result was made from it.

The content hash of a file is the sum, modulo 2**256, of the SHA-256 of its blocks of 1 MiB, each
with the block's index in front. A sum can be computed in parts: each work unit adds the blocks that
start in its range, in whichever process or shard it is encoded, right after it has read them and
while they are in the page cache. It is the same for every way to cut the file into units.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from armd_scale.data.manifest import SourceRecord, add_hashes
from armd_scale.data.preprocess.sources import Source
from armd_scale.data.preprocess.work_units import WorkUnit
from armd_scale.errors import CorpusError
from armd_scale.files import regular_file_status

_BLOCK_BYTES = 1 << 20


def check_unchanged(unit: WorkUnit) -> None:
    """Check that the files of a unit are as they were when the inputs were listed.

    Raises:
        CorpusError: one has another size or modification time, or is gone.
    """
    if unit.kind == "hub":
        return
    for path, stamp in zip(unit.paths, unit.stamps, strict=True):
        try:
            status = regular_file_status(path)
        except OSError as error:
            change = str(error.strerror)
        else:
            if (status.st_size, status.st_mtime_ns) == stamp:
                continue
            change = f"it had {stamp[0]} bytes and has {status.st_size} now"
            if status.st_size == stamp[0]:
                change = "its modification time is another one"
        raise CorpusError(
            f"{path} must not change while it is read, but did ({change}): make sure that nothing "
            "writes to the inputs, and run the same command again; finished work is kept"
        )


def hash_unit(unit: WorkUnit) -> list[str]:
    """Return for each file of a unit its part of the content hash.

    What cannot be read of a file does not contribute; its reader reports it.
    """
    if unit.kind == "hub":
        return []
    start, stop = unit.start, unit.stop
    if unit.kind not in ("text", "lines"):
        # Row groups are not ranges of bytes: the unit of the first takes the whole file.
        start, stop = 0, None if unit.start == 0 else 0
    return [_hash_range(path, start, stop) for path in unit.paths]


def sum_hashes(
    units: Sequence[WorkUnit], unit_hashes: Iterable[Sequence[str]]
) -> Mapping[str, str | None]:
    """Add the parts of `hash_unit` of all units; return the content hash by path."""
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for unit, hashes in zip(units, unit_hashes, strict=True):
        for path, part in zip(unit.paths, hashes, strict=bool(hashes)):
            parts[path].append(part)
    return {path: add_hashes(values) for path, values in parts.items()}


def source_records(
    sources: Iterable[Source], hashes: Mapping[str, str | None]
) -> tuple[SourceRecord, ...]:
    """Return what a manifest says about the inputs.

    Args:
        sources: all inputs.
        hashes: content hash by path, of `sum_hashes`; that of an input of another shard is zero.
    """
    zero = add_hashes(())
    return tuple(
        SourceRecord(
            source.path,
            source.size,
            None if source.kind == "hub" else hashes.get(source.path, zero),
        )
        for source in sources
    )


def hash_units(units: Sequence[WorkUnit], *, num_threads: int) -> Mapping[str, str | None]:
    """Read the files of all units and return their content hashes by path."""
    with ThreadPoolExecutor(num_threads) as pool:  # hashlib computes without the interpreter lock
        return sum_hashes(units, pool.map(hash_unit, units))


def _hash_range(path: str, start: int, stop: int | None) -> str:
    """Return the sum over the blocks of a file that start in [start, stop)."""
    index, total = -(-start // _BLOCK_BYTES), 0
    if stop is not None and index * _BLOCK_BYTES >= stop:
        return f"{total:064x}"
    try:
        with Path(path).open("rb") as file:
            file.seek(index * _BLOCK_BYTES)
            while (stop is None or index * _BLOCK_BYTES < stop) and (
                block := file.read(_BLOCK_BYTES)
            ):
                digest = hashlib.sha256(index.to_bytes(8))
                digest.update(block)
                total += int.from_bytes(digest.digest())
                index += 1
    except OSError:
        pass  # the file is unreadable from here on
    return f"{total % (1 << 256):064x}"
