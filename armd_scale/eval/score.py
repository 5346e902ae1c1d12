"""Score of a text under an order: what `armd_scale.score` is."""

import numpy as np
from jaxtyping import Int

from armd_scale.checkpoint.pretrained import PretrainedModel
from armd_scale.data.text_encoder import TextEncoder
from armd_scale.errors import GenerationError
from armd_scale.eval.data import check_token_ids
from armd_scale.eval.likelihood import Likelihood, score_all_windows, summarize
from armd_scale.eval.sliding_window import SlidingWindows
from armd_scale.generation.batch import max_text_tokens
from armd_scale.order.spec import parse_spec


def score(
    model: PretrainedModel,
    text: str,
    *,
    order: str = "l2r",
    seq_length: int | None = None,
    seed: int = 0,
) -> Likelihood:
    """Return the likelihood of a text that starts a document.

    The text is split into windows of `seq_length` targets. Each is scored by the block-wise chain
    rule (Karami & Ghodsi, arXiv 2601.16971, Eq. 2) under an order drawn by (seed, window). So the
    score is exact for fixed orders such as `l2r`, and for random orders an upper bound on the
    negative log-likelihood of their mixture, estimated by one draw.

    Example:
        score(model, "def main():", order="strided:4").perplexity

    Args:
        model: what `load_model` returns; it must have a tokenizer.
        text: the text.
        order: spec of the order, such as `l2r`, `strided:4` or `random`.
        seq_length: number of targets per window; None: as in training.
        seed: seed of the draws of random orders.

    Returns:
        `.nll_nats_per_token`, `.perplexity`, `.num_tokens`, `.bits_per_byte` and more.

    Raises:
        GenerationError: the text is empty, the model has no tokenizer, or a window has more tokens
            than the model has positions.
        OrderError: the order is unknown.
        TokenizerError: the tokenizer has tokens that the network does not have.
    """
    length = model.recipe.data.seq_length if seq_length is None else seq_length
    windows = _open_windows(model, _encode(model, text), length)
    policy = parse_spec(order)
    totals = score_all_windows(
        model.network,
        windows,
        policy,
        samples=windows.num_windows,
        seed=seed,
        # One window at a time: the caller chose no batch size, and memory stays that of a window.
        micro_batch=1,
        groups=model.network.groups,
    )
    num_targets = int(totals[:, 1].sum())
    return summarize(policy, totals[None], bytes_per_token=len(text.encode()) / num_targets)


def _encode(model: PretrainedModel, text: str) -> Int[np.ndarray, " P"]:
    if model.tokenizer is None:
        raise GenerationError(
            "a text must be encoded by the tokenizer that the model was trained with, but the "
            "model's folder contains none: copy the tokenizer's files into the checkpoint's folder "
            "tokenizer/"
        )
    return TextEncoder(model.tokenizer).encode_document(text)


def _open_windows(
    model: PretrainedModel, tokens: Int[np.ndarray, " P"], seq_length: int
) -> SlidingWindows:
    num_targets = len(tokens) - 1  # the first token starts the document and is given
    if num_targets < 1:
        raise GenerationError("the text to score must contain at least one token (got none)")
    check_token_ids(tokens, model.network.vocab_size)
    limit = max_text_tokens(model.network)
    if limit is not None and min(seq_length, num_targets) + 1 > limit:
        raise GenerationError(
            f"seq_length must be at most {limit - 1}, as the model has {limit} positions (got "
            f"{seq_length}): use a smaller seq_length"
        )
    return SlidingWindows(
        lambda start, count: tokens[start : start + count],
        len(tokens),
        seq_length=seq_length,
        stride=seq_length,  # windows share one token, so every target is scored once
    )
