"""Finding input files."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from armd_scale.data.preprocess.sources import find_sources
from armd_scale.errors import CorpusError
from tests.support.corpus import read


def test_folders_are_walked_in_order_and_ignored_files_are_counted(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.py").write_text("b1")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c.md").write_text("c")
    (tmp_path / "b" / "1.pyc").write_bytes(b"\xff")
    (tmp_path / "LICENSE").write_text("left out")
    _, ignored = find_sources([str(tmp_path)])
    assert ignored == {"(none)": 1, ".pyc": 1}
    assert read(tmp_path)[0] == ["a", "c", "b1"]
    assert read(tmp_path / "**" / "*.py")[0] == ["b1"]
    assert read(tmp_path / "LICENSE")[0] == ["left out"]


def test_inputs_that_do_not_exist_are_errors(tmp_path: Path):
    for name in ("nope.jsonl", "nope/deeper/*.txt", "armd_scale/no_such_folder", "./nope"):
        with pytest.raises(CorpusError, match=r"does not exist|contains none of them"):
            find_sources([name])
    with pytest.raises(CorpusError, match="must contain text, JSON lines, CSV, Parquet or Arrow"):
        find_sources([str(tmp_path)])
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"state.json must list the .arrow files"):
        find_sources([str(tmp_path)])


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "a pipe, not a regular file"),
        (make_socket, "a socket, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
        (lambda path: path.symlink_to("none"), "a link to nothing"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
    ids=["pipe", "socket", "device", "link to nothing", "link to itself"],
)
def test_special_files_are_refused_without_opening_them(
    tmp_path: Path, make: Callable[[Path], None], reason: str
):
    (tmp_path / "good.txt").write_text("good")
    make(tmp_path / "x.jsonl")
    for given in (tmp_path / "x.jsonl", tmp_path, tmp_path / "*"):
        with pytest.raises(CorpusError) as refusal:
            find_sources([str(given)])
        assert (
            str(refusal.value) == f"{tmp_path}/x.jsonl cannot be read ({reason}): check the input"
        )


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "~no_such_user/x.txt", "x" * 300 + "*"])
def test_names_that_no_file_can_have_are_refused(name: str):
    with pytest.raises(CorpusError, match="input"):
        find_sources([name])


def test_a_folder_with_the_suffix_of_a_file_is_a_folder(tmp_path: Path):
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "a.txt").write_text("a")
    assert read(tmp_path / "x.jsonl")[0] == read(tmp_path)[0] == ["a"]


def test_results_below_the_input_are_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    for name in ("out.json", "out.bin", "out.idx", "out.work/key", "out.work/0.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "out.tokenizer").mkdir()
    (tmp_path / "out.tokenizer" / "tokenizer.json").write_text("{}")
    assert read(tmp_path) == (["a"], [])
