"""What is to be scored: windows of shards or of a text file, with the bytes and words behind it."""

from dataclasses import dataclass
from pathlib import Path

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.data.indexed_reader import open_shards
from armd_scale.data.tokenizer import Tokenizer, load_tokenizer
from armd_scale.data.windows import Windows
from armd_scale.errors import ArmdError, TokenizerError
from armd_scale.eval.detokenizers import detokenizer
from armd_scale.eval.held_out import check_max_positions, open_held_out
from armd_scale.eval.likelihood import bytes_per_token
from armd_scale.eval.sliding_window import SlidingWindows
from armd_scale.generation.text import encode_prompt


@dataclass(frozen=True, kw_only=True)
class Source:
    """Windows to score."""

    windows: Windows
    bytes_per_token: float | None
    """UTF-8 bytes of text for each target, where known."""
    words: int | None = None
    """Words of the text, where known."""


def open_data(
    prefix: str, checkpoint: Checkpoint, *, seq_length: int | None, stride: int | None
) -> Source:
    """Shards: packed as in training, or with a stride as one text; errors as `open_held_out`'s."""
    windows = open_held_out(prefix, checkpoint, seq_length=seq_length)
    density = bytes_per_token(prefix)
    if stride is None:
        return Source(windows=windows, bytes_per_token=density)
    shards = open_shards(prefix)
    stream = SlidingWindows(
        shards.read, shards.num_tokens, seq_length=windows.seq_length, stride=stride
    )
    return Source(windows=stream, bytes_per_token=density)


def open_text(
    path: Path,
    checkpoint: Checkpoint,
    *,
    detokenise: str,
    seq_length: int | None,
    stride: int | None,
) -> Source:
    """A text file as one document after the token that opens documents.

    Bytes and words are counted in the file as it is, before it is detokenised: what a benchmark
    hands out is what its figures are of.

    Raises:
        ArmdError: a file that cannot be read, or an unknown convention.
        TokenizerError: the checkpoint holds no tokenizer.
    """
    rule = detokenizer(detokenise)
    tokenizer = require_tokenizer(checkpoint)
    length = seq_length or checkpoint.recipe.data.seq_length
    check_max_positions(length, checkpoint)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ArmdError(
            f"--text must be a file in UTF-8, and {path} cannot be read ({error}): name another"
        ) from error
    tokens = encode_prompt(rule(text), tokenizer)
    if len(tokens) < 2:
        raise ArmdError(f"--text must hold some text, and {path} is empty: name another file")
    stream = SlidingWindows(
        lambda start, count: tokens[start : start + count],
        len(tokens),
        seq_length=length,
        stride=stride or length,
    )
    size = len(text.encode()) / (len(tokens) - 1)
    return Source(windows=stream, bytes_per_token=size, words=len(text.split()))


def require_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer.

    Raises:
        TokenizerError: it holds none.
    """
    folder = checkpoint.tokenizer_folder
    if folder is None:
        raise TokenizerError(
            f"text must be read by the tokenizer that the model was trained with, and "
            f"{checkpoint.folder} holds none: put its files into the checkpoint's folder tokenizer/"
        )
    return load_tokenizer(folder)
