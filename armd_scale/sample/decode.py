"""Generation: one forward per round, every row computed once.

The text that comes out carries the blocks it was generated in, so that re-scoring it by teacher
forcing under those blocks gives the log-probabilities that decoding reported.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64

from armd_scale.errors import GenerationError
from armd_scale.model.armd import ArmdModel
from armd_scale.sample.cache import SlotCache
from armd_scale.sample.choose import Sampling, choose, uniform_numbers
from armd_scale.sample.plan import Outline, Plan, continuation


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

    def until(self, end: int) -> "Sample":
        """The sample before its first generated token `end` in text order; all of it without."""
        found = np.flatnonzero(self.generated & (self.tokens == end))
        stop = int(found[0]) if len(found) else len(self.tokens)
        return Sample(
            self.tokens[:stop], self.block[:stop], self.generated[:stop], self.logprob[:stop]
        )


@dataclass(frozen=True, eq=False)
class Generation:
    """What a call to the sampler made."""

    samples: list[Sample]
    rounds: int
    """Forward passes."""
    seconds: float
    """Wall time of all rounds, prompts included."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all samples over the wall time."""
        return sum(int(sample.generated.sum()) for sample in self.samples) / self.seconds


def generate(
    network: ArmdModel,
    prompts: Sequence[np.ndarray],
    *,
    num_tokens: int,
    streams: int = 1,
    sampling: Sampling | None = None,
    sample_numbers: Sequence[int] | None = None,
    on_round: Callable[[int], None] | None = None,
) -> Generation:
    """Continues every prompt by `num_tokens` tokens in `streams` parallel streams.

    Args:
        network: the model, on any tensor-parallel layout; every rank of it must make the same call.
        prompts: tokens of each text so far, of any lengths, each from the token at position 0 on,
            which opens a document.
        num_tokens: tokens to generate for each.
        streams: 1 decodes left to right; S takes S + ceil(num_tokens / S) - 1 rounds at most.
        sampling: how tokens are drawn; by default from the model's distribution, seed 0.
        sample_numbers: key of each sample's random numbers; by default its place in the list.
        on_round: called after each round with the number of tokens it added to each sample.

    Raises:
        GenerationError: a request that the model cannot serve.
    """
    outlines = [
        continuation(np.asarray(prompt), num_tokens=num_tokens, streams=streams)
        for prompt in prompts
    ]
    return complete(
        network,
        outlines,
        sampling=sampling or Sampling(),
        sample_numbers=sample_numbers,
        on_round=on_round,
    )


@torch.no_grad()
def complete(
    network: ArmdModel,
    outlines: Sequence[Outline],
    *,
    sampling: Sampling,
    sample_numbers: Sequence[int] | None = None,
    on_round: Callable[[int], None] | None = None,
) -> Generation:
    """Fills in what is not known of each outline, one round for each of its blocks.

    Arguments and errors are those of `generate`. All outlines have as many unknown tokens, in
    blocks of the same sizes; their known parts may be of any lengths.
    """
    _require_fit(network, outlines)
    began = time.perf_counter()
    device = next(network.parameters()).device
    plan = Plan(outlines, device=device)
    cache = SlotCache(
        capacity=plan.num_positions - 1,
        content_layers=0 if network.runs_one_stream(plan.layout) else network.num_two_stream,
        first_query=plan.first_query,
    )
    numbers = range(len(outlines)) if sample_numbers is None else sample_numbers
    uniform = torch.from_numpy(_uniform(plan, numbers, sampling.seed)).to(device)
    logprob = torch.zeros_like(plan.text, dtype=torch.float64)
    for current in plan.rounds:
        batch = plan.batch(current)
        logits = network.logits(batch, cache, last=current.num_slots)
        cache.advance(content=batch.tokens.shape[1], queries=batch.labels.shape[1])
        tokens, scores = choose(logits, uniform[:, current.slots], sampling)
        plan.write(current, tokens)
        logprob.scatter_(1, plan.layout.order[:, current.slots], scores.double())
        if on_round is not None:
            on_round(current.num_slots)
    samples = _samples(plan, outlines, logprob.cpu().numpy())
    return Generation(samples, rounds=len(plan.rounds), seconds=time.perf_counter() - began)


def _uniform(plan: Plan, numbers: Sequence[int], seed: int) -> Float64[np.ndarray, "b P"]:
    """The random number of every slot; slots count from the start of a sample's own text."""
    uniform = np.zeros((len(numbers), plan.num_positions))
    for row, pad, number in zip(uniform, plan.padding, numbers, strict=True):
        row[pad:] = uniform_numbers(seed, number, len(row) - pad)
    return uniform


def _samples(plan: Plan, outlines: Sequence[Outline], logprob: np.ndarray) -> list[Sample]:
    if not np.isfinite(logprob).all():
        raise GenerationError(
            "the model's predictions must be finite, got NaN or infinity: its weights are damaged "
            "or its training diverged, so use an earlier checkpoint"
        )
    text = plan.text.cpu().numpy()
    return [
        Sample(
            tokens=text[row, pad:],
            block=outline.block.astype(np.int64),
            generated=~outline.known,
            logprob=logprob[row, pad:],
        )
        for row, (pad, outline) in enumerate(zip(plan.padding, outlines, strict=True))
    ]


def _require_fit(network: ArmdModel, outlines: Sequence[Outline]) -> None:
    """Refuses texts that the network's tables have no rows for."""
    longest = max((len(outline.tokens) for outline in outlines), default=0)
    if longest == 0:
        raise GenerationError("there must be a sample to generate, got none: ask for at least 1")
    for table in _position_tables(network):
        if longest > len(table):
            raise GenerationError(
                f"a text may hold at most {len(table)} tokens, as many as the model has positions, "
                f"got {longest} with its prompt: ask for at least {longest - len(table)} fewer"
            )
    for outline in outlines:
        known = outline.tokens[outline.known]
        if known.min() < 0 or known.max() >= network.vocab_size:
            worst = known.min() if known.min() < 0 else known.max()
            raise GenerationError(
                f"tokens of a prompt must be below the model's vocabulary of {network.vocab_size}, "
                f"got {worst}: use the tokenizer that the model was trained with"
            )


def _position_tables(network: ArmdModel) -> list[torch.Tensor]:
    """Tables with a row per position; rotary positions have none and no end."""
    prefix = network.query_start.prefix
    tables = [network.position_embedding, prefix and prefix.position_embedding]
    return [table for table in tables if table is not None]


def entropy_bits(tokens: Int[np.ndarray, " n"]) -> float:
    """Entropy of the tokens of one sample as draws from one distribution, in bits per token.

    The unigram entropy by which the literature on diffusion language models accompanies generative
    perplexity: repetitive text has a low perplexity and a low entropy.
    """
    _, counts = np.unique(tokens, return_counts=True)
    share = counts / max(len(tokens), 1)
    return float(-(share * np.log2(share)).sum()) + 0.0
