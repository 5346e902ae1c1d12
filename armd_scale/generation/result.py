"""What generation gives back: samples, and what they took."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from armd_scale.generation.speculative import SpeculativeStats


@dataclass(frozen=True, eq=False)
class Sample:
    """One text, by position; position 0 is the given token that opens it."""

    tokens: Int64[np.ndarray, " P"]
    block: Int64[np.ndarray, " P"]
    """Generation block of each token; 0 is given."""
    generated: Bool[np.ndarray, " P"]
    """Which tokens were generated; the others were known."""
    logprob: Float[np.ndarray, " P"]
    """Log-probability in nats of each generated token given all earlier blocks, under the model's
    own distribution whatever the sampling; 0 where a token was known."""
    round: Int64[np.ndarray, " P"]
    """Round in which each token became known, from 1; 0 where it always was."""

    def until(self, end: int) -> "Sample":
        """The sample before its first generated token `end` in text order; all of it without."""
        found = np.flatnonzero(self.generated & (self.tokens == end))
        stop = int(found[0]) if len(found) else len(self.tokens)
        return Sample(*(getattr(self, field.name)[:stop] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class GenerationOutput:
    """What a call to the sampler made."""

    samples: list[Sample]
    rounds: int
    """Forward passes."""
    seconds: float
    """Wall time of all rounds, prompts included."""
    verified: SpeculativeStats | None = None
    """How drafts fared, in lossless decoding."""

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all samples."""
        return sum(int(sample.generated.sum()) for sample in self.samples)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all samples over the wall time."""
        return self.num_tokens / self.seconds

    @property
    def tokens_per_round(self) -> float:
        """Generated tokens a sample over the rounds."""
        return self.num_tokens / len(self.samples) / self.rounds

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafts over drafts, where there were any."""
        drafted = self.verified.drafted if self.verified else 0
        return self.verified.accepted / drafted if self.verified and drafted else None


def entropy_bits(tokens: Int[np.ndarray, " n"]) -> float:
    """Entropy of the tokens of one sample as draws from one distribution, in bits per token.

    The unigram entropy by which the literature on diffusion language models accompanies generative
    perplexity: repetitive text has a low perplexity and a low entropy.
    """
    _, counts = np.unique(tokens, return_counts=True)
    share = counts / max(len(tokens), 1)
    return float(-(share * np.log2(share)).sum()) + 0.0
