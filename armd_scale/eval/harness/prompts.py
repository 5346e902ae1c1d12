"""How a text begins for lm-evaluation-harness: as for its own model `hf`.

An AR model was trained on texts that begin as its tokenizer has them begin, and published figures
rest on that:

* a text begins with the special tokens that `tokenizer.json` puts in front of it (BOS for Llama,
  none for GPT-2);
* where that leaves nothing to predict a first token from (an empty context), and in front of every
  text that is scored whole, stands BOS, or EOS where the vocabulary has no BOS.

A sentencepiece model does not say how texts begin. There they begin as documents did in training,
always with the token that opens one.
"""

from typing import final

import numpy as np
from jaxtyping import Int

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.eval.loglikelihood import ContextContinuation, encode_pair
from armd_scale.generation.text import encode_prompt


@final
class PromptEncoder:
    """Texts as tokens, begun by the rule above.

    Args:
        tokenizer: of the model.
        add_bos_token: True: every text begins with a special token; False: only those that need
            one; None: as the tokenizer says.
        prefix_token_id: the token that stands where the tokenizer says none, in place of BOS.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        usual = _usual_prefix(tokenizer) if prefix_token_id is None else prefix_token_id
        self._prefix = np.array([usual])
        always = (
            self._prefix if tokenizer.prefix_ids is None else np.array(tokenizer.prefix_ids, int)
        )
        if add_bos_token is not None:
            always = (always if len(always) else self._prefix) if add_bos_token else always[:0]
        self._always = always

    def encode_prompt(self, text: str) -> Int[np.ndarray, " m"]:
        """A text to go on from, at least one token."""
        tokens = self._begun(text, self._always)
        return tokens if len(tokens) else self._prefix

    def encode_rolling(self, text: str) -> Int[np.ndarray, " m"]:
        """A text to be scored whole, from its second token on."""
        return self._begun(text, self._prefix)

    def encode_pair(self, context: str, continuation: str) -> ContextContinuation:
        """A text and what follows it; see `encode_pair`."""
        stem = context.rstrip()
        needs_one = not len(self._begun(stem, self._always))
        return encode_pair(
            context, continuation, self.encode_rolling if needs_one else self.encode_prompt
        )

    def _begun(self, text: str, tokens: np.ndarray) -> Int[np.ndarray, " m"]:
        """The text after these tokens, unless it spells them itself."""
        (own,) = self._tokenizer.encode_batch([text])
        is_begun = np.array_equal(own[: len(tokens)], tokens)
        return (own if is_begun else np.concatenate((tokens, own))).astype(np.int64)


def _usual_prefix(tokenizer: Tokenizer) -> int:
    """BOS, else EOS; of a sentencepiece model what opens a document."""
    if tokenizer.prefix_ids is None:
        return int(encode_prompt(None, tokenizer)[0])
    return next((t for t in (tokenizer.bos, tokenizer.eod) if t is not None), 0)
