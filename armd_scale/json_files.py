"""JSON that may come from a stranger: parsed strictly, read from files, hashed, written."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, cast

from armd_scale.errors import ArmdError
from armd_scale.files import atomic_write_text, read_error_reason, read_text

# 10^300 is still a float; longer numbers are no counts, and Python takes quadratic time over them.
_MAX_DIGITS = 300


def parse_json(text: str, *, allow_nan: bool = False) -> Any:
    """Parse JSON that may come from a stranger, stricter than `json.loads`.

    Args:
        text: one JSON value.
        allow_nan: accept NaN, infinity and numbers that no float can hold.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a number or a text in it that
            cannot be written back: NaN, hundreds of digits, half a surrogate pair.
    """

    def parse_float(digits: str) -> float:
        value = float(digits)
        if not (allow_nan or math.isfinite(value)):
            raise ValueError(f"{digits[:20]} is not a finite number")
        return value

    try:
        value = json.loads(
            text, parse_float=parse_float, parse_int=_parse_int, parse_constant=parse_float
        )
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    # Only an escape can bring in half a surrogate pair: the text itself was decoded.
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text in it has half a surrogate pair") from None
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number in it has {len(digits)} digits")
    return int(digits)


def read_json_object(
    path: Path,
    *,
    error_class: type[ArmdError] = ArmdError,
    advice: str = "restore it from where it came from",
) -> dict[str, Any]:
    """Read a JSON file whose value is a mapping; `parse_json` says what it may contain.

    Args:
        path: the file.
        error_class: class of the error.
        advice: what the user can do, for the message.

    Raises:
        ArmdError: (`error_class`) the file cannot be read, or holds something else.
    """
    try:
        value = parse_json(read_text(path))
        if not isinstance(value, dict):
            raise ValueError("its value is not a mapping")
    except (OSError, ValueError) as error:
        raise error_class(
            f"{path} must be a JSON file with a mapping, and cannot be read as one "
            f"({read_error_reason(error)}): {advice}"
        ) from error
    return cast(dict[str, Any], value)


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value as a hex string, whatever the order and layout of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def atomic_write_json(
    path: Path,
    value: Any,
    *,
    indent: int | None = None,
    error_class: type[ArmdError] = ArmdError,
) -> None:
    """Write `value` as JSON and a final newline; errors as of `atomic_file`."""
    # NaN is not JSON: a value that can be NaN must be refused or replaced before.
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    atomic_write_text(path, text, error_class=error_class)
