"""Sampling: from logits to tokens.

A token is drawn by inverting the cumulative distribution at one uniform number, and that number is
a pure function of (seed, sample id, slot). So a sample does not depend on the other samples of its
batch, on the number of tokens per round, or on the rank that computes it.
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
        GenerationError: a value is outside its range.
    """

    repetition_penalty: float | int = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that the text already
    contains where the predicting row can see them (CTRL, arXiv 1909.05858); 1 changes nothing."""
    temperature: float | int = 1.0
    """Divides the logits; 0 is greedy and takes the most likely token."""
    top_k: int | None = None
    """Draw among the k most likely tokens only; None: among all."""
    top_p: float | int = 1.0
    """Draw only among the fewest tokens that together reach this probability (after top-k)."""
    min_p: float | int = 0.0
    """Draw only among tokens with at least this fraction of the largest probability."""
    seed: int = 0
    """Seed of the random numbers."""

    def __post_init__(self) -> None:
        # Written as `not low <= x <= high`, so that NaN is refused too.
        if not 0 < self.repetition_penalty < float("inf"):
            raise GenerationError(
                f"the repetition penalty must be above 0 and finite (got "
                f"{self.repetition_penalty}): use 1 for no penalty"
            )
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(
                f"temperature must be 0 (greedy) or more (got {self.temperature}): use 1 for the "
                "model's own distribution"
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(
                f"top-k must be at least 1 (got {self.top_k}): leave it out to allow every token"
            )
        if not 0 < self.top_p <= 1:
            raise GenerationError(
                f"top-p must be above 0 and at most 1 (got {self.top_p}): use 1 to allow every "
                "token"
            )
        if not 0 <= self.min_p <= 1:
            raise GenerationError(
                f"min-p must be between 0 and 1 (got {self.min_p}): use 0 to allow every token"
            )


def sample_tokens(
    logits: Float[Tensor, "b k vocabulary"],
    uniform: Float64[Tensor, "b k"],
    sampling: Sampling,
    seen: Bool[Tensor, "b #k vocabulary"] | None = None,
    allowed: Bool[Tensor, " vocabulary"] | None = None,
) -> tuple[Int64[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Draw one token for each row of logits, each independently of the others.

    Args:
        logits: the model's logits.
        uniform: a random number in [0, 1) for each row.
        sampling: how to draw.
        seen: tokens that a row can see in its text; needed for the repetition penalty only.
        allowed: tokens that may be drawn; None: all.

    Returns:
        The tokens and their log-probabilities in nats. The latter are those of the model's own
        distribution (temperature 1, nothing penalized or cut off), whatever the sampling.
    """
    if sampling.temperature == 0:
        tokens = _adjust_logits(logits, sampling, seen, allowed).argmax(dim=-1)
    else:
        tokens = sample_from(token_probabilities(logits, sampling, seen, allowed), uniform)
    return tokens, log_probability(logits, tokens)


def log_probability(
    logits: Float[Tensor, "b k vocabulary"], tokens: Int64[Tensor, "b k"]
) -> Float[Tensor, "b k"]:
    """Return the log-probability of tokens in nats under the model's own distribution."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def token_probabilities(
    logits: Float[Tensor, "b k vocabulary"],
    sampling: Sampling,
    seen: Bool[Tensor, "b #k vocabulary"] | None = None,
    allowed: Bool[Tensor, " vocabulary"] | None = None,
) -> Float64[Tensor, "b k vocabulary"]:
    """Return the probabilities that tokens are drawn with; arguments as of `sample_tokens`."""
    logits = _adjust_logits(logits, sampling, seen, allowed)
    if sampling.temperature == 0:
        most_likely = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, most_likely, 1.0)
    # The largest logit becomes 0 before the division, so that no temperature overflows. In float64,
    # because a cumulative sum over 100,000 float32 probabilities loses the small ones.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature
    candidates = None
    # topk returns candidates in descending order too, so top-p needs no second sort after it.
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        scaled, candidates = scaled.topk(sampling.top_k)
    elif sampling.top_p < 1:
        scaled, candidates = scaled.sort(descending=True)
    probability = scaled.softmax(dim=-1)
    if sampling.top_p < 1:
        sum_before = probability.cumsum(dim=-1) - probability
        # The most likely token always stays, even if rounding makes its own sum_before positive.
        sum_before[..., 0] = 0
        probability = probability.masked_fill(sum_before >= sampling.top_p, 0)
    if sampling.min_p > 0:
        # `scaled` is the logarithm of the ratio to the largest probability.
        probability = probability.masked_fill(scaled < log(sampling.min_p), 0)
    if candidates is not None:
        probability = torch.zeros_like(logits, dtype=torch.float64).scatter_(
            -1, candidates, probability
        )
    return probability / probability.sum(dim=-1, keepdim=True)


def sample_from(
    weights: Float64[Tensor, "b k vocabulary"], uniform: Float64[Tensor, "b k"]
) -> Int64[Tensor, "b k"]:
    """Draw a token from each row of weights, in proportion to them.

    The cumulative distribution is inverted at the uniform number in [0, 1) of each row.
    """
    cumulative = weights.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * cumulative[..., -1:]
    # right=True skips tokens of weight zero. Weights that are NaN give an index past the end; it is
    # clamped here, and the caller reports the damaged model.
    token = torch.searchsorted(cumulative, target, right=True).clamp(max=weights.shape[-1] - 1)
    return token.squeeze(-1)


def _adjust_logits(
    logits: Tensor, sampling: Sampling, seen: Tensor | None, allowed: Tensor | None
) -> Tensor:
    """Apply the repetition penalty, and exclude the tokens that are not allowed."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    penalty = sampling.repetition_penalty
    if penalty != 1:
        assert seen is not None, "a repetition penalty needs the tokens that rows can see"
        logits = torch.where(
            seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits
        )
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
