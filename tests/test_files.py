"""Tests of atomic writes, hashes and checks of output paths."""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from armd_scale.errors import ArmdError, CheckpointError
from armd_scale.files import (
    atomic_directory,
    atomic_file,
    atomic_write_bytes,
    atomic_write_text,
    open_regular,
    path_inside,
    read_regular_file,
    require_parent_dir,
    require_writable,
    sha256_file,
)
from armd_scale.json_files import atomic_write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_json_are_written_and_leave_nothing_else(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "text", "Zürich\n")
    atomic_write_bytes(tmp_path / "bytes", b"\x00\xff")
    atomic_write_json(tmp_path / "json", {"a": [1, 2.345]}, indent=1)
    assert (tmp_path / "text").read_bytes() == "Zürich\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "json").read_text() == json.dumps({"a": [1, 2.345]}, indent=1) + "\n"
    assert names(tmp_path) == ["bytes", "json", "text"]


def test_the_old_file_is_visible_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert names(tmp_path) == [".result.partial", "result"]
    assert path.read_text() == "new"


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_a_write_error_names_the_file_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / "file", "Not a directory"),
    ):
        path = folder / "result"
        with pytest.raises(CheckpointError, match=rf"cannot write {path} \({reason}\): check that"):
            atomic_write_text(path, "text", error_class=CheckpointError)


def test_a_directory_appears_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "folder"
    with atomic_directory(path) as partial:
        (partial / "file").write_text("content")
        assert not path.exists()
    assert (path / "file").read_text() == "content"
    assert names(path.parent) == ["folder"]


def test_a_directory_replaces_an_old_one_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")

    def interrupted() -> None:
        with atomic_directory(path) as partial:
            (partial / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(path) == ["old"]
    with atomic_directory(path) as partial:
        (partial / "new").write_text("")
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_leftovers_of_a_killed_process_are_not_mixed_in(tmp_path: Path) -> None:
    leftover = tmp_path / ".folder.partial"
    leftover.mkdir()
    (leftover / "stale").write_text("")
    with atomic_directory(tmp_path / "folder") as partial:
        (partial / "fresh").write_text("")
    assert names(tmp_path / "folder") == ["fresh"]


def test_a_directory_error_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "folder"
    with (
        pytest.raises(CheckpointError, match=f"cannot write {path} "),
        atomic_directory(path, error_class=CheckpointError),
    ):
        raise AssertionError("unreachable: the temporary folder cannot be created")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_parent_folder_is_checked_before_the_work(tmp_path: Path) -> None:
    require_parent_dir(None, "--json")
    require_parent_dir(Path("result.json"), "--json")
    require_parent_dir(tmp_path / "result.json", "--json")
    with pytest.raises(ArmdError, match="--json must name a file in an existing folder"):
        require_parent_dir(tmp_path / "missing" / "result.json", "--json")


def test_writability_is_checked_before_the_work(tmp_path: Path) -> None:
    require_writable(None, "--json")
    require_writable(tmp_path / "result.json", "--json")
    assert names(tmp_path) == []
    for path, reason in (
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "result.json", "No such file or directory"),
    ):
        with pytest.raises(ArmdError, match=rf"--json must name .* {reason}\)"):
            require_writable(path, "--json")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["link", "target"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    null = Path("/dev/null")
    require_writable(null, "--json", error_class=CheckpointError)
    atomic_write_text(null, "text")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_pipe_gets_the_whole_text(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_writable(pipe, "--json")
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        atomic_write_text(pipe, "text")
        assert read.result(timeout=60) == "text"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["n" * 255, "", "a\0b", "missing/file"])
def test_a_name_that_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    for write in (
        lambda path: atomic_write_text(path, "text"),
        lambda path: require_writable(path, "--json"),
    ):
        with pytest.raises(ArmdError) as caught:
            write(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "", "a\0b", "link", "link/a", 3, None])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    with pytest.raises(ValueError, match=r"is (not|a link)"):
        path_inside(tmp_path, name)
    with pytest.raises(ValueError, match="is not inside its folder"):
        path_inside(tmp_path, "a/../../b", follow_links=True)
    assert path_inside(tmp_path, "a/b.c") == tmp_path / "a" / "b.c"
    assert path_inside(tmp_path, "link/a", follow_links=True) == tmp_path / "link" / "a"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "large").write_bytes(bytes(11))
    for name, reason in (
        ("pipe", "a pipe, not a regular file"),
        ("nowhere", "a link to nothing"),
        (".", "a folder, not a regular file"),
        ("a\0b", "no file can have this name"),
        ("large", "larger than 0 MiB"),
        ("none", "No such file"),
    ):
        with pytest.raises(OSError, match=reason):
            read_regular_file(tmp_path / name, max_bytes=10)
    (tmp_path / "small").write_bytes(b"small")
    assert read_regular_file(tmp_path / "small", max_bytes=10) == b"small"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    reasons = {
        tmp_path / "pipe": "a pipe, not a regular file",
        Path("/dev/zero"): "a device, not a regular file",
        tmp_path: "a folder, not a regular file",
        tmp_path / "loop": "symbolic links",
        tmp_path / "none": "No such file",
        tmp_path / ("a" * 300): "too long",
        tmp_path / "a\0b": "no file can have this name",
        tmp_path / "\ud800": "no file can have this name",
    }
    for path, reason in reasons.items():
        with pytest.raises(OSError, match=reason):
            open_regular(path)


@pytest.mark.parametrize("path", [Path("/"), Path()])
def test_a_path_without_a_name_is_no_file_to_write(path: Path) -> None:
    with pytest.raises(ArmdError, match="is a folder"):
        atomic_write_text(path, "")
    with pytest.raises(ArmdError, match="is a folder"), atomic_directory(path):
        pass
    with pytest.raises(ArmdError, match="is a directory"):
        require_writable(path, "--json")
