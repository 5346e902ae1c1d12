"""Types of command-line options: paths, and numbers within sensible bounds.

`int` and `float` alone accept too much (nan, 1_000, spaces), count up to thousands of digits, and
repeat all of them in their message.
"""

import argparse
import math
from pathlib import Path

from armd_scale.paths import expand_path

MAX_INT = 1 << 48
"""Largest whole number of an option: more tokens, steps or samples than anybody has."""
MAX_PROCESSES = 1000
_MAX_QUOTED = 40


def integer(text: str) -> int:
    """Return a whole number of either sign."""
    return _integer(text, -MAX_INT, "must be a whole number")


def natural_int(text: str) -> int:
    """Return a whole number >= 0."""
    return _integer(text, 0, "must be a whole number >= 0")


def positive_int(text: str) -> int:
    """Return a whole number >= 1."""
    return _integer(text, 1, "must be a whole number >= 1")


def process_count(text: str) -> int:
    """Return a number of processes of one machine, from 1 to 1000."""
    count = positive_int(text)
    if count > MAX_PROCESSES:
        raise _error(text, f"must be at most {MAX_PROCESSES} processes")
    return count


def path(text: str) -> Path:
    """Return a path, with `~` and environment variables expanded."""
    return Path(path_text(text))


def path_text(text: str) -> str:
    """Return a path as text, for prefixes and what may also be something else than a path."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(text: str) -> float:
    """Return a number that is neither nan nor infinite."""
    return _number(text, -math.inf, "must be a finite number")


def positive_number(text: str) -> float:
    """Return a finite number above 0."""
    return _number(text, 0.0, "must be a finite number above 0")


def _integer(text: str, least: int, requirement: str) -> int:
    digits = text.removeprefix("-")
    # isdecimal and isascii also reject spaces, underscores and other scripts, which int() accepts.
    if not (digits.isdecimal() and digits.isascii()):
        raise _error(text, requirement)
    # Compared by length first: Python refuses to convert thousands of digits.
    if len(digits.lstrip("0")) > len(str(MAX_INT)) or int(digits) > MAX_INT:
        raise _error(text, f"must be between -{MAX_INT} and {MAX_INT}")
    if int(text) < least:
        raise _error(text, requirement)
    return int(text)


def _number(text: str, above: float, requirement: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > above):
        raise _error(text, requirement)
    return value


def _error(text: str, requirement: str) -> argparse.ArgumentTypeError:
    rest = f" and {len(text) - _MAX_QUOTED} more characters" if len(text) > _MAX_QUOTED else ""
    return argparse.ArgumentTypeError(f"{requirement} (got {text[:_MAX_QUOTED]!r}{rest})")
