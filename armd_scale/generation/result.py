"""Results of generation: samples, and what it took to generate them."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, Int64


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The tokens that one round committed; a row for each text."""

    round: int
    """Number of the round, counted from 1."""
    positions: Int64[np.ndarray, "b k"]
    """Position of each token. 0 (always a given token) fills the rows of texts that got fewer."""
    tokens: Int64[np.ndarray, "b k"]

    @property
    def max_committed(self) -> int:
        """Largest number of tokens that a single text got."""
        return int((self.positions > 0).sum(axis=1).max(initial=0))


@dataclass(frozen=True, eq=False)
class Sample:
    """One generated text, by position; at least the token at position 0 is given."""

    tokens: Int64[np.ndarray, " P"]
    block: Int64[np.ndarray, " P"]
    """Generation block of each token; 0 is given."""
    generated: Bool[np.ndarray, " P"]
    """Which tokens were generated; the others were known."""
    logprob: Float[np.ndarray, " P"]
    """Log-probability in nats of each generated token given all earlier blocks. It is that of the
    model's own distribution, whatever the sampling settings; 0 for known tokens."""
    round: Int64[np.ndarray, " P"]
    """Round that committed each token, counted from 1; 0 for known tokens."""

    def truncate(self, num_tokens: int) -> "Sample":
        """Return the first `num_tokens` tokens."""
        return Sample(*(getattr(self, field.name)[:num_tokens] for field in fields(self)))


@dataclass(frozen=True)
class SpeculativeStats:
    """Draft acceptance statistics of speculative decoding."""

    drafted: int
    """Drafts that a round verified, including those after a rejected one."""
    accepted: int


@dataclass(frozen=True, eq=False)
class GenerationOutput:
    """All samples of one generation call, and what they took."""

    samples: list[Sample]
    rounds: int
    """Number of forward passes; all texts of the batch share them."""
    seconds: float
    """Wall-clock time of all rounds, prompts included."""
    speculative_stats: SpeculativeStats | None = None
    """Draft acceptance; None unless decoding was speculative."""
    is_interrupted: bool = False
    """Whether Ctrl-C ended the generation."""

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(int(sample.generated.sum()) for sample in self.samples)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all samples per second of wall-clock time."""
        return self.num_tokens / self.seconds

    @property
    def tokens_per_round(self) -> float:
        """Mean number of tokens that a round adds to one sample."""
        return self.num_tokens / len(self.samples) / self.rounds

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafts divided by drafts; None if there were no drafts."""
        stats = self.speculative_stats
        return stats.accepted / stats.drafted if stats and stats.drafted else None


def entropy_bits(tokens: Int[np.ndarray, " n"]) -> float:
    """Return the unigram entropy of a sample's tokens, in bits per token.

    The literature on diffusion language models reports it beside generative perplexity, because
    repetitive text has a low perplexity too; its low entropy shows the repetition.
    """
    _, counts = np.unique(tokens, return_counts=True)
    frequency = counts / max(len(tokens), 1)
    # Adding 0.0 turns the -0.0 of a constant text into 0.0.
    return float(-(frequency * np.log2(frequency)).sum()) + 0.0
