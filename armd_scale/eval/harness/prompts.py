"""Choose the tokens that a text starts with, as the harness's own model `hf` does.

An AR model was trained on texts that start as its tokenizer starts them, and published figures
depend on it:

* a text starts with the special tokens that `tokenizer.json` puts in front of it (BOS for Llama,
  none for GPT-2);
* if there are none but the first token needs a context (an empty prompt, or a text that is scored
  as a whole), the text starts with BOS, or with EOS if the vocabulary has no BOS.

A sentencepiece model does not say how texts start. With one, texts always start with the token that
opens a document in training.
"""

from typing import final

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.eval.loglikelihood import ContextContinuation, encode_pair
from armd_scale.generation.text import encode_prompt


@final
class PromptEncoder:
    """Tokenizes texts, with the prefix that the rules above give.

    Args:
        tokenizer: the model's tokenizer.
        add_bos_token: True: every text starts with a special token; False: only those that need
            one; None: as the tokenizer does.
        prefix_token_id: token to use instead of BOS where the tokenizer adds none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        default = _default_prefix_id(tokenizer) if prefix_token_id is None else prefix_token_id
        # In front of texts that need a context for their first token.
        self._needed_prefix = np.array([default])
        # In front of all texts; may be empty.
        prefix = (
            self._needed_prefix
            if tokenizer.prefix_ids is None
            else np.array(tokenizer.prefix_ids, int)
        )
        if add_bos_token is True and not len(prefix):
            prefix = self._needed_prefix
        elif add_bos_token is False:
            prefix = prefix[:0]
        self._prefix = prefix

    def encode_prompt(self, text: str) -> Int[np.ndarray, " m"]:
        """Tokenize a text to continue; returns at least one token."""
        tokens = self._with_prefix(text, self._prefix)
        return tokens if len(tokens) else self._needed_prefix

    def encode_rolling(self, text: str) -> Int[np.ndarray, " m"]:
        """Tokenize a text to score as a whole, from its second token on."""
        return self._with_prefix(text, self._needed_prefix)

    def encode_pair(self, context: str, continuation: str) -> ContextContinuation:
        """Tokenize a context and its continuation; see `loglikelihood.encode_pair`."""
        # Decided by the context alone. If it has no tokens, the continuation's first token needs
        # a prefix, although the continuation makes the whole text non-empty.
        is_empty = not len(self._with_prefix(context.rstrip(), self._prefix))
        return encode_pair(
            context, continuation, self.encode_rolling if is_empty else self.encode_prompt
        )

    def _with_prefix(self, text: str, prefix: np.ndarray) -> Int[np.ndarray, " m"]:
        # A chat template or the user may have written BOS into the text: one is enough.
        (tokens,) = self._tokenizer.encode_batch([text])
        has_prefix = np.array_equal(tokens[: len(prefix)], prefix)
        return (tokens if has_prefix else np.concatenate((prefix, tokens))).astype(np.int64)


def _default_prefix_id(tokenizer: Tokenizer) -> int:
    """BOS, else EOS; with a sentencepiece model the token that opens a document."""
    if tokenizer.prefix_ids is None:
        return int(encode_prompt(None, tokenizer)[0])
    return next((t for t in (tokenizer.bos, tokenizer.eod) if t is not None), 0)
