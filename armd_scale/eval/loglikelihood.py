"""Left-to-right log-likelihood of continuations, as lm-evaluation-harness defines it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from armd_scale.data.batch import make_batch
from armd_scale.data.text_encoder import TokenPair
from armd_scale.errors import ArmdError
from armd_scale.eval.data import check_token_ids
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.attention import without_cudnn_attention


@dataclass(frozen=True)
class ContinuationScore:
    """Score of one continuation."""

    logprob: float
    """Log-probability of the whole continuation, in nats."""
    is_greedy: bool
    """Whether every token of it is the most likely one given the tokens before."""


@torch.no_grad()
@without_cudnn_attention()  # batches of texts have a length each
def score_continuations(
    network: ArmdModel,
    pairs: Sequence[TokenPair],
    *,
    micro_batch: int,
    max_tokens: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[ContinuationScore]:
    """Score each continuation given its context, in left-to-right order.

    Args:
        network: the model.
        pairs: texts of any lengths.
        micro_batch: texts per forward pass.
        max_tokens: longest text; longer ones are truncated on the left.
        on_batch: called after each forward pass with the number of its texts.

    Returns:
        The scores, in the order of `pairs`.

    Raises:
        ArmdError: a continuation that leaves no room for a context token, or a token that the
            model does not have.
    """
    for pair in pairs:
        check_token_ids(np.concatenate((pair.context, pair.continuation)), network.vocab_size)
        if len(pair.continuation) >= max_tokens:
            raise ArmdError(
                f"a continuation must be shorter than {max_tokens} tokens (got "
                f"{len(pair.continuation)}): shorten it, or raise the sequence length"
            )
    # Texts of similar length share a batch, so that little of it is padding.
    lengths = [len(pair.context) + len(pair.continuation) for pair in pairs]
    by_length = sorted(range(len(pairs)), key=lengths.__getitem__)
    scores: dict[int, ContinuationScore] = {}
    for start in range(0, len(pairs), micro_batch):
        indices = by_length[start : start + micro_batch]
        batch_scores = _score_batch([pairs[i] for i in indices], network, max_tokens)
        scores |= zip(indices, batch_scores, strict=True)
        on_batch(len(indices))
    return [scores[i] for i in range(len(pairs))]


def _score_batch(
    pairs: Sequence[TokenPair], network: ArmdModel, max_tokens: int
) -> list[ContinuationScore]:
    """Score texts in one forward pass.

    Shorter texts are padded on the right. Under left-to-right order no token sees the padding
    after it, so token 0 serves as padding and no mask is needed.
    """
    texts = [np.concatenate((p.context, p.continuation))[-max_tokens:] for p in pairs]
    longest = max(map(len, texts))
    tokens = np.stack([np.pad(text, (0, longest - len(text))) for text in texts])
    block = np.broadcast_to(np.arange(longest, dtype=np.int32), tokens.shape)
    batch = make_batch(
        tokens,
        block,
        lengths=[(longest,)] * len(pairs),
        sample_index=np.arange(len(pairs)),
    ).to(next(network.parameters()).device)
    starts = [len(text) - len(p.continuation) for text, p in zip(texts, pairs, strict=True)]
    # Logits of a long context over a large vocabulary would be most of the memory; only those from
    # the earliest continuation on are computed. Row 0 of the result predicts the token at `first`.
    first = min(min(starts), longest - 1)
    logits = network.logits(batch, last=longest - first).float().cpu()
    scores = []
    for row, text, start in zip(logits, texts, starts, strict=True):
        labels = torch.from_numpy(text[start:].astype(np.int64))
        logprob = row[start - first : len(text) - first].log_softmax(dim=-1)
        label_logprob = logprob.gather(1, labels[:, None]).double().sum().item()
        is_greedy = bool((logprob.argmax(dim=-1) == labels).all())
        scores.append(ContinuationScore(label_logprob, is_greedy))
    return scores
