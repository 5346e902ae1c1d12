"""Settings in the files beside a tokenizer: its special tokens, and whether texts start with BOS.

These files, their keys and what they mean are those of transformers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from armd_scale.files import read_regular_file
from armd_scale.json_files import parse_json

TOKENIZER_CONFIG = "tokenizer_config.json"
CONFIG_FILES = (TOKENIZER_CONFIG, "special_tokens_map.json")
"""Files beside the definition of a tokenizer, both optional, that name its special tokens."""
_ADD_BOS = "add_bos_token"
_PREPEND_BOS = "armd_prepend_bos"
"""Our own key: how the shards were made, where the user chose otherwise than the tokenizer."""


def named_tokens(folder: Path, name: str) -> list[str]:
    """Return the tokens that the files of a folder give a name such as `eos_token`, in order."""
    tokens: list[str] = []
    for file in CONFIG_FILES:
        # A string, or {"content": string} with properties of the token.
        value: Any = _read_config(folder / file).get(name)
        token: Any = cast(Any, value).get("content") if isinstance(value, dict) else value
        tokens += [token] if isinstance(token, str) else []
    return tokens


def read_prepend_bos(folder: Path, *, has_tokenizer_json: bool) -> bool | None:
    """Return whether texts start with BOS; None if `tokenizer_config.json` does not say.

    Args:
        folder: of the tokenizer.
        has_tokenizer_json: whether there is a `tokenizer.json`. Its post-processor adds BOS or not,
            and transformers 5 then ignores `add_bos_token`.
    """
    config = _read_config(folder / TOKENIZER_CONFIG)
    values = (config.get(_PREPEND_BOS), None if has_tokenizer_json else config.get(_ADD_BOS))
    return next((value for value in values if isinstance(value, bool)), None)


def records_prepend_bos(folder: Path) -> bool:
    """Return whether `tokenizer_config.json` has our own key, as in checkpoints of a run."""
    return isinstance(_read_config(folder / TOKENIZER_CONFIG).get(_PREPEND_BOS), bool)


def write_prepend_bos(folder: Path, value: bool, *, tokens: Mapping[str, str]) -> None:
    """Say in `tokenizer_config.json` whether texts start with BOS; other keys stay as they are.

    Args:
        folder: of the tokenizer.
        value: whether they do.
        tokens: special tokens by name, for a file that does not name them.
    """
    config = {**tokens, **_read_config(folder / TOKENIZER_CONFIG)}
    (folder / TOKENIZER_CONFIG).write_bytes(_with_prepend_bos(config, value))


def set_prepend_bos(content: bytes | None, value: bool) -> bytes:
    """Return the content of `tokenizer_config.json` with what it says about BOS replaced.

    Args:
        content: the present content; None: there is no such file.
        value: whether texts start with BOS.
    """
    return _with_prepend_bos({} if content is None else _parse_config(content), value)


def _with_prepend_bos(config: Mapping[str, Any], value: bool) -> bytes:
    # Both keys: transformers reads the second one where there is no tokenizer.json.
    keys = {_PREPEND_BOS: value, _ADD_BOS: value}
    return (json.dumps({**config, **keys}, indent=2) + "\n").encode()


def read_eos_ids(folder: Path) -> tuple[int, ...] | None:
    """Return the ids that end texts of a model, as transformers chooses them; None if not stated.

    Those of `generation_config.json`, else of `config.json`; both may name one id or several.
    """
    for name in ("generation_config.json", "config.json"):
        value: Any = _read_config(folder / name).get("eos_token_id")
        values = cast(list[Any], value) if isinstance(value, list) else [value]
        ids = tuple(i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
        if ids:
            return ids
    return None


def has_chat_template(folder: Path) -> bool:
    """Whether a tokenizer has a chat template, as instruction-tuned models do."""
    in_config = "chat_template" in _read_config(folder / TOKENIZER_CONFIG)
    return in_config or (folder / "chat_template.jinja").is_file()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return _parse_config(read_regular_file(path))
    except OSError:
        return {}


def _parse_config(content: bytes) -> dict[str, Any]:
    try:
        value: Any = parse_json(content.decode())
    except ValueError:
        return {}  # a file of another form: what it would say is not known
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}
