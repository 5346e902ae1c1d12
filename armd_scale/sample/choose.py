"""From logits to tokens: temperature, top-k, top-p, with a random number for every place.

A token is drawn by inverting the cumulative distribution at one uniform number, and that number is
a pure function of (seed, sample number, slot). So a sample does not depend on which others share
its batch, on how many tokens a round asks for, or on the rank that computes it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from armd_scale.errors import GenerationError

WORD_MASK = 2**64 - 1
# Orders are drawn from the start of the same keyed sequence; tokens come from another region of it.
COUNTER_OF_TOKENS = 1 << 192


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn from the model's distribution.

    Raises:
        GenerationError: an amount outside its range.
    """

    temperature: float | int = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens can be drawn; None: all."""
    top_p: float | int = 1.0
    """Only the fewest tokens that together reach this probability can be drawn (after top-k)."""
    seed: int = 0
    """Seed of the random numbers."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(
                f"temperature must be 0 (greedy) or more, got {self.temperature}: 1 draws from the "
                "model's own distribution"
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(
                f"top-k must be at least 1, got {self.top_k}: leave it out to allow every token"
            )
        if not 0 < self.top_p <= 1:
            raise GenerationError(
                f"top-p must be above 0 and at most 1, got {self.top_p}: 1 allows every token"
            )


def choose(
    logits: Float[Tensor, "b k vocabulary"], uniform: Float64[Tensor, "b k"], sampling: Sampling
) -> tuple[Int64[Tensor, "b k"], Float[Tensor, "b k"]]:
    """One token for each row of logits, each drawn independently of the others.

    Args:
        logits: the model's.
        uniform: a number in [0, 1) for each token.
        sampling: how to draw.

    Returns:
        The tokens and their log-probabilities in nats under the model's own distribution, that is,
        at temperature 1 and with nothing cut off, however they were drawn.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    greedy = sampling.temperature == 0
    tokens = logits.argmax(dim=-1) if greedy else _draw(logits, uniform, sampling)
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens, chosen - logits.logsumexp(dim=-1)


def _draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    candidates = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits, candidates = logits.topk(sampling.top_k)
    elif sampling.top_p < 1:
        logits, candidates = logits.sort(descending=True)
    # The largest becomes 0 first, so that no temperature overflows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature
    mass = scaled.softmax(dim=-1).cumsum(dim=-1)
    last = mass.shape[-1] - 1
    total = mass[..., -1:]
    if sampling.top_p < 1:
        reaching = (mass < sampling.top_p).sum(dim=-1, keepdim=True).clamp(max=last)
        total = mass.gather(-1, reaching)
    # Clamped for logits that are not numbers, which the caller reports.
    place = torch.searchsorted(mass, uniform.unsqueeze(-1) * total, right=True).clamp(max=last)
    return (place if candidates is None else candidates.gather(-1, place)).squeeze(-1)


def uniform_numbers(
    seed: int, sample_number: int, num_slots: int
) -> Float64[np.ndarray, " num_slots"]:
    """The number in [0, 1) of each slot of a sample.

    Taken from the raw words of Philox, a counter-based generator keyed by (seed, sample number),
    whose sequence NumPy guarantees. A word gives 52 bits, so that u * total stays below total.
    """
    key = np.array([seed & WORD_MASK, sample_number], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=COUNTER_OF_TOKENS).random_raw(num_slots)
    return (np.asarray(words) >> np.uint64(12)) * 2.0**-52
