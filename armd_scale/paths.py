"""Paths as users write them: `~` and environment variables in them are expanded here, only."""

import os.path
import re

_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})", re.ASCII)


def expand_path(text: str) -> str:
    """Return a path with `~`, `~USER`, `$NAME` and `${NAME}` expanded, as a shell does.

    A shell does it only where nothing is quoted, and not for `--option=~/path` nor in a recipe.

    Raises:
        ValueError: a variable is not set or is empty; the text fits after "`key` ...".
    """
    expanded = _VARIABLE.sub(lambda match: _value_of(match.group(), text), text)
    return os.path.expanduser(expanded)  # noqa: PTH111 - Path would drop `./` and refuse `~nobody`


def _value_of(reference: str, text: str) -> str:
    value = os.path.expandvars(reference)
    # An empty one would make `$SCRATCH/runs` a folder of the root.
    if value in ("", reference):
        name = reference.strip("${}")
        raise ValueError(
            f"must use environment variables that are set (got {text!r}, and {name} is not): set "
            f"{name}, or write the path out"
        )
    return value
