"""Confidence-based (dynamic) decoding: each round scores all remaining positions, and commits the
best of them (dynamic resampling of A3, arXiv 2601.13228).

Scoring rows query all remaining positions as one block, and tokens are drawn from their logits. The
query rows of the committed tokens are computed again in the next round, as the block that they
became. So what is cached, and the log-probabilities that are reported, are those of teacher forcing
under the final blocks. The two distributions are the same where query rows do not see their own
block (`upper_visibility: self`, or all layers two-stream), and in the last round of a text.
Elsewhere they differ, because a row then also sees which other positions are queried in the same
round.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from armd_scale.generation.decode_state import PADDING_SLOT, SlotInfo
from armd_scale.generation.decoder import Decoder
from armd_scale.generation.sampling import log_probability
from armd_scale.generation.strategy import ConfidenceRule, ConfidenceSchedule
from armd_scale.order.rng import RngStream


def decode_by_confidence(decoder: Decoder, schedule: ConfidenceSchedule) -> None:
    """Generate the unknown tokens, `schedule.tokens_per_round` of every text in each round."""
    rounds = _ConfidenceDecoder(decoder, schedule)
    while rounds.is_active.any():
        slots = rounds.remaining_slots()
        queries = rounds.remaining_queries(slots)
        logits = rounds.forward(slots, queries)
        rounds.commit_best(slots, queries, logits)


class _ConfidenceDecoder:
    """The steps of a round, and the progress of each text."""

    def __init__(self, decoder: Decoder, schedule: ConfidenceSchedule) -> None:
        self._decoder, self._schedule = decoder, schedule
        self._state = decoder.state
        self._random_scores = decoder.uniforms_for(RngStream.ORDER)
        # Slots before `_num_committed` have their final token. Of these, the query rows from
        # `_query_start` on are still to be computed: first the prompt's, later those of the tokens
        # that the last round committed.
        self._num_committed = self._state.num_known
        self._query_start = self._state.num_given
        self._content_start = np.zeros_like(self._state.num_given)

    @property
    def is_active(self) -> np.ndarray:
        """Which texts have tokens left to generate."""
        return (self._num_committed < self._state.lengths) & ~self._decoder.is_finished

    def remaining_slots(self) -> Int64[Tensor, "b r"]:
        """Return the slots of all remaining tokens.

        Which position gets which slot is decided by the order in which tokens are committed. Until
        then the remaining positions are assigned to them in text order.
        """
        stop = np.where(self.is_active, self._state.lengths, self._num_committed)
        return self._state.slot_range(self._num_committed, stop)

    def remaining_queries(self, slots: Int64[Tensor, "b r"]) -> SlotInfo:
        """Return query rows for all remaining positions as one block."""
        state, known = self._state, self._state.known
        num_committed = self._column(self._num_committed)
        # A stable sort of the known flags lists the unknown positions first, in text order.
        unknown_first = known.to(torch.int8).argsort(dim=1, stable=True)
        is_real = slots < state.num_positions
        position = unknown_first.gather(1, torch.where(is_real, slots - num_committed, 0))
        fields = SlotInfo(
            position=position.int(),
            anchor=state.anchors(known).gather(1, position),
            content_stop=position.int(),  # unused: these tokens have no content row yet
            query_stop=num_committed.int().expand_as(position),
            upper_start=(self._column(state.num_given) - 1).int().expand_as(position),
            upper_stop=(self._column(state.lengths) - 1).int().expand_as(position),
        )
        return SlotInfo(
            *(
                torch.where(is_real, field, padding)
                for field, padding in zip(fields, PADDING_SLOT, strict=True)
            )
        )

    def forward(
        self, slots: Int64[Tensor, "b r"], queries: SlotInfo
    ) -> Float[Tensor, "b r vocabulary"]:
        """Feed the last committed block and the rows of all remaining positions.

        Also records the log-probabilities of the last committed tokens under their final block.

        Returns:
            The logits of the remaining positions.
        """
        state, is_active = self._state, self.is_active
        start = np.where(is_active, self._query_start, self._num_committed)
        committed_slots = state.slot_range(start, self._num_committed)
        committed = state.slot_info_at(committed_slots)
        # In the first round the committed rows are those of the prompt, which is not scored.
        num_scored = committed_slots.shape[1] if self._decoder.num_rounds else 0
        logits = self._decoder.forward(
            (np.where(is_active, self._content_start, self._num_committed), self._num_committed),
            torch.cat((committed_slots, slots), dim=1),
            SlotInfo(*(torch.cat(pair, dim=1) for pair in zip(committed, queries, strict=True))),
            num_query_keys=int(state.lengths[is_active].max()) - 1,
            num_logits=num_scored + slots.shape[1],
        )
        if num_scored:
            columns = state.columns_of(committed_slots)
            tokens = state.tokens.gather(1, columns)
            logprob = log_probability(logits[:, :num_scored], tokens).double()
            state.logprob.scatter_(1, columns, logprob)
        return logits[:, num_scored:]

    def commit_best(
        self,
        slots: Int64[Tensor, "b r"],
        queries: SlotInfo,
        logits: Float[Tensor, "b r vocabulary"],
    ) -> None:
        """Draw a token for each remaining position, and commit the best of them as one block."""
        decoder, state = self._decoder, self._state
        position = queries.position.long()
        # A position is drawn again in every round until it is committed, each time by another
        # number: `part` counts the tokens that the text has got so far.
        uniform = decoder.uniforms_for(
            RngStream.DYNAMIC, part=self._num_committed - state.num_known
        )
        tokens, logprob = decoder.sample(logits, uniform.gather(1, position))
        score = _score(
            self._schedule.rule, logits, logprob, self._random_scores.gather(1, position)
        )
        score = score.masked_fill(slots == state.num_positions, -torch.inf)
        num_committed = np.where(
            self.is_active,
            np.minimum(self._num_committed + self._schedule.tokens_per_round, state.lengths),
            self._num_committed,
        )
        best_slots = state.slot_range(self._num_committed, num_committed)
        best = score.argsort(dim=1, descending=True, stable=True)[:, : best_slots.shape[1]]
        # Sorted again, so that a block is in text order. Padding rows (score -inf) have the lowest
        # indices: they come first, flush right like the slots.
        best = best.sort(dim=1).values
        block = self._as_block(queries, best, num_committed)
        state.assign_slots(best_slots, block, block_index=decoder.num_rounds)
        decoder.commit(
            state.columns_of(best_slots), tokens.gather(1, best), logprob.gather(1, best)
        )
        self._query_start = self._content_start = self._num_committed
        self._num_committed = num_committed

    def _as_block(
        self, queries: SlotInfo, best: Int64[Tensor, "b k"], stop: Int64[np.ndarray, " b"]
    ) -> SlotInfo:
        """Return the rows with indices `best` as a block that ends before slot `stop`."""
        block = SlotInfo(*(field.gather(1, best) for field in queries))
        # Position 0 is always given, so only padding rows have it.
        is_real = block.position > 0
        block_stop = self._column(stop).int()
        return block._replace(
            content_stop=torch.where(is_real, block_stop, block.content_stop),
            upper_stop=torch.where(is_real, block_stop - 1, block.upper_stop),
        )

    def _column(self, values: Int64[np.ndarray, " b"]) -> Int64[Tensor, "b 1"]:
        return torch.as_tensor(values, device=self._decoder.device).unsqueeze(1)


def _score(
    rule: ConfidenceRule,
    logits: Float[Tensor, "b r vocabulary"],
    logprob: Float[Tensor, "b r"],
    random_scores: Float[Tensor, "b r"],
) -> Float[Tensor, "b r"]:
    """Return the score of each drawn token; higher is better.

    Scores use the model's own distribution, whatever the sampling settings.
    """
    if rule == "confidence":
        return logprob
    if rule == "random":
        return random_scores
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    if rule == "entropy":
        return torch.xlogy(probability, probability).sum(dim=-1)
    first, second = probability.topk(2).values.unbind(dim=-1)
    return first - second
