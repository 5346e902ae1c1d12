"""Errors that a user can cause, and the one place where a command turns them into an exit status.

Every message is one sentence that says what must hold, what was got (file, line or key) and what to
do.
"""

import sys
from collections.abc import Callable
from typing import NoReturn


class ArmdError(Exception):
    """Base of every error that the user, not the program, has to mend."""


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
    """A checkpoint that is missing, damaged, half-written or of another model."""


class TrainingError(ArmdError):
    """A run that cannot go on: non-finite loss, unwritable folder, lost process."""


class GenerationError(ArmdError):
    """A request to the sampler that the model cannot serve."""


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and exits: with its status, 2 for a user's error, 130 for Ctrl-C."""
    try:
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
