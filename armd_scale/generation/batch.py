"""Generation for batches of token sequences: prompts or texts with holes in, samples out.

The samples carry the blocks that they were generated in, so that re-scoring them by teacher forcing
under those blocks gives the log-probabilities that decoding reported. `generation.api` has the same
functions for text.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from armd_scale.errors import GenerationError
from armd_scale.generation.confidence import decode_by_confidence
from armd_scale.generation.decoder import Decoder, decode_blocks
from armd_scale.generation.memory import require_memory_for_texts, require_memory_to_decode
from armd_scale.generation.output_rules import NO_RULES, OutputRules
from armd_scale.generation.result import GenerationOutput, RoundResult, Sample, SpeculativeStats
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
from armd_scale.model.attention import without_cudnn_attention
from armd_scale.order.rng import RngStream, random_uint64

DEFAULT_STRATEGY = Strategy()
DEFAULT_SAMPLING = Sampling()


def generate_tokens(
    network: ArmdModel,
    prompts: Sequence[np.ndarray],
    *,
    num_tokens: int,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_ids: Sequence[int] | None = None,
    rules: OutputRules = NO_RULES,
    on_round: Callable[[RoundResult], None] | None = None,
) -> GenerationOutput:
    """Continue every prompt by `num_tokens` tokens.

    Args:
        network: the model, on any tensor-parallel layout; all of its ranks must make the same call.
        prompts: tokens of each text so far, of any lengths, at least one.
        num_tokens: number of tokens to generate for each prompt.
        strategy: order of generation and tokens per round.
        sampling: how tokens are drawn; by default from the model's own distribution, with seed 0.
        sample_ids: number that keys the random numbers of each sample; by default its index.
        rules: which tokens may be generated, and what ends a text early. Samples are cut there,
            and rounds stop once every text is known up to its own end.
        on_round: called after each round with the tokens that it committed.

    Raises:
        GenerationError: the model cannot serve the request.
    """
    sample_ids = range(len(prompts)) if sample_ids is None else sample_ids
    specs = continuation_specs(
        prompts, sample_ids, num_tokens=num_tokens, strategy=strategy, sampling=sampling
    )
    return generate_from_specs(
        network,
        specs,
        strategy=strategy,
        sampling=sampling,
        sample_ids=sample_ids,
        rules=rules,
        on_round=on_round,
    )


def infill_tokens(
    network: ArmdModel,
    texts: Sequence[np.ndarray],
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_ids: Sequence[int] | None = None,
    rules: OutputRules = NO_RULES,
    on_round: Callable[[RoundResult], None] | None = None,
) -> GenerationOutput:
    """Fill the holes of texts: tokens that are `TO_GENERATE`, anywhere but at position 0.

    All other tokens are given (block 0). The strategy orders the tokens of all holes of a text as
    if they were contiguous. The other arguments and the errors are those of `generate_tokens`.
    """
    sample_ids = range(len(texts)) if sample_ids is None else sample_ids
    return generate_from_specs(
        network,
        infill_specs(texts, sample_ids, strategy=strategy, sampling=sampling),
        strategy=strategy,
        sampling=sampling,
        sample_ids=sample_ids,
        rules=rules,
        on_round=on_round,
    )


def continuation_specs(
    prompts: Sequence[np.ndarray],
    sample_ids: Sequence[int],
    *,
    num_tokens: int,
    strategy: Strategy,
    sampling: Sampling,
) -> list[GenerationSpec]:
    """Return the specs that `generate_tokens` completes."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    require_memory_for_texts(len(prompts), longest + max(num_tokens, 0))
    # The order of sample i is drawn from numbers of its own, so that it does not depend on the rest
    # of the batch.
    return [
        continuation_spec(
            np.asarray(prompt), strategy, _order_words(sampling, sample_id, num_tokens)
        )
        for prompt, sample_id in zip(prompts, sample_ids, strict=True)
    ]


def infill_specs(
    texts: Sequence[np.ndarray],
    sample_ids: Sequence[int],
    *,
    strategy: Strategy,
    sampling: Sampling,
) -> list[GenerationSpec]:
    """Return the specs that `infill_tokens` completes."""
    require_memory_for_texts(len(texts), max(map(len, texts), default=0))
    return [
        infill_spec(
            text, strategy, _order_words(sampling, sample_id, int((text == TO_GENERATE).sum()))
        )
        for text, sample_id in zip(map(np.asarray, texts), sample_ids, strict=True)
    ]


@torch.no_grad()
@without_cudnn_attention()
def generate_from_specs(
    network: ArmdModel,
    specs: Sequence[GenerationSpec],
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    sampling: Sampling = DEFAULT_SAMPLING,
    sample_ids: Sequence[int] | None = None,
    rules: OutputRules = NO_RULES,
    on_round: Callable[[RoundResult], None] | None = None,
    keep_on_interrupt: bool = False,
) -> GenerationOutput:
    """Generate the unknown tokens of each spec, one round for each of its blocks.

    Only `dynamic` and `speculative` of the strategy are used, because the specs already hold the
    order. Dynamic decoding takes specs whose unknown tokens are a single block, speculative
    decoding takes blocks of one token. With `keep_on_interrupt`, Ctrl-C returns each text as far as
    it is known from its start. The other arguments and the errors are those of `generate_tokens`.
    """
    _check_lengths_and_vocab(network, specs)
    require_memory_to_decode(network, specs)
    start_time = time.perf_counter()
    decoder = Decoder(
        network,
        specs,
        sampling=sampling,
        sample_ids=range(len(specs)) if sample_ids is None else sample_ids,
        follows_spec=strategy.dynamic is None and strategy.speculative is None,
        rules=rules,
        on_round=on_round,
    )
    speculative_stats, is_interrupted = None, False
    try:
        speculative_stats = _decode(decoder, strategy)
    except KeyboardInterrupt:
        if not keep_on_interrupt or not decoder.num_rounds:
            raise
        is_interrupted = True
        decoder.end_now()
    samples = _collect_samples(decoder, specs)
    samples = [
        sample if end is None else sample.truncate(end)
        for sample, end in zip(samples, decoder.ends, strict=True)
    ]
    seconds = time.perf_counter() - start_time
    return GenerationOutput(
        samples, decoder.num_rounds, seconds, speculative_stats, is_interrupted=is_interrupted
    )


def _decode(decoder: Decoder, strategy: Strategy) -> SpeculativeStats | None:
    # A strategy is at most one of these two; everything else is decided by the blocks of the specs.
    if strategy.dynamic is not None:
        decode_by_confidence(decoder, strategy.dynamic)
    elif strategy.speculative is not None:
        return decode_speculative(decoder, strategy.speculative)
    else:
        decode_blocks(decoder)
    return None


def _order_words(sampling: Sampling, sample_id: int, count: int) -> np.ndarray:
    """Return the random words that a sample's order of generation is drawn from."""
    # A negative count is left to the check of the spec, which names the option.
    return random_uint64(sampling.seed, sample_id, max(count, 0), purpose=RngStream.ORDER)


def _collect_samples(decoder: Decoder, specs: Sequence[GenerationSpec]) -> list[Sample]:
    """Return the finished texts, without padding.

    Raises:
        GenerationError: a log-probability is NaN or infinite.
    """
    state = decoder.state
    tokens, block, logprob, commit_round = (
        values.cpu().numpy()
        for values in (state.tokens, state.block, state.logprob, state.commit_round)
    )
    # Checked once at the end and not each round: a check waits for the device.
    if not np.isfinite(logprob[:, :-1]).all():
        raise GenerationError(
            "the model's predictions must be finite (got NaN or infinity): its weights are damaged "
            "or its training diverged, so use an earlier checkpoint"
        )
    # Known flags come from the specs: commit_round is 0 for padding columns too.
    return [
        Sample(
            tokens=tokens[row, :length],
            block=block[row, :length],
            generated=~spec.known,
            logprob=logprob[row, :length],
            round=commit_round[row, :length],
        )
        for row, (length, spec) in enumerate(zip(state.lengths, specs, strict=True))
    ]


def _check_lengths_and_vocab(network: ArmdModel, specs: Sequence[GenerationSpec]) -> None:
    """Refuse texts with more positions or higher token ids than the network has."""
    longest = max((len(spec.tokens) for spec in specs), default=0)
    if longest == 0:
        raise GenerationError("at least 1 sample must be generated (got 0): ask for 1 or more")
    limit = max_text_tokens(network)
    if limit is not None and longest > limit:
        raise GenerationError(
            f"a text may contain at most {limit} tokens, as many as the model has positions (got "
            f"{longest}, prompt included): generate at least {longest - limit} fewer"
        )
    # An id outside of the embedding table would end in an index error of a CUDA kernel, which names
    # neither the token nor the cause.
    for spec in specs:
        known = spec.tokens[spec.known]
        if known.min() < 0 or known.max() >= network.vocab_size:
            invalid = known.min() if known.min() < 0 else known.max()
            raise GenerationError(
                f"token ids of a prompt must be between 0 and {network.vocab_size - 1}, the "
                f"model's vocabulary (got {invalid}): use the tokenizer that the model was trained "
                "with"
            )


def max_text_tokens(network: ArmdModel) -> int | None:
    """Return the number of tokens that a text can have; None if it is unlimited.

    Learned position embeddings limit it, and `model.max_positions`: a converted model computes what
    its source does only up to the length of that.
    """
    prefix = network.query_start.prefix
    tables = [network.position_embedding, prefix and prefix.position_embedding]
    limits = [len(table) for table in tables if table is not None]
    if network.model.max_positions is not None:
        limits.append(network.model.max_positions)
    return min(limits, default=None)
