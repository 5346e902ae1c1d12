"""Texts side by side, slot by slot, as far as they are known, and the rows that a round feeds.

A round is a part of the batch that teacher forcing of the finished texts would run: content rows
of tokens that have become known, query rows of tokens that are asked for. Slots count for each
text by itself, so texts may be of any lengths, in blocks of any sizes, and one may be done while
others go on. Its rows are then nobody's: they see one key and are seen by nobody.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64
from torch import Tensor

from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.order.sort import sort_by_block
from armd_scale.order.spans import KeySpans

# What a slot's rows have to know, the columns of `facts`. Intervals are of slots; the query row of
# slot s is key s - 1, so those of earlier blocks end at QUERY_STOP - 1.
POSITION, ANCHOR, CONTENT_STOP, QUERY_STOP, UPPER_START, UPPER_STOP = range(6)
PADDING_SLOT = (0, 0, 1, 2, 0, 1)
UNKNOWN = -1


class DecodeState:
    """b texts of up to P positions, and what is known of them.

    Args:
        outlines: of the texts.
        device: where the network is.
        by_outline: whether every round asks for a block of the outlines, so that left-to-right ones
            may run as one stream.
    """

    def __init__(
        self, outlines: Sequence[GenerationSpec], *, device: torch.device, follows_spec: bool = True
    ) -> None:
        self.lengths = np.array([len(outline.tokens) for outline in outlines])
        self.num_positions = P = int(self.lengths.max())
        tokens, block, known = (
            np.stack(rows)
            for rows in zip(*(_padded(outline, P) for outline in outlines), strict=True)
        )
        laid = sort_by_block(block, [(P,)] * len(outlines))
        self._block_by_slot = np.take_along_axis(block, laid.order, axis=1)
        known_by_slot = np.take_along_axis(known, laid.order, axis=1)
        self.num_given = (self._block_by_slot == 0).sum(axis=1)
        # Padding, which comes last, counts as known.
        self.num_known = known.sum(axis=1) - (P - self.lengths)
        for slots, first in zip(known_by_slot, self.num_known, strict=True):
            assert slots[:first].all(), "known tokens must come before all others"
        slot_info = np.empty((len(outlines), P + 1, len(PADDING_SLOT)), dtype=np.int32)
        slot_info[:, P] = PADDING_SLOT
        slot_info[:, :P, POSITION] = laid.order
        slot_info[:, :P, ANCHOR] = np.take_along_axis(laid.anchor, laid.order, axis=1)
        slot_info[:, : P - 1, CONTENT_STOP] = laid.content.stop
        slot_info[:, P - 1, CONTENT_STOP] = P
        slot_info[:, 1:P, QUERY_STOP] = laid.query.stop
        slot_info[:, 1:P, UPPER_START] = laid.upper_query.start
        slot_info[:, 1:P, UPPER_STOP] = laid.upper_query.stop
        self.facts: Int32[Tensor, "b slots 6"] = torch.from_numpy(slot_info).to(device)
        # One place more than positions, for what nobody's rows write.
        place = np.pad(tokens, ((0, 0), (0, 1)))
        self.text: Int64[Tensor, "b places"] = torch.from_numpy(place.astype(np.int64)).to(device)
        state = np.where(np.pad(known, ((0, 0), (0, 1)), constant_values=True), 0, UNKNOWN)
        self.commit_round: Int64[Tensor, "b places"] = torch.from_numpy(state).to(device)
        """Round in which a token became known; 0 where it always was."""
        blocks = np.pad(block, ((0, 0), (0, 1))).astype(np.int64)
        self.block: Int64[Tensor, "b places"] = torch.from_numpy(blocks).to(device)
        self.logprob = torch.zeros_like(self.text, dtype=torch.float64)
        self._items = torch.arange(len(outlines), device=device).unsqueeze(1)
        all_positions = np.broadcast_to(np.arange(P), tokens.shape)
        layout = make_batch(
            all_positions,
            block,
            lengths=[(P,)] * len(outlines),
            sample_index=np.arange(len(outlines)),
        ).to(device)
        self.layout = dataclasses.replace(
            layout, is_left_to_right=follows_spec and layout.is_left_to_right
        )

    @property
    def known(self) -> Bool[Tensor, "b P"]:
        """Which positions are known; those after a text's end are."""
        return self.commit_round[:, :-1] != UNKNOWN

    def bounds(self) -> Int[np.ndarray, "b bounds"]:
        """First slots of the blocks that are not known; after its last block a text's end."""
        opens = np.diff(self._block_by_slot, axis=1, prepend=-1) != 0
        starts = []
        for is_open, first, end in zip(opens, self.num_known, self.lengths, strict=True):
            assert first == end or is_open[first], "a block must be known whole or not at all"
            starts.append([first, *(np.flatnonzero(is_open[first + 1 : end]) + first + 1), end])
        longest = max(map(len, starts))
        return np.array([row + row[-1:] * (longest - len(row)) for row in starts])

    def slots(
        self, begin: Int[np.ndarray, " b"], end: Int[np.ndarray, " b"]
    ) -> Int64[Tensor, "b w"]:
        """The slots begin..end - 1 of every text, flush right; nobody's slot P before them."""
        width = max(int((end - begin).max()), 0)
        slot = end[:, None] + np.arange(-width, 0)
        slot = np.where(slot < begin[:, None], self.num_positions, slot)
        return torch.from_numpy(slot).to(self.text.device)

    def slot_info_at(self, slots: Int64[Tensor, "b w"]) -> Int32[Tensor, "b w 6"]:
        """What the rows of slots have to know."""
        return self.facts[self._items, slots]

    def batch(
        self, content_slots: Int64[Tensor, "b C"], queries: Int32[Tensor, "b Q 6"]
    ) -> ArmdBatch:
        """The rows of a round, with the tokens known by now.

        Args:
            content_slots: whose content rows are fed.
            queries: facts of the query rows that are fed.
        """
        content = self.slot_info_at(content_slots)
        position, anchor = queries[..., POSITION].long(), queries[..., ANCHOR].long()
        content_position = content[..., POSITION].long()
        return dataclasses.replace(
            self.layout,
            tokens=self.text.gather(1, content_position),
            positions=content_position,
            labels=position,
            is_target=position > 0,
            label_positions=position.clamp(min=1),
            anchor_tokens=self.text.gather(1, anchor),
            anchor_gaps=(position - 1 - anchor).clamp(min=0),
            content=KeySpans(torch.zeros_like(content[..., 0]), content[..., CONTENT_STOP]),
            query=KeySpans(torch.zeros_like(queries[..., 0]), queries[..., QUERY_STOP]),
            upper=KeySpans(queries[..., UPPER_START], queries[..., UPPER_STOP]),
            causal=False,
            document_rows=None,
        )

    def anchors(self, visible: Bool[Tensor, "b P"]) -> Int32[Tensor, "b P"]:
        """The nearest visible position to the left of every position."""
        place = torch.arange(visible.shape[1], device=visible.device, dtype=torch.int32)
        nearest = torch.where(visible, place, 0).cummax(dim=1).values
        return torch.cat((nearest[:, :1], nearest[:, :-1]), dim=1)

    def write(
        self,
        places: Int64[Tensor, "b k"],
        tokens: Int64[Tensor, "b k"],
        logprob: Tensor,
        number: int,
    ) -> None:
        """Makes tokens known in a round; `places` are positions, P for what is nobody's."""
        self.text.scatter_(1, places, tokens)
        self.logprob.scatter_(1, places, logprob.double())
        self.commit_round.scatter_(1, places, number)

    def assign_slots(
        self, slots: Int64[Tensor, "b k"], facts: Int32[Tensor, "b k 6"], *, number: int
    ) -> None:
        """Gives slots their rows, as a text's block `number` of those that were unknown."""
        self.facts[self._items, slots] = facts
        places = self.places_of(slots)
        self.block.scatter_(1, places, self.block.gather(1, places) + number - 1)

    def places_of(self, slots: Int64[Tensor, "b k"]) -> Int64[Tensor, "b k"]:
        """Where the tokens of slots are written."""
        position = self.slot_info_at(slots)[..., POSITION].long()
        return torch.where(slots < self.num_positions, position, self.num_positions)

    def seen(self, vocab_size: int) -> Bool[Tensor, "b 1 vocabulary"]:
        """Tokens that each text shows so far."""
        inside = torch.arange(self.num_positions, device=self.text.device)
        inside = inside < torch.from_numpy(self.lengths).to(inside.device).unsqueeze(1)
        token = torch.where(self.known & inside, self.text[:, :-1], vocab_size)
        seen = torch.zeros(len(token), vocab_size + 1, dtype=torch.bool, device=token.device)
        return seen.scatter_(1, token, True)[:, None, :-1]

    def finished(self, end: int) -> Bool[np.ndarray, " b"]:
        """Which texts are known up to a generated token `end`, so that nothing is to come."""
        known = self.known
        is_end = (self.text[:, :-1] == end) & (self.commit_round[:, :-1] > 0)
        before_end = is_end.cumsum(dim=1) == 0
        return (is_end.any(dim=1) & (known | ~before_end).all(dim=1)).cpu().numpy()


def _padded(outline: GenerationSpec, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An outline with known tokens after it, in later blocks and text order."""
    pad = length - len(outline.tokens)
    return (
        np.pad(outline.tokens, (0, pad)),
        np.concatenate((outline.block, outline.block.max() + 1 + np.arange(pad))),
        np.pad(outline.known, (0, pad), constant_values=True),
    )
