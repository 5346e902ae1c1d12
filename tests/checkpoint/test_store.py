"""Tests of checkpoint folders: they appear complete or not at all, and changes are detected."""

import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from armd_scale.checkpoint.store import (
    MANIFEST,
    commit,
    create_partial,
    latest_valid,
    list_checkpoints,
    read_manifest,
    set_aside_after,
    verify,
)
from armd_scale.errors import CheckpointError
from tests.support.cli import contents


def write(
    checkpoints: Path, step: int, *, content: str = "x", keep: int = 9, keep_every: int = 0
) -> Path:
    """Write a checkpoint of two small files."""
    partial = create_partial(checkpoints, step)
    (partial / "weights").mkdir()
    (partial / "weights" / "a.bin").write_text(f"weights {content}")
    (partial / "state.json").write_text(f"state {content}")
    return commit(partial, keep=keep, keep_every=keep_every)


def refused(folder: Path, prefix: str = "") -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(folder, prefix=prefix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_appears_when_it_is_committed(tmp_path: Path) -> None:
    partial = create_partial(tmp_path, 7)
    (partial / "file").write_text("content")
    assert list_checkpoints(tmp_path) == []
    folder = commit(partial, keep=1)
    assert folder == tmp_path / "step_00000007"
    assert list_checkpoints(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == [folder]
    assert read_manifest(folder).step == 7
    assert set(read_manifest(folder).files) == {"file"}
    verify(folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (100, 20, 3, 400):
        write(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000100", "step_00000400"]


def test_checkpoints_at_multiples_of_a_step_are_kept_besides(tmp_path: Path) -> None:
    for step in range(5, 75, 10):
        write(tmp_path, step, keep=2, keep_every=15)
    steps = [int(path.name[5:]) for path in list_checkpoints(tmp_path)]
    assert steps == [15, 45, 55, 65]
    # 75 stays for good, and does not take the place of one of the two.
    write(tmp_path, 75, keep=2, keep_every=15)
    steps = [int(path.name[5:]) for path in list_checkpoints(tmp_path)]
    assert steps == [15, 45, 55, 65, 75]


def test_all_are_kept_if_none_need_be_removed(tmp_path: Path) -> None:
    for step in range(5):
        write(tmp_path, step, keep=0)
    assert len(list_checkpoints(tmp_path)) == 5


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step_1_best").mkdir()
    for step in (1, 2, 3):
        write(tmp_path, step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt", "step_00000003", "step_1_best",
    ]  # fmt: skip


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 5, content="old")
    folder = write(tmp_path, 5, content="new")
    verify(folder)
    assert (folder / "state.json").read_text() == "state new"
    assert list(tmp_path.iterdir()) == [folder]


def die_during_a_save(checkpoints: Path) -> None:
    partial = create_partial(checkpoints, 2)
    (partial / "state.json").write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_the_rename(checkpoints: Path) -> None:
    Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    write(checkpoints, 2)


@pytest.mark.parametrize("die", [die_during_a_save, die_before_the_rename])
def test_a_killed_save_leaves_the_previous_checkpoint_intact(
    tmp_path: Path, die: Callable[[Path], None]
) -> None:
    first = write(tmp_path, 1)
    before = contents(first)
    process = multiprocessing.get_context("fork").Process(target=die, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    (partial,) = tmp_path.glob(".step_*")
    assert latest_valid(tmp_path) == first
    assert contents(first) == before
    message = refused(partial)
    assert str(partial) in message
    assert "interrupted" in message
    second = write(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == [first, second]


def die_between_the_renames(checkpoints: Path) -> None:
    rename, renamed = Path.rename, []

    def once(path: Path, target: Path) -> None:
        if renamed:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed.append(rename(path, target))

    Path.rename = once  # type: ignore[method-assign,assignment]
    write(checkpoints, 2, content="new")


def test_a_replaced_checkpoint_is_restored_if_the_save_is_killed(tmp_path: Path) -> None:
    """The save is killed between its two renames, when only the old checkpoint is complete."""
    write(tmp_path, 2, content="old")
    process = multiprocessing.get_context("fork").Process(
        target=die_between_the_renames, args=(tmp_path,)
    )
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    folder = latest_valid(tmp_path)
    assert folder is not None
    assert (folder / "state.json").read_text() == "state old"
    both = [tmp_path / "step_00000002", write(tmp_path, 3)]
    assert list_checkpoints(tmp_path) == sorted(tmp_path.iterdir()) == both
    assert (both[0] / "state.json").read_text() == "state old"


def test_a_changed_byte_is_detected(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    file = folder / "weights" / "a.bin"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    assert f"{file} has changed since it was written" in refused(folder)
    verify(folder, prefix="state.json")  # the other file is intact


def test_truncation_is_detected(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "state.json").write_text("st")
    assert f"{folder / 'state.json'} has 2 bytes instead of 7" in refused(folder)


def test_a_missing_file_is_detected(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "state.json").unlink()
    assert f"{folder / 'state.json'} is missing" in refused(folder)


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert f"must contain {MANIFEST}, and {tmp_path} does not" in refused(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    assert "cannot be read" in refused(tmp_path)


def test_another_format_version_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))
    expected = f"{folder} must be a checkpoint of format 3 (got format 1): read it with the version"
    assert expected in refused(folder)
    with pytest.raises(CheckpointError, match="must be a checkpoint of format 3"):
        latest_valid(tmp_path)


def test_damaged_checkpoints_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("armd_scale"), "propagate", True)
    first, *later = (write(tmp_path, step) for step in (1, 2, 3))
    for folder in later:
        (folder / "weights" / "a.bin").write_text("cut")
    assert latest_valid(tmp_path) == first
    # Once each: a handler that another test added to the logger may repeat every record.
    messages = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert [str(later[1]) in message for message in messages] == [True, False]
    assert "falling back to the previous checkpoint" in caplog.text
    (first / "state.json").unlink()
    assert latest_valid(tmp_path) is None


def test_a_file_that_rank_0_does_not_see_is_named(tmp_path: Path) -> None:
    partial = create_partial(tmp_path, 1)
    with pytest.raises(CheckpointError, match="a filesystem that all machines share") as caught:
        commit(partial, keep=1, hashed={"weights/a.bin": {"bytes": 1, "sha256": ""}})
    assert str(partial / "weights" / "a.bin") in str(caught.value)
    assert list_checkpoints(tmp_path) == []


def test_a_new_run_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []
    assert latest_valid(tmp_path) is None


def test_a_write_error_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*file/x") as caught:
        create_partial(tmp_path / "file" / "x", 1)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "weights" / ".nfs0001").write_text("a file system's own")
    verify(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not listed in its manifest" in refused(folder)
    verify(folder, prefix="weights")


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"step": None},
        {"files": []},
        {"files": {"state.json": None}},
        {"files": {"state.json": {"bytes": "7", "sha256": ""}}},
        {"files": {"state.json": {"bytes": 7}}},
        {"files": {"../state.json": {"bytes": 7, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 7, "sha256": ""}}},
        {"files": {"": {"bytes": 7, "sha256": ""}}},
        {"format": "3"},
        {"format": None},
    ],
)
def test_a_manifest_with_wrong_types_or_paths_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    folder = write(tmp_path, 1)
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert str(path) in refused(folder)


def test_any_flipped_bit_of_a_manifest_leads_to_the_checkpoint_before(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1), write(tmp_path, 2)
    path = second / MANIFEST
    data = path.read_bytes()
    outcomes = set()
    for index in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            path.write_bytes(changed)
            # A flip may turn the format number into another one, which is never passed over.
            with suppress(CheckpointError):
                outcomes.add(latest_valid(tmp_path))
    # Some flips change nothing that matters, such as a space between two keys or the step.
    assert outcomes <= {first, second}


def test_retention_neither_counts_nor_removes_damaged_checkpoints(tmp_path: Path) -> None:
    first, second = (write(tmp_path, step) for step in (1, 9))
    (second / "weights" / "a.bin").write_text("cut")
    third = write(tmp_path, 2, keep=1)
    assert not first.exists()
    assert third.exists()
    assert second.exists()
    assert latest_valid(tmp_path) == third


def test_later_checkpoints_are_set_aside_under_names_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        first, *later = (write(tmp_path, step) for step in (1, 2, 3))
        renamed = set_aside_after(tmp_path, 1, suffix="abandoned")
        assert not any(folder.exists() for folder in later)
        assert list_checkpoints(tmp_path) == [first]
        assert all((folder / MANIFEST).is_file() for folder in renamed)
    names = sorted(path.name for path in tmp_path.glob("*abandoned*"))
    assert names == [
        "step_00000002.abandoned", "step_00000002.abandoned2",
        "step_00000003.abandoned", "step_00000003.abandoned2",
    ]  # fmt: skip


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path, 7)
    path = folder / "manifest.json"
    original = path.read_text()
    assert read_manifest(folder).step == 7
    for old, new in (('"step": 7', '"step": 6'), ('"bytes": ', '"bytes": 1'), ("sha256", "sha257")):
        path.write_text(original.replace(old, new, 1))
        with pytest.raises(CheckpointError, match=rf"{path}.*(has changed|not a known key)"):
            read_manifest(folder)


def test_a_manifest_without_a_hash_of_its_own_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 7)
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps(values))
    verify(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", True),
        ("step", 1.5),
        ("files", []),
        ("files", {"file": {"bytes": "1", "sha256": ""}}),
        ("files", {"file": {"bytes": 1}}),
        ("files", {"../a": {"bytes": 1, "sha256": ""}}),
        ("sha256", 5),
    ],
)
def test_a_manifest_of_wrong_types_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = write(tmp_path, 7)
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["sha256"]
    path.write_text(json.dumps({**values, key: value}))
    with pytest.raises(CheckpointError, match=str(path)):
        read_manifest(folder)
