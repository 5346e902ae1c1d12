"""What a network says of given continuations of given texts, from left to right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from armd_scale.data.batch import make_batch
from armd_scale.errors import ArmdError
from armd_scale.model.armd_model import ArmdModel


@dataclass(frozen=True)
class ContextContinuation:
    """A text and what follows it."""

    context: Int[np.ndarray, " c"]
    """At least the token that opens a document."""
    continuation: Int[np.ndarray, " t"]


@dataclass(frozen=True)
class ContinuationScore:
    """What the network says of a continuation."""

    logprob: float
    """Log-probability in nats of the whole continuation."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one after those before it."""


def encode_pair(
    context: str, continuation: str, encode: Callable[[str], Int[np.ndarray, " n"]]
) -> ContextContinuation:
    """The tokens of both; they are those of the whole text, cut where the context's tokens end.

    Blanks that end the context go to the continuation, where tokenizers expect them.

    Args:
        context: a text, or nothing.
        continuation: what follows it.
        encode: gives the tokens of a text, with at least one in front that is not of the text
            where the text is empty.
    """
    stem = context.rstrip()
    whole = encode(context + continuation)
    # A continuation keeps one token at least where the cut goes through a token.
    cut = min(len(encode(stem)), len(whole) - 1)
    return (
        ContextContinuation(whole[:cut], whole[cut:])
        if cut
        else ContextContinuation(whole, whole[:0])
    )


@torch.no_grad()
def score_continuations(
    network: ArmdModel,
    pairs: Sequence[ContextContinuation],
    *,
    micro_batch: int,
    max_tokens: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> list[ContinuationScore]:
    """The verdict on each pair.

    Args:
        network: the model.
        pairs: texts of any lengths.
        micro_batch: texts of one forward pass.
        max_tokens: longer texts lose their beginning.
        on_batch: called after each forward pass with the number of its texts.

    Raises:
        ArmdError: a continuation that leaves no room for a token before it.
    """
    for pair in pairs:
        if len(pair.continuation) >= max_tokens:
            raise ArmdError(
                f"a continuation must be shorter than {max_tokens} tokens, got "
                f"{len(pair.continuation)}: shorten it, or raise the sequence length"
            )
    lengths = [len(pair.context) + len(pair.continuation) for pair in pairs]
    by_length = sorted(range(len(pairs)), key=lengths.__getitem__)
    verdicts: dict[int, ContinuationScore] = {}
    for begin in range(0, len(pairs), micro_batch):
        numbers = by_length[begin : begin + micro_batch]
        together = _score([pairs[number] for number in numbers], network, max_tokens)
        verdicts |= zip(numbers, together, strict=True)
        on_batch(len(numbers))
    return [verdicts[number] for number in range(len(pairs))]


def _score(
    pairs: Sequence[ContextContinuation], network: ArmdModel, max_tokens: int
) -> list[ContinuationScore]:
    """One forward pass; what follows a shorter text is seen by nothing in it."""
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
    first = min(min(starts), longest - 1)
    # Row 0 of these predicts the token at position `first`.
    logits = network.logits(batch, last=longest - first).float().cpu()
    verdicts = []
    for row, text, start in zip(logits, texts, starts, strict=True):
        labels = torch.from_numpy(text[start:].astype(np.int64))
        logprob = row[start - first : len(text) - first].log_softmax(dim=-1)
        found = logprob.gather(1, labels[:, None]).double().sum().item()
        verdicts.append(ContinuationScore(found, bool((logprob.argmax(dim=-1) == labels).all())))
    return verdicts
