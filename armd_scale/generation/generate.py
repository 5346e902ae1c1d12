"""Generation: prompts or texts with holes in, samples out.

The text that comes out carries the blocks it was generated in, so that re-scoring it by teacher
forcing under those blocks gives the log-probabilities that decoding reported.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from armd_scale.errors import GenerationError
from armd_scale.generation.confidence import decode_by_confidence
from armd_scale.generation.decoder import Decoder, RoundResult, decode_blocks
from armd_scale.generation.result import GenerationOutput, Sample
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.speculative import decode_speculative
from armd_scale.generation.strategy import (
    TO_GENERATE,
    GenerationSpec,
    Strategy,
    continuation_spec,
    infill_spec,
)
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.rng import RngStream, random_uint64

DEFAULT_STRATEGY = Strategy()
DEFAULT_SAMPLING = Sampling()


def generate(
    network: ArmdModel,
    prompts: Sequence[np.ndarray],
    *,
    num_tokens: int,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_numbers: Sequence[int] | None = None,
    eos_id: int | None = None,
    on_round: Callable[[RoundResult], None] | None = None,
) -> GenerationOutput:
    """Continues every prompt by `num_tokens` tokens.

    Args:
        network: the model, on any tensor-parallel layout; every rank of it must make the same call.
        prompts: tokens of each text so far, of any lengths, each from the token at position 0 on,
            which opens a document.
        num_tokens: tokens to generate for each.
        strategy: in which order, and how many a round.
        sampling: how tokens are drawn; by default from the model's distribution, seed 0.
        sample_numbers: key of each sample's random numbers; by default its place in the list.
        end: a token that ends texts. Samples come without it and what follows, and rounds stop once
            all texts are known up to theirs.
        on_round: called after each round with the tokens that became known.

    Raises:
        GenerationError: a request that the model cannot serve.
    """
    numbers = range(len(prompts)) if sample_numbers is None else sample_numbers
    return generate_from_specs(
        network,
        continuations(
            prompts, numbers, num_tokens=num_tokens, strategy=strategy, sampling=sampling
        ),
        strategy=strategy,
        sampling=sampling,
        sample_numbers=numbers,
        end=eos_id,
        on_round=on_round,
    )


def infill(
    network: ArmdModel,
    texts: Sequence[np.ndarray],
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_numbers: Sequence[int] | None = None,
    on_round: Callable[[RoundResult], None] | None = None,
) -> GenerationOutput:
    """Fills the holes of texts: tokens that are HOLE, any number of them anywhere but in front.

    Everything else is given, block 0; holes are filled in text order, or as the strategy says of
    their tokens in a row. The other arguments and the errors are those of `generate`.
    """
    numbers = range(len(texts)) if sample_numbers is None else sample_numbers
    return generate_from_specs(
        network,
        infillings(texts, numbers, strategy=strategy, sampling=sampling),
        strategy=strategy,
        sampling=sampling,
        sample_numbers=numbers,
        on_round=on_round,
    )


def continuations(
    prompts: Sequence[np.ndarray],
    numbers: Sequence[int],
    *,
    num_tokens: int,
    strategy: Strategy,
    sampling: Sampling,
) -> list[GenerationSpec]:
    """The outlines of `generate`."""
    return [
        continuation_spec(np.asarray(prompt), strategy, _order_words(sampling, number, num_tokens))
        for prompt, number in zip(prompts, numbers, strict=True)
    ]


def infillings(
    texts: Sequence[np.ndarray], numbers: Sequence[int], *, strategy: Strategy, sampling: Sampling
) -> list[GenerationSpec]:
    """The outlines of `infill`."""
    return [
        infill_spec(
            text, strategy, _order_words(sampling, number, int((text == TO_GENERATE).sum()))
        )
        for text, number in zip(map(np.asarray, texts), numbers, strict=True)
    ]


@torch.no_grad()
def generate_from_specs(
    network: ArmdModel,
    outlines: Sequence[GenerationSpec],
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_numbers: Sequence[int] | None = None,
    end: int | None = None,
    on_round: Callable[[RoundResult], None] | None = None,
) -> GenerationOutput:
    """Fills in what is not known of each outline, one round for each of its blocks.

    Of the strategy it is only asked whether decoding is dynamic, which takes outlines whose unknown
    tokens are one block, or lossless, which takes blocks of one token. The other arguments and the
    errors are those of `generate`.
    """
    _check_lengths_and_vocab(network, outlines)
    began = time.perf_counter()
    decoder = Decoder(
        network,
        outlines,
        sampling=sampling,
        sample_ids=range(len(outlines)) if sample_numbers is None else sample_numbers,
        by_outline=strategy.dynamic is None and strategy.speculative is None,
        end=end,
        on_round=on_round,
    )
    verified = None
    if strategy.dynamic is not None:
        decode_by_confidence(decoder, strategy.dynamic)
    elif strategy.speculative is not None:
        verified = decode_speculative(decoder, strategy.speculative)
    else:
        decode_blocks(decoder)
    samples = _samples(decoder, outlines)
    samples = samples if end is None else [sample.until(end) for sample in samples]
    return GenerationOutput(samples, decoder.rounds, time.perf_counter() - began, verified)


def _order_words(sampling: Sampling, number: int, count: int) -> np.ndarray:
    return random_uint64(sampling.seed, number, max(count, 0), purpose=RngStream.ORDER)


def _samples(decoder: Decoder, outlines: Sequence[GenerationSpec]) -> list[Sample]:
    canvas = decoder.canvas
    text, block, logprob, rounds = (
        values.cpu().numpy()
        for values in (canvas.text, canvas.block, canvas.logprob, canvas.commit_round)
    )
    if not np.isfinite(logprob[:, :-1]).all():
        raise GenerationError(
            "the model's predictions must be finite, got NaN or infinity: its weights are damaged "
            "or its training diverged, so use an earlier checkpoint"
        )
    return [
        Sample(
            tokens=text[row, :length],
            block=block[row, :length],
            generated=~outline.known,
            logprob=logprob[row, :length],
            round=rounds[row, :length],
        )
        for row, (length, outline) in enumerate(zip(canvas.lengths, outlines, strict=True))
    ]


def _check_lengths_and_vocab(network: ArmdModel, outlines: Sequence[GenerationSpec]) -> None:
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
