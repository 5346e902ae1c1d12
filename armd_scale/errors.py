"""User-facing exceptions, and how a command turns them into a message and an exit status.

Every message is one sentence that says what must hold, what was found (with file, line or key) and
what to do.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn


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


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the `main` function of a command, and exit with its status.

    The status is what `main` returns (None: 0), 2 for an `ArmdError`, whose message goes to stderr,
    130 for Ctrl-C, and 141 if the reader of the output has closed the pipe, as shells report it.
    """
    try:
        # 2 is also argparse's status for a wrong option. 130 and 141 are 128 plus the number of the
        # signal, SIGINT (2) and SIGPIPE (13).
        status = main() or 0
    except ArmdError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = 141
    sys.exit(status)
