"""Held-out data opened for a checkpoint, once it is known to fit it."""

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.data.indexed_reader import IndexedTokens, open_shards
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import CheckpointError, ShardError, TokenizerError


def open_held_out(
    prefix: str, checkpoint: Checkpoint, *, seq_length: int | None = None
) -> TokenWindows:
    """Windows of the data, packed as the checkpoint's training data were.

    Args:
        prefix: of the .bin/.idx pair.
        checkpoint: whose network will read them.
        seq_length: N, targets of a window; None: as in training.

    Raises:
        ShardError: the data is missing, damaged or shorter than a window.
        TokenizerError: it was tokenized with another vocabulary.
        CheckpointError: the network has a table of fewer positions than a window has tokens.
    """
    recipe = checkpoint.recipe
    length = recipe.data.seq_length if seq_length is None else seq_length
    shards = open_shards(prefix)
    _require_same_tokenizer(shards, checkpoint)
    check_max_positions(length, checkpoint)
    if length + 1 > shards.num_tokens:
        raise ShardError(
            f"{prefix} must hold at least --seq-length + 1 = {length + 1} tokens, got "
            f"{shards.num_tokens}: evaluate with a smaller --seq-length, or on more text"
        )
    return TokenWindows(
        prefix, length, packing=recipe.data.packing, vocab_size=recipe.model.vocab_size
    )


def check_max_positions(
    length: int, checkpoint: Checkpoint, *, flag: str = "--seq-length "
) -> None:
    """Refuses windows of `length` + 1 tokens where the network has fewer positions.

    Args:
        length: targets of a window.
        checkpoint: whose network will read them.
        flag: how the user says the length.

    Raises:
        CheckpointError: it has.
    """
    limit = checkpoint.recipe.model.max_positions
    # Without a table there is a limit only where the recipe sets one, such as an attention window.
    if limit is not None and length + 1 > limit:
        raise CheckpointError(
            f"a window of {flag}{length} plus 1 tokens must fit the positions of the model, "
            f"and {checkpoint.folder} has {limit}: evaluate with "
            f"{flag}{limit - 1} or less"
        )


def _require_same_tokenizer(shards: IndexedTokens, checkpoint: Checkpoint) -> None:
    """Compares fingerprints; where one side has none, only what can be known of its size."""
    manifest, folder = shards.manifest, checkpoint.tokenizer_folder
    if manifest is None:
        return
    known = checkpoint.recipe.model.vocab_size
    if known is not None and manifest.vocab_size > known:
        raise TokenizerError(
            f"{shards.prefix} must be tokenized with the vocabulary of the checkpoint, and has "
            f"{manifest.vocab_size} tokens where {checkpoint.folder} knows {known}: preprocess it "
            "with the tokenizer that the model was trained with"
        )
    if folder is None:
        return
    fingerprint = load_tokenizer(folder).fingerprint
    if fingerprint != manifest.tokenizer.fingerprint:
        raise TokenizerError(
            f"{shards.prefix} must be tokenized with the tokenizer of the checkpoint, and its "
            f"fingerprint is {manifest.tokenizer.fingerprint[:12]} against {fingerprint[:12]}: "
            f"preprocess it with --tokenizer {folder}"
        )
