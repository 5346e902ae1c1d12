"""LAMBADA: predict the last word of each passage (Paperno et al., 2016, arXiv 1606.06031).

Accuracy and perplexity are defined as in lm-evaluation-harness.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from armd_scale.data.text_encoder import TextEncoder, TokenPair
from armd_scale.data.tokenizer import Tokenizer
from armd_scale.eval.loglikelihood import score_continuations
from armd_scale.eval.tasks.base import TaskOptions, read_examples
from armd_scale.model.armd_model import ArmdModel


@dataclass(frozen=True, kw_only=True)
class LambadaResult:
    """LAMBADA accuracy and perplexity."""

    task: str
    accuracy: float
    """Fraction of passages whose last word is the greedy continuation, token for token."""
    accuracy_standard_error: float | None
    """Standard error of the accuracy over passages; None for a single passage."""
    perplexity: float
    """exp of the mean negative log-likelihood of a last word, summed over its tokens."""
    num_passages: int

    def format_line(self) -> str:
        """The figures as one line of text."""
        error = self.accuracy_standard_error
        return (
            f"{self.task}  accuracy {self.accuracy:.4f}"
            + ("" if error is None else f" (standard error {error:.4f})")
            + f"  perplexity {self.perplexity:.2f}  {self.num_passages} passages"
        )


@dataclass(frozen=True)
class LambadaTask:
    """Passages with the last word split off."""

    name: ClassVar[str] = "lambada"
    help: ClassVar[str] = 'lambada {"text"}: accuracy and perplexity of the last word'
    score_names: ClassVar[tuple[str, ...]] = ("is_greedy", "nats")
    needs_left_to_right: ClassVar[bool] = True
    draws_tokens: ClassVar[bool] = False

    passages: Sequence[TokenPair]
    max_tokens: int
    """Longest text; longer passages are truncated on the left."""

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer, options: TaskOptions) -> "LambadaTask":
        """Read JSON lines with the key `text`; the last word includes the space before it.

        Raises:
            ArmdError: the file cannot be read or is empty, or a line is not a passage.
        """
        examples = read_examples(
            path, _split_last_word, expected='an object with a "text" of at least two words'
        )
        encoder = TextEncoder(tokenizer)
        passages = [encoder.encode_pair(context, word) for _, (context, word) in examples]
        return cls(passages[: options.max_examples], options.max_tokens)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.passages)

    def run(
        self,
        network: ArmdModel,
        indices: Sequence[int],
        *,
        micro_batch: int,
        on_batch: Callable[[int], None],
    ) -> Float64[Tensor, "indices 2"]:
        """Score the last words of some passages."""
        # One forward pass gives both figures: the word is the greedy continuation exactly if each
        # of its tokens is the most likely one given the true tokens before it.
        scores = score_continuations(
            network,
            [self.passages[i] for i in indices],
            micro_batch=micro_batch,
            max_tokens=self.max_tokens,
            on_batch=on_batch,
        )
        rows = [[float(score.is_greedy), -score.logprob] for score in scores]
        # Without the reshape, a rank without passages would return shape [0] instead of [0, 2].
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def summarize(self, scores: Float64[Tensor, "passages 2"]) -> LambadaResult:
        """Compute accuracy, with its binomial standard error, and perplexity."""
        accuracy, nats = scores.mean(dim=0)
        # a (1 - a) / (n - 1) is the sample variance of n scores of 0 or 1, divided by n.
        count, a = len(scores), accuracy.item()
        return LambadaResult(
            task=self.name,
            accuracy=a,
            accuracy_standard_error=math.sqrt(a * (1 - a) / (count - 1)) if count > 1 else None,
            perplexity=nats.exp().item(),
            num_passages=count,
        )


def _split_last_word(record: Any) -> tuple[str, str]:
    # Only a space separates words here, as in lm-evaluation-harness. It stays with the word: byte
    # level tokenizers have tokens for " word", and "word" without it would be tokenized otherwise.
    context, space, word = record["text"].strip().rpartition(" ")
    if not context or not word:
        raise ValueError("fewer than two words")
    return context, space + word
