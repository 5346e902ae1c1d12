"""A pretrained AR model from a Hugging Face folder that scores generated texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ArmdError


@dataclass(frozen=True)
class TextScore:
    """Negative log-likelihood of one text."""

    nats: float
    num_tokens: int
    """Tokens scored, without the one that opens the text."""


class ReferenceLM:
    """An AR model with its tokenizer.

    Args:
        folder: written by `save_pretrained` of transformers, with a `tokenizer.json`.
        device: device of the model.

    Raises:
        ArmdError: transformers cannot load the folder.
        TokenizerError: the folder has no tokenizer.
    """

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu") -> None:
        # transformers takes seconds to import, and nothing else here needs it.
        from transformers import AutoModelForCausalLM

        self._encoder = TextEncoder(load_tokenizer(folder))
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ArmdError(
                "--eval-model must be a folder that transformers can load as a causal language "
                f"model, but {folder} is not ({str(error).splitlines()[0]}): write it with "
                "save_pretrained"
            ) from error
        self._model = model.to(device).eval()
        # Families without a table of positions may not state a limit; 1024 is GPT-2's, the usual
        # reference model.
        self._max_tokens: int = getattr(model.config, "max_position_embeddings", 1024)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Score each text after the token that opens documents, cut at the longest context."""
        scores = []
        for text in texts:
            ids = self._encoder.encode_document(text)[: self._max_tokens]
            tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self._model.device)
            logits = self._model(tokens[None]).logits[0, :-1].float()
            logprob = logits.log_softmax(dim=-1).gather(1, tokens[1:, None])
            scores.append(TextScore(-logprob.double().sum().item(), len(ids) - 1))
        return scores
