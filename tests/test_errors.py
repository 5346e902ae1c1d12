"""What a command's exit says."""

import pytest

from armd_scale import errors


def exit_of(main):
    with pytest.raises(SystemExit) as stopped:
        errors.run_command(main)
    return stopped.value.code


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (143, 143)])
def test_the_status_is_what_main_returns(returned, status, capsys):
    assert exit_of(lambda: returned) == status
    assert capsys.readouterr() == ("", "")


KINDS = [kind for kind in vars(errors).values() if str(kind).endswith("Error'>")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_error_is_one_sentence_and_status_2(kind, capsys):
    assert issubclass(kind, errors.ArmdError)
    assert exit_of(raising(kind("data.train must exist, got 'x': check the path"))) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: data.train must exist, got 'x': check the path\n")


def test_control_c_says_how_to_go_on(capsys):
    assert exit_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue\n"


def test_a_reader_that_went_away_is_no_failure_to_report(capsys):
    assert exit_of(raising(BrokenPipeError())) == 141
    assert capsys.readouterr() == ("", "")


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(AssertionError, match="ours"):
        errors.run_command(raising(AssertionError("ours")))
