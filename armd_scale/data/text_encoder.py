"""Texts to tokens: which special tokens a text starts with.

Preprocessing, generation, evaluation and the harness start texts in the same way, which is that of
transformers, and of the model `hf` of lm-evaluation-harness:

* a text starts with the special tokens that its tokenizer puts in front of every text
  (`prefix_ids`: BOS for Llama, none for GPT-2);
* if there are none but the first token needs a context (an empty prompt, or a text that is scored
  as a whole), the text starts with `start_id`: BOS, or EOS if the vocabulary has no BOS.
"""

from typing import NamedTuple, TypeAlias, final

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenizer import Tokenizer

Tokens: TypeAlias = Int[np.ndarray, " n"]
# Characters that a text is put behind to see its tokens as the rest of another text. One of them
# must stay a token of its own; newlines do so the most often, but some tokenizers drop them.
_CONTEXTS = ("\n", "a", ".")


class TokenPair(NamedTuple):
    """Tokens of a context, at least one, and of the text that continues it."""

    context: Tokens
    continuation: Tokens


@final
class TextEncoder:
    """Tokenizes texts, with the special tokens that the rules above put in front.

    Args:
        tokenizer: the model's tokenizer.
        add_bos_token: True: every text starts with a special token; False: only those that need
            one; None: as the tokenizer does.
        prefix_token_id: token to use instead of `start_id`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        start_id = tokenizer.start_id if prefix_token_id is None else prefix_token_id
        # In front of texts that need a context for their first token.
        self._needed_prefix = np.array([start_id or 0])
        # In front of all texts; may be empty.
        prefix = np.array(tokenizer.prefix_ids, int)
        if add_bos_token is True and not len(prefix):
            prefix = self._needed_prefix
        elif add_bos_token is False:
            prefix = prefix[:0]
        self._prefix = prefix

    def encode_prompt(self, text: str) -> Tokens:
        """Tokenize a text to continue; returns at least one token."""
        tokens = self._with_prefix(text, self._prefix)
        return tokens if len(tokens) else self._needed_prefix

    def encode_document(self, text: str) -> Tokens:
        """Tokenize a text to score as a whole: one token to start from, then those of the text."""
        return self._with_prefix(text, self._prefix if len(self._prefix) else self._needed_prefix)

    def encode_pair(self, context: str, continuation: str) -> TokenPair:
        """Tokenize context + continuation as one text and split the tokens where the context ends.

        Whitespace at the end of the context moves to the continuation, because most tokenizers
        attach a space to the word that follows it. Without any token in it, a context is the token
        that a text starts with.
        """
        is_empty = not len(self._with_prefix(context.rstrip(), self._prefix))
        encode = self.encode_document if is_empty else self.encode_prompt
        whole = encode(context + continuation)
        # If one token spans the boundary, the context may have as many tokens as the whole text.
        # The continuation then still gets the last token, so that there is something to score.
        split = min(len(encode(context.rstrip())), len(whole) - 1)
        if split == 0:
            return TokenPair(whole, whole[:0])
        return TokenPair(whole[:split], whole[split:])

    def encode_rest(self, text: str) -> Tokens:
        """Tokenize the rest of a text, of which an earlier part is known.

        Without special tokens, and without the blank that some tokenizers put in front of a text.
        """
        (plain,) = self._tokenizer.encode_batch([text])
        for context in _CONTEXTS if self._adds_blank() else ():
            start, whole = self._tokenizer.encode_batch([context, context + text])
            if 0 < len(start) < len(whole) and np.array_equal(whole[: len(start)], start):
                plain = whole[len(start) :]
                break
        return plain.astype(np.int64)

    def _adds_blank(self) -> bool:
        (ids,) = self._tokenizer.encode_batch(["a"])
        return self._tokenizer.decode([*ids.tolist(), *ids.tolist()]) != "aa"

    def _with_prefix(self, text: str, prefix: np.ndarray) -> Tokens:
        # A chat template or the user may have written BOS into the text: one is enough.
        (tokens,) = self._tokenizer.encode_batch([text])
        has_prefix = np.array_equal(tokens[: len(prefix)], prefix)
        return (tokens if has_prefix else np.concatenate((prefix, tokens))).astype(np.int64)
