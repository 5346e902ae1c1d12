"""Tests of exit statuses and messages of commands."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from armd_scale import errors


def exit_status(main):
    with pytest.raises(SystemExit) as stopped:
        errors.run_command(main)
    return stopped.value.code


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (143, 143)])
def test_the_exit_status_is_the_value_that_main_returns(returned, status, capsys):
    assert exit_status(lambda: returned) == status
    assert capsys.readouterr() == ("", "")


ERROR_CLASSES = [value for value in vars(errors).values() if str(value).endswith("Error'>")]


@pytest.mark.parametrize("error_class", ERROR_CLASSES)
def test_a_user_error_is_one_sentence_and_status_2(error_class, capsys):
    assert issubclass(error_class, errors.ArmdError)
    message = "data.train must exist (got 'x'): check the path"
    assert exit_status(raising(error_class(message))) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_ctrl_c_says_how_to_continue(capsys):
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue\n"


def test_a_closed_pipe_is_not_reported(capsys):
    assert exit_status(raising(BrokenPipeError())) == 141
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(AssertionError, match="a bug"):
        errors.run_command(raising(AssertionError("a bug")))


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("input", nargs="?")
    parser.add_argument("--speculative", type=int)
    errors.refuse_renamed_options(parser, {"--lossless": "--speculative"})
    return parser


@pytest.mark.parametrize("words", [["--lossless"], ["--lossless", "4"], ["--lossless=4"]])
def test_a_renamed_option_is_refused_with_its_current_name(parser, words):
    with pytest.raises(errors.ArmdError, match="--lossless has been renamed: use --speculative"):
        parser.parse_args(["file", *words])


def test_a_renamed_option_appears_nowhere_else(parser):
    assert vars(parser.parse_args(["--speculative", "4"])) == {"input": None, "speculative": 4}
    assert "--lossless" not in parser.format_help()


def test_a_message_is_one_short_line_of_printable_characters(capsys):
    assert exit_status(raising(errors.ArmdError("a\nb\udcff\0" + "x" * 9000 + " end"))) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a\\nb\\udcff\\x00xxx")
    assert message.endswith("xxx end\n")
    assert len(message) < 2100
    assert message.count("\n") == 1


def test_names_that_are_no_valid_text_can_be_printed():
    code = """
from armd_scale.errors import run_command
run_command(lambda: print("\\udcff"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\udcff\n", b"")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 7 TiB"), "there is not enough memory (Unable to allo"),
        (PermissionError(13, "Permission denied", "/a/b"), "cannot use /a/b (Permission denied)"),
        (OSError(28, "No space left on device"), "cannot use the output (No space left on device)"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # run_command replaces it
    assert exit_status(raising(error)) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_an_os_error_without_a_file_is_a_bug():
    with pytest.raises(OSError, match="a bug"):
        errors.run_command(raising(OSError("a bug")))


def test_a_full_disk_under_the_output_is_one_sentence():
    code = "from armd_scale.errors import run_command; run_command(lambda: print(1))"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: cannot use the output (No space left on device)")
    assert done.stderr.count(b"\n") == 1
