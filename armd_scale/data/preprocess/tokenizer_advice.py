"""Load the tokenizer that the user names, and say what to do about one of another kind."""

import os
import re
from pathlib import Path

from armd_scale.data.tokenizer import Tokenizer, load_tokenizer
from armd_scale.errors import TokenizerError

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# A line of a tiktoken file: the bytes of a token in base64, and its rank.
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_TEKKEN_FILE = "tekken.json"
_SAVE = (
    "save the model's Hugging Face tokenizer by AutoTokenizer.from_pretrained(ID).save_pretrained("
    "FOLDER), and give that folder"
)


def load_named_tokenizer(spec: str, *, add_bos: bool | None = None) -> Tokenizer:
    """Load a tokenizer as `load_tokenizer` does; `add_bos` as there.

    Raises:
        TokenizerError: it cannot be loaded; the message says what to do if it is the id of a model
            of the hub, or a tokenizer of a known kind that is not supported.
    """
    try:
        return load_tokenizer(spec, add_bos=add_bos)
    except TokenizerError as error:
        if advice := _advise(spec):
            raise TokenizerError(f"tokenizer {spec} cannot be used, because {advice}") from error
        raise


def _advise(spec: str) -> str | None:
    """Return what a tokenizer is and what to do instead; None if it is of no known kind."""
    path = Path(spec)
    if not os.path.lexists(path):  # `Path.exists` raises for a name that is too long
        if _HUB_ID.fullmatch(spec) and not path.parent.is_dir():
            return (
                "it is no file or folder here, and models of the Hugging Face hub are not "
                f"downloaded: fetch it by `hf download {spec} --include '*token*' --local-dir "
                "FOLDER`, and give that folder"
            )
        return None
    folder = path if path.is_dir() else path.parent
    if path.name == _TEKKEN_FILE or (path.is_dir() and (folder / _TEKKEN_FILE).is_file()):
        return f"{_TEKKEN_FILE}, the format of Mistral, is not supported: {_SAVE}"
    if _is_tiktoken(folder / "tokenizer.model" if path.is_dir() else path):
        return f"its model is a tiktoken file, as in Meta's checkpoints: {_SAVE}"
    return None


def _is_tiktoken(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _TIKTOKEN_LINE.match(file.read(1000)) is not None
    except OSError:
        return False
