"""What is generated when: a text with holes and a block for every token, cut into rounds.

Every way of decoding is an outline: which tokens are known, and in which block each of the others
is predicted. Given text is block 0, or known targets of the earliest blocks. A round predicts the
tokens of one block together, each from all earlier blocks; it feeds the content rows of what has
become known since the round before and the query rows of its own block, in one forward.
Sequential, strided, group-wise decoding and infilling differ in their outlines only.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from armd_scale.data.batch import ArmdBatch, Visible, make_batch
from armd_scale.errors import GenerationError
from armd_scale.order.blocks import left_to_right_blocks, strided_blocks


@dataclass(frozen=True, eq=False)
class Outline:
    """A text to be completed; P positions, the first of them given."""

    tokens: Int[np.ndarray, " P"]
    """Tokens by position; anything where they are not known."""
    block: Int[np.ndarray, " P"]
    """Generation block by position: 0 is given, and known blocks come before all others."""
    known: Bool[np.ndarray, " P"]
    """Which tokens are known."""


def continuation(prompt: Int[np.ndarray, " m"], *, num_tokens: int, streams: int) -> Outline:
    """A prompt, then `num_tokens` tokens in `streams` contiguous segments side by side.

    The heads of the segments are predicted one at a time, left to right; then every round predicts
    the tokens at one offset of all segments, independently of one another: S + ceil(N / S) - 1
    rounds for N tokens in S streams, fewer where ceil(N / S) tokens a segment fill fewer than S of
    them (Karami & Ghodsi, arXiv 2601.16971). One stream is left-to-right decoding.

    The first token of the prompt is given, the others are targets that happen to be known, one
    block each, left to right. As one given block they would see each other in both directions and
    leave no query rows in the upper layers; read left to right, they make a network that was
    converted from an AR model exactly that model on its prompt.

    Args:
        prompt: tokens from position 0 on, so at least one: what opens a document.
        num_tokens: N, tokens to generate.
        streams: S. Where S does not divide N the last segment is shorter and ends earlier.

    Raises:
        GenerationError: no prompt, no tokens, or more streams than tokens.
    """
    if len(prompt) == 0:
        raise GenerationError(
            "a prompt must hold at least the token that opens a document, got none: start it with "
            "the tokenizer's end-of-document token"
        )
    if num_tokens < 1:
        raise GenerationError(
            f"the number of tokens must be at least 1, got {num_tokens}: ask for 1"
        )
    if not 1 <= streams <= num_tokens:
        raise GenerationError(
            f"streams must be between 1 and the {num_tokens} tokens to generate, got {streams}: "
            "ask for fewer streams or more tokens"
        )
    num_known = len(prompt) - 1
    block = [np.zeros(1, dtype=np.int64), left_to_right_blocks(num_known)]
    block.append(num_known + strided_blocks(num_tokens, streams, joint=True))
    return Outline(
        tokens=np.concatenate((prompt, np.zeros(num_tokens, dtype=np.int64))),
        block=np.concatenate(block),
        known=np.arange(len(prompt) + num_tokens) < len(prompt),
    )


@dataclass(frozen=True)
class Round:
    """The rows of one forward: content rows, query rows, and the slots that it predicts."""

    content: slice
    queries: slice
    slots: slice

    @property
    def num_slots(self) -> int:
        """Number of tokens of each sample that the round predicts."""
        return self.slots.stop - self.slots.start


class Plan:
    """Outlines laid out side by side, and the text as far as it is known.

    A round is a slice of the batch that teacher forcing of the finished text would run: slots,
    spans and anchors are the same, only the tokens are read when the round comes. A shorter
    outline has padding before it, as a document of its own: nothing sees across documents, so it
    changes nothing.

    Args:
        outlines: as many unknown tokens in each, in blocks of the same sizes.
        device: where the network is.
    """

    def __init__(self, outlines: Sequence[Outline], *, device: torch.device) -> None:
        self.num_positions = max(len(outline.tokens) for outline in outlines)
        self.padding = [self.num_positions - len(outline.tokens) for outline in outlines]
        tokens, block, known = (
            np.stack(rows) for rows in zip(*map(self._padded, outlines), strict=True)
        )
        place = np.broadcast_to(np.arange(self.num_positions), tokens.shape)
        # A batch whose tokens are their own places tells where each row reads its tokens from.
        layout = make_batch(
            place,
            block,
            lengths=[(pad, self.num_positions - pad) if pad else (self.num_positions,)
                     for pad in self.padding],
            sample_index=np.arange(len(outlines), dtype=np.int64),
        )  # fmt: skip
        # Rows before the first target of any sample predict nothing and are left out.
        self.first_query = int(layout.is_target.any(dim=0).int().argmax())
        self.rounds = _rounds(layout.order.numpy(), block, known, first_query=self.first_query)
        self.layout = layout.to(device)
        self.text: Int64[Tensor, "b P"] = torch.from_numpy(tokens.astype(np.int64)).to(device)

    def batch(self, current: Round) -> ArmdBatch:
        """The rows of a round, with the tokens known by now."""
        layout, content, queries = self.layout, current.content, current.queries
        return dataclasses.replace(
            layout,
            tokens=self.text.gather(1, layout.tokens[:, content]),
            positions=layout.positions[:, content],
            labels=self.text.gather(1, layout.labels[:, queries]),
            is_target=layout.is_target[:, queries],
            label_positions=layout.label_positions[:, queries],
            anchor_tokens=self.text.gather(1, layout.anchor_tokens[:, queries]),
            anchor_gaps=layout.anchor_gaps[:, queries],
            content=_part(layout.content, content),
            query=_part(layout.query, queries),
            upper=_part(layout.upper, queries),
            causal=False,
        )

    def write(self, current: Round, tokens: Int64[Tensor, "b k"]) -> None:
        """Makes the tokens of a round known."""
        self.text.scatter_(1, self.layout.order[:, current.slots], tokens)

    def _padded(self, outline: Outline) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # Padding reads left to right, so that it never spoils a batch that does.
        pad = self.num_positions - len(outline.tokens)
        return (
            np.pad(outline.tokens, (pad, 0)),
            np.concatenate((np.arange(pad), outline.block)),
            np.pad(outline.known, (pad, 0), constant_values=True),
        )


def _rounds(
    order: Int64[np.ndarray, "b P"],
    block: Int[np.ndarray, "b P"],
    known: Bool[np.ndarray, "b P"],
    *,
    first_query: int,
) -> tuple[Round, ...]:
    """One round for each block that is not known, at the same slots in all samples."""
    known = np.take_along_axis(known, order, axis=1)
    block = np.take_along_axis(block, order, axis=1)
    first = int(known[0].sum())
    assert known[:, :first].all(), "known tokens must come before all others"
    assert not known[:, first:].any(), "all samples must ask for equally many tokens"
    opens = np.diff(block[:, first - 1 :], axis=1) != 0
    assert opens[:, :1].all(), "a block must be known whole or not at all"
    assert (opens == opens[0]).all(), "all samples must have blocks of the same sizes"
    starts = [first + int(slot) for slot in np.flatnonzero(opens[0])]
    rounds = []
    num_content, num_queries = 0, first_query
    for start, stop in zip(starts, [*starts[1:], order.shape[1]], strict=True):
        rounds.append(
            Round(slice(num_content, start), slice(num_queries, stop - 1), slice(start, stop))
        )
        num_content, num_queries = start, stop - 1
    return tuple(rounds)


def _part(visible: Visible, rows: slice) -> Visible:
    return Visible(start=visible.start[:, rows], stop=visible.stop[:, rows])
