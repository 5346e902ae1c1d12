"""Tests of log lines and progress, with and without a terminal."""

import io
import logging
import re
import sys
import time

import pytest

from armd_scale import log


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restore_logger():
    """Restore the package's logger after each test."""
    root = logging.getLogger("armd_scale")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test advances."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_log_lines_go_to_stderr_with_time_and_prefix(capsys):
    log.configure(prefix="[rank 3] ")
    log.get_logger("armd_scale.data.loader").info("read %d shards", 2)
    log.get_logger("armd_scale.data.loader").debug("not shown")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[rank 3\] read 2 shards\n", err)


def test_configuring_again_does_not_double_the_lines(capsys):
    log.configure()
    log.configure(level=logging.WARNING)
    log.get_logger("armd_scale.x").warning("once")
    log.get_logger("armd_scale.x").info("too quiet")
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_terminal_progress_is_logged_every_few_seconds(capsys, clock):
    log.configure()
    with log.ProgressBar("encoding", 40.0, unit="MB") as progress:
        for _ in range(25):
            clock[0] += 1
            progress.advance(note="1.5 MB/s" if clock[0] < 5 else "")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "encoding 10/40 MB 1.5 MB/s",
        "encoding 20/40 MB 1.5 MB/s",
    ]


def test_on_a_terminal_progress_is_a_bar_without_log_lines(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    log.configure()
    with log.ProgressBar("training", 4.0, unit="steps") as progress:
        for _ in range(3):
            clock[0] += 60
            progress.advance(note="loss 2.50")
    output = terminal.getvalue()
    for part in ("training", "3/4", "steps", "loss 2.50"):
        assert part in output
    assert not re.search(r"\d\d:\d\d:\d\d training", output)


def test_an_error_passes_through_and_stops_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyError), log.ProgressBar("training", 4.0):
        raise KeyError
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor stays hidden"
