"""metrics.jsonl: one object per line, complete after a kill, without lines of repeated steps."""

import errno
import json
import os
from pathlib import Path

import pytest

from armd_scale.errors import TrainingError
from armd_scale.metrics.jsonl import JsonlFile, JsonlWriter


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_line_is_flushed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, last_step=0)
    writer.write({"step": 1, "loss": 0.1 + 0.2})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.1 + 0.2}  # no digit is lost
    writer.write({"step": 2})
    assert path.read_text().count("\n") == 2
    writer.close()


def test_a_resumed_run_drops_later_steps_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s} for s in (1, 2, 3)] + [{"step": 3, "eval_order": "l2r"}, {"step": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    writer = JsonlWriter(path, last_step=3)
    assert steps_in(path) == [1, 2, 3, 3]
    writer.write({"step": 4})
    assert steps_in(path) == [1, 2, 3, 3, 4]
    writer.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_run_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonlWriter(path, last_step=0).close()
    assert path.read_text() == ""


def test_an_unwritable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        JsonlWriter(tmp_path / "missing" / "metrics.jsonl", last_step=0)
    assert str(tmp_path / "missing" / "metrics.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_buffered_while_the_disk_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = JsonlFile(tmp_path / "lines.jsonl")
    descriptor = os.dup(file._file.fileno())
    full = os.open("/dev/full", os.O_WRONLY)  # every write fails with ENOSPC
    os.dup2(full, file._file.fileno())
    for step in (1, 2):
        file.write({"step": step})
    assert caplog.text.count(os.strerror(errno.ENOSPC)) == 1  # one warning, not one per line
    os.dup2(descriptor, file._file.fileno())
    file.write({"step": 3})
    assert steps_in(tmp_path / "lines.jsonl") == [1, 2, 3]
    file.close()
    os.close(full)
    os.close(descriptor)


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 3, "lo', b"\xff\xfe\x00", b'"text"', b"[" * 100_000, b"\0" * 4096],
    ids=["torn", "not_utf8", "no_object", "nested", "zeros"],
)
def test_a_last_line_that_is_no_metrics_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + torn)
    writer = JsonlWriter(path, last_step=2)
    writer.write({"step": 3})
    writer.close()
    assert steps_in(path) == [1, 2, 3]
    assert f"removed the last line of {path}" in caplog.text


def test_lines_that_are_no_metrics_are_moved_to_another_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    foreign = b'a note\n\xff\n[1]\n{"loss": 1}\n{"step": true}\n{"step": "2"}\n{"step": 1e999}\n'
    path.write_bytes(b'{"step": 1}\n' + foreign + b'{"step": 2}\n')
    JsonlWriter(path, last_step=2).close()
    assert steps_in(path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == foreign
    assert "moved 7 lines" in caplog.text


def test_a_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    file = JsonlFile(path)
    file.write({"step": 3})
    file.close()
    assert steps_in(path) == [1, 2, 3]


def test_a_torn_line_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"st')
    file = JsonlFile(path)
    file.write({"step": 2})
    file.close()
    assert steps_in(path) == [1, 2]


@pytest.mark.parametrize("action", ["removed", "renamed", "replaced"])
def test_a_file_that_vanishes_while_it_is_written_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.1"
    file = JsonlFile(path)
    file.write({"step": 1})
    match action:
        case "removed":
            path.unlink()
        case "renamed":
            path.rename(other)
        case _:
            other.write_bytes(b"")
            other.replace(path)
    file.write({"step": 2})
    file.write({"step": 3})
    file.close()
    assert steps_in(path) == [2, 3]
    assert caplog.text.count("was removed or replaced") == 1


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="must be writable"):
        JsonlWriter(tmp_path, last_step=0)
