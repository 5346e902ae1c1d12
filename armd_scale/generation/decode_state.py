"""State of a batch of texts during decoding: their tokens so far, and the rows that a round feeds.

A round is a part of the batch that teacher forcing of the finished texts would run: content rows
of tokens that became known, and query rows of tokens to predict. Each text counts its slots
independently, so texts may have any lengths and blocks of any sizes, and one may be finished while
others continue. The rows of finished texts are padding: they attend to one key and no row attends
to them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.order.sort import SortedWindows, sort_by_block
from armd_scale.order.spans import KeySpans

UNKNOWN_ROUND = -1
"""Commit round of a token that is still to be generated."""


class SlotInfo(NamedTuple):
    """What the rows of w slots need to know; all fields are [b, w] int32.

    Key intervals are counted in slots. The query row of slot s is key s - 1, so the query rows of
    earlier blocks end at `query_stop - 1`.
    """

    position: Int32[Tensor, "b w"]
    """Position of the slot's token in the text."""
    anchor: Int32[Tensor, "b w"]
    """Position of the nearest token to the left that the query row sees."""
    content_stop: Int32[Tensor, "b w"]
    """The slot's content row sees the content rows of slots 0..content_stop - 1."""
    query_stop: Int32[Tensor, "b w"]
    """The slot's query row sees the content rows of slots 0..query_stop - 1."""
    upper_start: Int32[Tensor, "b w"]
    upper_stop: Int32[Tensor, "b w"]
    """In upper layers the query row sees the query rows upper_start..upper_stop - 1."""


# Padding rows see exactly one key of each kind (a softmax over none would be NaN). The query rows
# of earlier blocks end at query_stop - 1, hence the 2. In the order of the fields of SlotInfo.
PADDING_SLOT = (0, 0, 1, 2, 0, 1)


class DecodeState:
    """b texts of up to P positions, and which of their tokens are known.

    Tensors by position have P + 1 columns. The last column absorbs the writes of padding rows, so
    that every round is one scatter over all texts without a mask.

    Args:
        specs: the texts.
        device: where the network lives.
        follows_spec: whether every round predicts a block of the specs. Only then may left-to-right
            texts run as a single stream.
    """

    def __init__(
        self, specs: Sequence[GenerationSpec], *, device: torch.device, follows_spec: bool = True
    ) -> None:
        self.lengths = np.array([len(spec.tokens) for spec in specs])
        self.num_positions = P = int(self.lengths.max())
        tokens, block, known = (
            np.stack(rows) for rows in zip(*(_pad_to(spec, P) for spec in specs), strict=True)
        )
        sorted_texts = sort_by_block(block, [(P,)] * len(specs))
        self._block_by_slot = np.take_along_axis(block, sorted_texts.order, axis=1)
        self.num_given = (self._block_by_slot == 0).sum(axis=1)
        # Padding positions come last and count as known; they are not among the known slots.
        self.num_known = known.sum(axis=1) - (P - self.lengths)
        known_by_slot = np.take_along_axis(known, sorted_texts.order, axis=1)
        for is_known, num_known in zip(known_by_slot, self.num_known, strict=True):
            assert is_known[:num_known].all(), "known tokens must come before all unknown ones"

        slot_info = _stack_slot_info(sorted_texts, num_positions=P)
        # One tensor for all six fields: a look-up is one kernel launch, not six.
        self._slot_info: Int32[Tensor, "b slots 6"] = torch.as_tensor(slot_info, device=device)
        self._text_index = torch.arange(len(specs), device=device).unsqueeze(1)
        self.tokens: Int64[Tensor, "b columns"] = _with_padding_column(tokens, device)
        self.commit_round: Int64[Tensor, "b columns"] = _with_padding_column(
            np.where(known, 0, UNKNOWN_ROUND), device
        )
        """Round that committed each token; 0 where it was known from the start."""
        self.block: Int64[Tensor, "b columns"] = _with_padding_column(block, device)
        self.logprob = torch.zeros_like(self.tokens, dtype=torch.float64)

        template = make_batch(
            np.broadcast_to(np.arange(P), tokens.shape),
            block,
            lengths=[(P,)] * len(specs),
            sample_index=np.arange(len(specs)),
        ).to(device)
        self.template = dataclasses.replace(
            template, is_left_to_right=follows_spec and template.is_left_to_right
        )
        """Batch of the whole texts, whose rows each round replaces by its own."""

    @property
    def known(self) -> Bool[Tensor, "b P"]:
        """Which positions are known; positions after the end of a text count as known."""
        return self.commit_round[:, :-1] != UNKNOWN_ROUND

    def block_bounds(self) -> Int[np.ndarray, "b bounds"]:
        """Return the first slots of each text's unknown blocks, then its length.

        Rows of texts with fewer blocks are filled up with their length.
        """
        starts_block = np.diff(self._block_by_slot, axis=1, prepend=-1) != 0
        rows: list[list[int]] = []
        for is_start, first, length in zip(starts_block, self.num_known, self.lengths, strict=True):
            assert first == length or is_start[first], "a block must be known as a whole or not"
            later = np.flatnonzero(is_start[first + 1 : length]) + first + 1
            rows.append([int(first), *later.tolist(), int(length)])
        longest = max(map(len, rows))
        return np.array([row + row[-1:] * (longest - len(row)) for row in rows])

    def slot_range(
        self, start: Int[np.ndarray, " b"], stop: Int[np.ndarray, " b"]
    ) -> Int64[Tensor, "b w"]:
        """Return the slots start..stop - 1 of every text.

        They are flush right: texts with fewer slots than others get the padding slot P before them.
        So the last k rows of a round belong to the last k slots of every text.
        """
        width = max(int((stop - start).max()), 0)
        slot = stop[:, None] + np.arange(-width, 0)
        slot = np.where(slot < start[:, None], self.num_positions, slot)
        return torch.as_tensor(slot, device=self.tokens.device)

    def slot_info_at(self, slots: Int64[Tensor, "b w"]) -> SlotInfo:
        """Return what the rows of `slots` need to know."""
        return SlotInfo(*self._slot_info[self._text_index, slots].unbind(dim=-1))

    def make_batch(self, content_slots: Int64[Tensor, "b C"], queries: SlotInfo) -> ArmdBatch:
        """Return the rows of a round, with the tokens that are known by now.

        Args:
            content_slots: slots whose content rows are fed.
            queries: the query rows that are fed, [b, Q].
        """
        content = self.slot_info_at(content_slots)
        position, anchor = queries.position.long(), queries.anchor.long()
        content_position = content.position.long()
        return dataclasses.replace(
            self.template,
            tokens=self.tokens.gather(1, content_position),
            positions=content_position,
            # Labels only have to exist: decoding reads logits, not losses.
            labels=position,
            is_target=position > 0,
            label_positions=position.clamp(min=1),
            anchor_tokens=self.tokens.gather(1, anchor),
            anchor_gaps=(position - 1 - anchor).clamp(min=0),
            content=KeySpans(torch.zeros_like(content.content_stop), content.content_stop),
            query=KeySpans(torch.zeros_like(queries.query_stop), queries.query_stop),
            upper=KeySpans(queries.upper_start, queries.upper_stop),
            # Rows of a round attend to cached keys, so no causal kernel without a mask fits.
            is_plain_causal=False,
            document_rows=None,
        )

    def anchors(self, visible: Bool[Tensor, "b P"]) -> Int32[Tensor, "b P"]:
        """Return for every position the nearest visible position to its left."""
        index = torch.arange(visible.shape[1], device=visible.device, dtype=torch.int32)
        nearest = torch.where(visible, index, 0).cummax(dim=1).values
        # Shifted by one: a position is not to the left of itself.
        return torch.cat((nearest[:, :1], nearest[:, :-1]), dim=1)

    def commit(
        self,
        columns: Int64[Tensor, "b k"],
        tokens: Int64[Tensor, "b k"],
        logprob: Tensor,
        round_number: int,
    ) -> None:
        """Record the tokens that a round generated, at their columns (see `columns_of`)."""
        self.tokens.scatter_(1, columns, tokens)
        self.logprob.scatter_(1, columns, logprob.double())
        self.commit_round.scatter_(1, columns, round_number)

    def assign_slots(
        self, slots: Int64[Tensor, "b k"], slot_info: SlotInfo, *, block_index: int
    ) -> None:
        """Give slots to rows that were chosen while decoding, as one block.

        Args:
            slots: the slots.
            slot_info: the rows, [b, k].
            block_index: number of the block among those that were unknown, counted from 1.
        """
        self._slot_info[self._text_index, slots] = torch.stack(slot_info, dim=-1)
        columns = self.columns_of(slots)
        # All unknown positions start in the first unknown block, so this shifts by whole blocks.
        self.block.scatter_(1, columns, self.block.gather(1, columns) + block_index - 1)

    def columns_of(self, slots: Int64[Tensor, "b k"]) -> Int64[Tensor, "b k"]:
        """Return the column of each slot's token: its position, or P for the padding slot."""
        position = self.slot_info_at(slots).position.long()
        return torch.where(slots < self.num_positions, position, self.num_positions)

    def seen_tokens(self, vocab_size: int) -> Bool[Tensor, "b 1 vocabulary"]:
        """Return which token ids occur among the known tokens of each text."""
        index = torch.arange(self.num_positions, device=self.tokens.device)
        is_inside = index < torch.as_tensor(self.lengths, device=index.device).unsqueeze(1)
        # Id `vocab_size` collects unknown and padding positions, and is cut off again.
        token = torch.where(self.known & is_inside, self.tokens[:, :-1], vocab_size)
        seen = torch.zeros(len(token), vocab_size + 1, dtype=torch.bool, device=token.device)
        return seen.scatter_(1, token, True)[:, None, :-1]


def _pad_to(spec: GenerationSpec, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, blocks and known flags of a spec with known padding tokens appended.

    Padding comes in later blocks and in text order: so it sorts last, no real row sees it, and a
    left-to-right text remains one.
    """
    num_padding = length - len(spec.tokens)
    padding_blocks = spec.block.max() + 1 + np.arange(num_padding)
    return (
        np.pad(spec.tokens, (0, num_padding)),
        np.concatenate((spec.block, padding_blocks)),
        np.pad(spec.known, (0, num_padding), constant_values=True),
    )


def _stack_slot_info(sorted_texts: SortedWindows, *, num_positions: int) -> np.ndarray:
    """Return the fields of `SlotInfo` for slots 0..P - 1 and the padding slot P, [b, P + 1, 6]."""
    P = num_positions
    slot_info = np.empty((len(sorted_texts.order), P + 1, len(PADDING_SLOT)), dtype=np.int32)
    slot_info[:, P] = PADDING_SLOT
    position, anchor, content_stop, query_stop, upper_start, upper_stop = np.moveaxis(
        slot_info[:, :P], -1, 0
    )  # views
    position[:] = sorted_texts.order
    anchor[:] = np.take_along_axis(sorted_texts.anchor, sorted_texts.order, axis=1)
    # Training has P - 1 rows of each kind: content row i is slot i (the last slot has none), query
    # row i predicts slot i + 1 (slot 0 has none). Decoding adds the content row of the last slot,
    # and never feeds a query row of slot 0.
    content_stop[:, : P - 1] = sorted_texts.content.stop
    content_stop[:, P - 1] = P
    for field, values in (
        (query_stop, sorted_texts.query.stop),
        (upper_start, sorted_texts.upper_query.start),
        (upper_stop, sorted_texts.upper_query.stop),
    ):
        field[:, 0] = 0
        field[:, 1:] = values
    return slot_info


def _with_padding_column(values: np.ndarray, device: torch.device) -> Int64[Tensor, "b columns"]:
    """Return values by position with a zero column appended."""
    padded = np.pad(values.astype(np.int64), ((0, 0), (0, 1)))
    return torch.as_tensor(padded, device=device)
