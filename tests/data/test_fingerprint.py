"""Fingerprints of datasets: equal after a move, different after a change."""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from armd_scale.data.fingerprint import DataFingerprint, fingerprint
from armd_scale.errors import ShardError
from tests.support.shards import write_pair


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    documents = [[k % 50] * (1 + k % 7) for k in range(3000)]
    return write_pair(tmp_path / "corpus", documents)


def test_a_copy_has_the_same_fingerprint(prefix: str, tmp_path: Path) -> None:
    for suffix in (".bin", ".idx"):
        shutil.copy(prefix + suffix, tmp_path / f"copy{suffix}")
    assert fingerprint([prefix]) == fingerprint([str(tmp_path / "copy")])


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_changed_byte_changes_it(prefix: str, suffix: str, position: float) -> None:
    before = fingerprint([prefix])
    data = np.fromfile(prefix + suffix, np.uint8)
    data[round(position * (len(data) - 1))] ^= 1
    data.tofile(prefix + suffix)
    assert not before.matches(fingerprint([prefix]))


def test_more_documents_change_it(prefix: str, tmp_path: Path) -> None:
    before = fingerprint([prefix])
    write_pair(tmp_path / "corpus", [[1]] * 10)
    assert not before.matches(fingerprint([prefix]))


def test_the_checksum_counts_where_both_have_one() -> None:
    recorded, other = DataFingerprint("a", "1"), DataFingerprint("a", "2")
    assert not recorded.matches(other)
    assert recorded.matches(DataFingerprint(**asdict(recorded)))
    assert recorded.matches(DataFingerprint("a"))
    assert DataFingerprint("a").matches(recorded)
    assert not recorded.matches(DataFingerprint("b", "1"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none\.bin must be readable"):
        fingerprint([str(tmp_path / "none")])


def test_datasets_of_one_source_have_one_fingerprint(prefix: str, tmp_path: Path) -> None:
    others = [write_pair(tmp_path / f"{k}", [[k] * 9]) for k in range(300)]
    together = fingerprint([prefix, *others])
    assert together == fingerprint([prefix, *others])
    assert together != fingerprint([*others, prefix])
    write_pair(tmp_path / "299", [[7] * 9])
    assert not together.matches(fingerprint([prefix, *others]))
