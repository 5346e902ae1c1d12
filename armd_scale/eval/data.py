"""Open the data that an evaluation scores, and check that it fits the model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.data.indexed_reader import IndexedTokens, open_shards
from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import Tokenizer, load_tokenizer
from armd_scale.data.windows import TokenWindows, Windows
from armd_scale.errors import ArmdError, CheckpointError, ShardError, TokenizerError
from armd_scale.eval.detokenizers import get_detokenizer
from armd_scale.eval.likelihood import bytes_per_token
from armd_scale.eval.sliding_window import SlidingWindows
from armd_scale.files import read_error_reason, read_text


@dataclass(frozen=True, kw_only=True)
class EvalText:
    """A text cut into windows, with the size of the original text."""

    windows: Windows
    bytes_per_token: float | None
    """UTF-8 bytes of text per target; None if unknown."""
    num_words: int | None = None
    """Whitespace-separated words of the text; None if unknown."""


def open_eval_shards(
    prefix: str, checkpoint: Checkpoint, *, seq_length: int | None, stride: int | None
) -> EvalText:
    """Open token shards, packed as in training or, with a stride, as one continuous text.

    Args:
        prefix: path of the .bin/.idx pair without its ending.
        checkpoint: the model that will score the data.
        seq_length: N, targets per window; None: as in training.
        stride: tokens between window starts; None: windows do not overlap.

    Raises:
        ArmdError: as `open_windows`.
    """
    windows = open_windows(prefix, checkpoint, seq_length=seq_length)
    if stride is None:
        return EvalText(windows=windows, bytes_per_token=bytes_per_token(prefix))
    shards = open_shards(prefix)
    sliding = SlidingWindows(
        shards.read, shards.num_tokens, seq_length=windows.seq_length, stride=stride
    )
    return EvalText(windows=sliding, bytes_per_token=bytes_per_token(prefix))


def open_eval_text_file(
    path: Path,
    checkpoint: Checkpoint,
    *,
    detokenizer: str,
    seq_length: int | None,
    stride: int | None,
) -> EvalText:
    """Tokenize a text file as a single document.

    Args:
        path: a UTF-8 file.
        checkpoint: the model that will score the text, with its tokenizer.
        detokenizer: a name in DETOKENIZERS, applied before tokenization.
        seq_length: N, targets per window; None: as in training.
        stride: tokens between window starts; None: N.

    Raises:
        ArmdError: the file cannot be read or is empty, or the detokenizer does not exist.
        TokenizerError: the checkpoint has no tokenizer.
        CheckpointError: the model has too few positions for a window.
    """
    detokenize = get_detokenizer(detokenizer)
    tokenizer = require_tokenizer(checkpoint)
    length = seq_length or checkpoint.recipe.data.seq_length
    check_max_positions(length, checkpoint)
    text = _read_text(path)
    tokens = TextEncoder(tokenizer).encode_document(detokenize(text))
    check_token_ids(tokens, checkpoint.recipe.model.vocab_size)
    if len(tokens) < 2:
        raise ArmdError(f"--text must contain some text, but {path} is empty: give another file")
    windows = SlidingWindows(
        lambda start, count: tokens[start : start + count],
        len(tokens),
        seq_length=length,
        stride=stride or length,
    )
    # Bytes and words are counted before detokenization: published bits per byte and perplexities
    # per word refer to the benchmark's file as it is distributed. The first token opens the
    # document and is not a target.
    return EvalText(
        windows=windows,
        bytes_per_token=len(text.encode()) / (len(tokens) - 1),
        num_words=len(text.split()),
    )


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ArmdError(
            f"--text must be a UTF-8 file, but {path} cannot be read "
            f"({read_error_reason(error)}): give another file"
        ) from error


def open_windows(
    prefix: str, checkpoint: Checkpoint, *, seq_length: int | None = None
) -> TokenWindows:
    """Open the windows of token shards, packed as the model's training data.

    Args:
        prefix: path of the .bin/.idx pair without its ending.
        checkpoint: the model that will score them.
        seq_length: N, targets per window; None: as in training.

    Raises:
        ShardError: the data is missing, damaged or shorter than one window.
        TokenizerError: the data was tokenized with another vocabulary.
        CheckpointError: the model has fewer positions than a window has tokens.
    """
    recipe = checkpoint.recipe
    length = recipe.data.seq_length if seq_length is None else seq_length
    shards = open_shards(prefix)
    _check_same_tokenizer(shards, checkpoint)
    check_max_positions(length, checkpoint)
    if length + 1 > shards.num_tokens:
        raise ShardError(
            f"{prefix} must have at least --seq-length + 1 = {length + 1} tokens (got "
            f"{shards.num_tokens}): use a smaller --seq-length, or more text"
        )
    return TokenWindows(
        prefix, length, packing=recipe.data.packing, vocab_size=recipe.model.vocab_size
    )


def check_max_positions(
    length: int, checkpoint: Checkpoint, *, flag: str = "--seq-length "
) -> None:
    """Check that windows of `length` + 1 tokens fit the positions of the model.

    Args:
        length: targets per window.
        checkpoint: the model.
        flag: how the user writes the length, for the error message.

    Raises:
        CheckpointError: the model has fewer positions than `length` + 1.
    """
    # None for rotary positions, which have no table and extend to any length. A converted model may
    # have a limit: the length up to which the sliding window of its source cuts nothing off.
    limit = checkpoint.recipe.model.max_positions
    if limit is not None and length + 1 > limit:
        raise CheckpointError(
            f"a window of {flag}{length} plus 1 tokens must fit the positions of the model, but "
            f"{checkpoint.folder} has {limit}: use {flag}{limit - 1} or less"
        )


def require_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load the checkpoint's tokenizer.

    Raises:
        TokenizerError: the checkpoint has no tokenizer.
    """
    tokenizer = checkpoint.load_tokenizer()
    if tokenizer is None:
        raise TokenizerError(
            f"text needs the tokenizer that the model was trained with, but {checkpoint.folder} "
            "has none: train on shards with a manifest, or give a Hugging Face folder with --hf"
        )
    return tokenizer


def check_token_ids(tokens: Int[np.ndarray, " P"], vocab_size: int) -> None:
    """Check that a text has only tokens of the model's vocabulary.

    Raises:
        TokenizerError: it has others, which the embedding has no rows for.
    """
    if len(tokens) and tokens.max() >= vocab_size:
        raise TokenizerError(
            f"the token ids of a text must be below {vocab_size}, the model's vocabulary (got "
            f"{tokens.max()}): use the tokenizer that the model was trained with"
        )


def _check_same_tokenizer(shards: IndexedTokens, checkpoint: Checkpoint) -> None:
    """Compare tokenizer fingerprints; without fingerprints, compare at least vocabulary sizes."""
    manifest, folder = shards.manifest, checkpoint.tokenizer_folder
    # Shards of other tools have no manifest. TokenWindows still checks every token id it reads.
    if manifest is None:
        return
    vocab_size = checkpoint.recipe.model.vocab_size
    if vocab_size is not None and manifest.vocab_size > vocab_size:
        raise TokenizerError(
            f"{shards.prefix} must use the vocabulary of the model, but it has "
            f"{manifest.vocab_size} tokens and {checkpoint.folder} has {vocab_size}: preprocess "
            "it with the tokenizer that the model was trained with"
        )
    if folder is None:
        return
    fingerprint = load_tokenizer(folder).fingerprint
    if fingerprint != manifest.tokenizer.fingerprint:
        raise TokenizerError(
            f"{shards.prefix} must be tokenized with the tokenizer of the model, but its "
            f"fingerprint is {manifest.tokenizer.fingerprint[:12]} instead of {fingerprint[:12]}: "
            f"preprocess it with --tokenizer {folder}"
        )
