"""Tests of exit statuses and messages of commands."""

import argparse

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
