"""User-facing exceptions, and how a command turns them into a message and an exit status.

Every message is one sentence that says what must hold, what was found (with file, line or key) and
what to do.
"""

import argparse
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

_INTERRUPTED = "interrupted: run the same command again to continue"
_INTERRUPTED_STATUS = 130
"""128 plus the number of SIGINT, as shells report it."""
# Longer than any message with ordinary names in it; a path alone can have thousands of characters.
_MAX_MESSAGE = 2000
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArmdError(Exception):
    """Base class of errors that the user can fix; anything else is a bug."""


class RecipeError(ArmdError):
    """A recipe or override that cannot run: unknown key, wrong type, impossible layout."""


class OrderError(ArmdError):
    """An order that does not exist or does not fit the sequence."""


class CorpusError(ArmdError):
    """Input text that cannot be read or tokenized."""


class TokenizerError(ArmdError):
    """A tokenizer that is missing, unreadable or of another vocabulary."""


class ShardError(ArmdError):
    """Token shards (.bin/.idx/.json) that are missing, damaged or do not fit the request."""


class CheckpointError(ArmdError):
    """A checkpoint or model folder that is missing, damaged, incomplete or of another model."""


class TrainingError(ArmdError):
    """A run that cannot continue: non-finite loss, unwritable folder, lost process."""


class GenerationError(ArmdError):
    """A generation request that the model cannot serve."""


def refuse_renamed_options(parser: argparse.ArgumentParser, renamed: Mapping[str, str]) -> None:
    """Make `parser` refuse the former names of options, with a message that gives the current name.

    Args:
        parser: parser of a command that runs under `run_command`.
        renamed: current name (or other advice that fits after "use") by former name, both with
            their dashes.

    Raises:
        ArmdError: by `parser.parse_args`, if a former name is used.
    """
    for old, new in renamed.items():
        parser.add_argument(old, action=_RenamedOption, new=new)


class _RenamedOption(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, *, new: str) -> None:
        # SUPPRESS keeps the option out of --help, and its destination out of the parsed arguments.
        # With `nargs="?"` both `--old` and `--old VALUE` get here instead of failing to parse.
        super().__init__(
            option_strings,
            argparse.SUPPRESS,
            nargs="?",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        self._new = new

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> NoReturn:
        raise ArmdError(f"{self.option_strings[0]} has been renamed: use {self._new}")


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once, with one line instead of a traceback.

    For the imports of a command, which take seconds: a KeyboardInterrupt raised in the middle of a
    library's import would be printed with its traceback, or be caught there and lost.
    """
    if threading.current_thread() is not threading.main_thread():  # nor may it set handlers
        yield
        return
    previous = signal.signal(signal.SIGINT, _exit_interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _exit_interrupted(*_: object) -> NoReturn:
    # A system call and no print: the signal may have arrived in the middle of another print.
    os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(_INTERRUPTED_STATUS)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the `main` function of a command, and exit with its status.

    The status is what `main` returns (None: 0), 2 for an `ArmdError`, whose message goes to stderr,
    130 for Ctrl-C, and 141 if the reader of the output has closed the pipe, as shells report it.
    Status 2 with one sentence is also the end of what the system refuses: memory, space on a disk,
    or a file by its name.
    """
    _print_any_text()
    try:
        # 2 is also argparse's status for a wrong option, and 141 is 128 plus the number of SIGPIPE.
        status = main() or 0
        sys.stdout.flush()  # here and not at exit, where a full disk would end in a traceback
    except ArmdError as error:
        status = _fail(str(error))
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        status = _INTERRUPTED_STATUS
    except BrokenPipeError:
        status = 141
        _drop_output()
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        status = _fail(f"there is not enough memory{reason}: ask for less, or use a larger machine")
    except OSError as error:
        # Without a name or a full disk it is not about a file of the user's, but a bug.
        if error.filename is None and error.errno not in _NO_SPACE:
            raise
        name = "the output" if error.filename is None else str(error.filename)
        _drop_output()
        status = _fail(
            f"cannot use {name} ({error.strerror}): check that it exists, its permissions and the "
            "free space of its disk"
        )
    # What is left is the end of threads and of the interpreter, which would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


def _print_any_text() -> None:
    """Let both outputs print names that are not valid in their encoding, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Forget what could not be printed, which Python would try again, and report, at exit."""
    sys.stdout = io.StringIO()


def _fail(message: str) -> int:
    """Print the message of an error on one line, shortened in the middle; return the status."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    if len(line) > _MAX_MESSAGE:
        half = _MAX_MESSAGE // 2
        line = f"{line[:half]} [...] {line[-half:]}"
    print(f"error: {line}", file=sys.stderr)
    return 2
