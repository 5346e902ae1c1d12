"""From logits to tokens: what may be drawn, with a random number for every place.

A token is drawn by inverting the cumulative distribution at one uniform number, and that number is
a pure function of (seed, sample number, slot). So a sample does not depend on which others share
its batch, on how many tokens a round asks for, or on the rank that computes it.
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from armd_scale.errors import GenerationError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn from the model's distribution; applied in the order of the fields.

    Raises:
        GenerationError: an amount outside its range.
    """

    repetition_penalty: float | int = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the sample already
    shows to the row that predicts (CTRL, arXiv 1909.05858); 1: none."""
    temperature: float | int = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens can be drawn; None: all."""
    top_p: float | int = 1.0
    """Only the fewest tokens that together reach this probability can be drawn (after top-k)."""
    min_p: float | int = 0.0
    """Only tokens of at least this part of the largest probability can be drawn."""
    seed: int = 0
    """Seed of the random numbers."""

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise GenerationError(
                f"the repetition penalty must be above 0, got {self.repetition_penalty}: 1 is none"
            )
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
        if not 0 <= self.min_p <= 1:
            raise GenerationError(
                f"min-p must be between 0 and 1, got {self.min_p}: 0 allows every token"
            )


def sample_tokens(
    logits: Float[Tensor, "b k vocabulary"],
    uniform: Float64[Tensor, "b k"],
    sampling: Sampling,
    seen: Bool[Tensor, "b #k vocabulary"] | None = None,
) -> tuple[Int64[Tensor, "b k"], Float[Tensor, "b k"]]:
    """One token for each row of logits, each drawn independently of the others.

    Args:
        logits: the model's.
        uniform: a number in [0, 1) for each token.
        sampling: how to draw.
        seen: tokens that a row may see, for the repetition penalty.

    Returns:
        The tokens and their log-probabilities in nats under the model's own distribution, that is,
        at temperature 1 and with nothing changed or cut off, however they were drawn.
    """
    if sampling.temperature == 0:
        tokens = _penalised(logits, sampling, seen).argmax(dim=-1)
    else:
        tokens = sample_from(token_probabilities(logits, sampling, seen), uniform)
    return tokens, log_probability(logits, tokens)


def log_probability(
    logits: Float[Tensor, "b k vocabulary"], tokens: Int64[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """Log-probability of tokens in nats under the model's own distribution."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def token_probabilities(
    logits: Float[Tensor, "b k vocabulary"],
    sampling: Sampling,
    seen: Bool[Tensor, "b #k vocabulary"] | None = None,
) -> Float64[Tensor, "b k vocabulary"]:
    """The probabilities that tokens are drawn by."""
    logits = _penalised(logits, sampling, seen)
    if sampling.temperature == 0:
        greedy = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, greedy, 1.0)
    # The largest becomes 0 first, so that no temperature overflows.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature
    candidates = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        scaled, candidates = scaled.topk(sampling.top_k)
    elif sampling.top_p < 1:
        scaled, candidates = scaled.sort(descending=True)
    probability = scaled.softmax(dim=-1)
    if sampling.top_p < 1:
        before = probability.cumsum(dim=-1) - probability
        # The most likely token stays, whatever rounding makes of its difference from itself.
        before[..., 0] = 0
        probability = probability.masked_fill(before >= sampling.top_p, 0)
    if sampling.min_p > 0:
        probability = probability.masked_fill(scaled < log(sampling.min_p), 0)
    if candidates is not None:
        probability = torch.zeros_like(logits, dtype=torch.float64).scatter_(
            -1, candidates, probability
        )
    return probability / probability.sum(dim=-1, keepdim=True)


def sample_from(
    weights: Float64[Tensor, "b k vocabulary"], uniform: Float64[Tensor, "b k"]
) -> Int64[Tensor, "b k"]:
    """A token of each row of weights, in proportion to them, by one number in [0, 1) each."""
    mass = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * mass[..., -1:]
    # Clamped for weights that are not numbers, which the caller reports.
    place = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[-1] - 1)
    return place.squeeze(-1)


def _penalised(logits: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    penalty = sampling.repetition_penalty
    if penalty == 1:
        return logits
    assert seen is not None, "a repetition penalty needs to know what was seen"
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
