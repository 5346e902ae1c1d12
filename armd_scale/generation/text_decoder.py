"""Tokens to text: parts of a text, decoded as they are read within it."""

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenizer import Tokenizer

CONTEXT_TOKENS = 4
"""Tokens of context that decide how a token joins the text before it."""


def decode_rest(
    tokenizer: Tokenizer, before: Int[np.ndarray, " m"], tokens: Int[np.ndarray, " n"]
) -> str:
    """Decode tokens that follow others.

    Alone they may decode to another text: some tokenizers drop the blank at the start of a text.

    Args:
        tokenizer: the model's.
        before: tokens before them; the last few are used.
        tokens: the tokens to decode.
    """
    context = before[-CONTEXT_TOKENS:].tolist()
    whole = tokenizer.decode([*context, *tokens.tolist()])
    return whole[len(tokenizer.decode(context)) :]


def decode_incrementally(tokens: Int[np.ndarray, " P"], tokenizer: Tokenizer | None) -> list[str]:
    """Return the characters that each token adds to the text.

    If several tokens form one character, the last of them gets it. Special tokens add none. Without
    a tokenizer texts are token ids, and the first one, which only starts the text, adds none.
    """
    if tokenizer is None:
        return ["", *(f"{token} " for token in tokens[1:])]
    pieces: list[str] = []
    num_decoded = 0
    for index in range(len(tokens)):
        # How a token joins the text depends on a few tokens before it. Decoding all of them would
        # take quadratic time.
        piece = decode_rest(tokenizer, tokens[:num_decoded], tokens[num_decoded : index + 1])
        # Part of a UTF-8 sequence decodes to the replacement character until it is complete.
        is_complete = not piece.endswith("\N{REPLACEMENT CHARACTER}")
        pieces.append(piece if is_complete else "")
        num_decoded = index + 1 if is_complete else num_decoded
    return pieces
