"""Speculative decoding: several tokens per round, distributed as in one-at-a-time decoding.

Speculative sampling (Leviathan et al., arXiv 2211.17192; in any order: ASSD, arXiv 2504.20456) with
the network as its own draft model. A round of k tokens has one exact query row, the one of the next
slot, and k - 1 draft rows: each predicts a later slot from what is known now. The next round feeds
the drafted tokens and, for each of their slots, the verification row, which sees the drafts before
it. With p the exact probabilities and q those that a draft d was drawn from, d is accepted with
probability min(1, p(d) / q(d)), and the first rejected draft is replaced by a draw from the
residual (p - q)+: either way the token is distributed as p. The same forward pass also computes the
exact row of the slot after all drafts and k - 1 new draft rows, for the case that all drafts are
accepted. So every round commits between 1 and k tokens, and a round after a replacement starts
without drafts.

Rows of rejected drafts stay in the cache, where no row attends to them, until the rows that belong
there overwrite them. Every slot has its own random numbers, and what is decided about a slot
depends only on random numbers of earlier slots, so those of a rejected draft can be reused.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from armd_scale.generation.decode_state import SlotInfo
from armd_scale.generation.decoder import Decoder
from armd_scale.generation.result import SpeculativeStats
from armd_scale.generation.sampling import log_probability, sample_from, token_probabilities
from armd_scale.order.rng import RngStream


@dataclass
class _Drafts:
    """Tokens drafted for the slots from `start` on; a row for each text."""

    start: Int64[np.ndarray, " b"]
    """First slot whose token is not committed."""
    count: Int64[np.ndarray, " b"]
    """Number of drafts of each text. The tensors have at least one column, even without drafts."""
    tokens: Int64[Tensor, "b m"]
    probability: Float64[Tensor, "b m vocabulary"]
    """The distribution that each draft was drawn from."""

    @property
    def stop(self) -> Int64[np.ndarray, " b"]:
        """First slot after the drafts; its query row is exact if all drafts are accepted."""
        return self.start + self.count


def decode_speculative(decoder: Decoder, max_tokens: int) -> SpeculativeStats:
    """Generate the unknown tokens of specs of one-token blocks, up to `max_tokens` per round.

    Returns:
        How many drafts were verified, and how many of them were accepted.
    """
    state, rounds = decoder.state, _SpeculativeDecoder(decoder, max_tokens)
    no_tokens = torch.zeros(len(state.lengths), 1, dtype=torch.int64, device=decoder.device)
    no_probability = no_tokens.new_zeros(
        len(no_tokens), 1, decoder.network.vocab_size, dtype=torch.float64
    )
    drafts = _Drafts(state.num_known, np.zeros_like(state.num_known), no_tokens, no_probability)
    num_drafted = num_accepted = 0
    while ((drafts.start < state.lengths) & ~decoder.is_finished).any():
        logits, stop = rounds.forward(drafts)
        seen = rounds.seen_tokens(drafts, logits.shape)
        probability = token_probabilities(logits, decoder.sampling, seen, decoder.allowed)
        accepted = rounds.verify(drafts, logits, probability, stop)
        num_drafted += int(drafts.count.sum())
        num_accepted += int(accepted.sum())
        drafts = rounds.draft(drafts, probability, accepted, stop)
    return SpeculativeStats(num_drafted, num_accepted)


class _SpeculativeDecoder:
    """The steps of a round. Row j = 0, 1, ... of a text belongs to slot `drafts.start + j`."""

    def __init__(self, decoder: Decoder, max_tokens: int) -> None:
        self._decoder, self._max_tokens = decoder, max_tokens
        self._state = decoder.state
        all_slots = torch.arange(self._state.num_positions, device=decoder.device)
        self._text_index = torch.arange(len(self._state.lengths), device=decoder.device)[:, None]
        slot_info = self._state.slot_info_at(all_slots.expand(len(self._text_index), -1))
        self._slot_of_position = slot_info.position.argsort(dim=1)
        # Acceptance and replacement have streams of their own: a replacement must not depend on
        # the number that drew the draft or on the one that rejected it.
        self._token_uniform = decoder.uniforms_for(RngStream.TOKEN)
        self._acceptance_uniform = decoder.uniforms_for(RngStream.ACCEPTANCE)
        self._replacement_uniform = decoder.uniforms_for(RngStream.REPLACEMENT)
        self._query_start = self._state.num_given
        self._content_start = np.zeros_like(self._state.num_given)

    def forward(
        self, drafts: _Drafts
    ) -> tuple[Float[Tensor, "b j vocabulary"], Int64[np.ndarray, " b"]]:
        """Feed the drafts, their verification rows, the exact row after them and new draft rows.

        Returns:
            Logits by row, and the slot after the last one that each text has logits for.
        """
        state = self._state
        limit = np.where(self._decoder.is_finished, drafts.start, state.lengths)
        is_active = drafts.start < limit
        # Of the `max_tokens` slots after the drafts, the first is exact and the others are drafts.
        stop = np.where(is_active, np.minimum(drafts.stop + self._max_tokens, limit), drafts.stop)
        slots = state.slot_range(np.where(is_active, self._query_start, stop), stop)
        num_rows = int((stop - drafts.start)[is_active].max())
        logits = self._decoder.forward(
            (np.where(is_active, self._content_start, drafts.stop), drafts.stop),
            slots,
            self._query_info(slots, drafts.stop, stop),
            num_query_keys=int(stop[is_active].max()) - 1,
            num_logits=num_rows,
        )
        # Logits come flush right, as slots do; row j of every text moves to index j. Texts with
        # fewer rows repeat their last one, which nothing reads.
        row = torch.arange(num_rows, device=logits.device)
        row = row + num_rows - self._column(stop - drafts.start)
        return logits[self._text_index, row.clamp(max=num_rows - 1)], stop

    def seen_tokens(
        self, drafts: _Drafts, shape: torch.Size
    ) -> Bool[Tensor, "b j vocabulary"] | None:
        """Return the tokens that count for the repetition penalty of each row.

        These are the committed tokens of the text and the drafts before the row.

        Args:
            drafts: the drafts that were fed.
            shape: [b, j, vocabulary].
        """
        committed = self._decoder.seen_tokens()
        if committed is None:
            return None
        _, num_rows, vocab_size = shape
        row = torch.arange(num_rows, device=committed.device).unsqueeze(1)
        draft = torch.arange(drafts.tokens.shape[1], device=committed.device)
        is_before = (draft < row) & (draft < self._column(drafts.count).unsqueeze(-1))
        token = F.one_hot(drafts.tokens, vocab_size)
        return committed | ((is_before.double() @ token.double()) > 0)

    def verify(
        self,
        drafts: _Drafts,
        logits: Tensor,
        probability: Float64[Tensor, "b j vocabulary"],
        stop: Int64[np.ndarray, " b"],
    ) -> Int64[np.ndarray, " b"]:
        """Accept drafts up to the first rejected one, draw the token after them, and commit all.

        Args:
            drafts: the drafts that were fed.
            logits: of all rows.
            probability: what tokens of all rows are drawn from.
            stop: slot after the last row of each text.

        Returns:
            The number of accepted drafts of each text.
        """
        last_row, last_draft = probability.shape[1] - 1, drafts.tokens.shape[1] - 1
        draft = torch.arange(last_draft + 1, device=logits.device)
        count = self._column(drafts.count)
        p = probability[self._text_index, draft.clamp(max=last_row), drafts.tokens]
        q = drafts.probability[self._text_index, draft, drafts.tokens]
        # One slot more than drafts: the token after them is drawn in this round too.
        slots = self._slots(drafts.start, last_draft + 2, stop)
        uniform = self._acceptance_uniform.gather(1, slots[:, :-1])
        # u < p / q without the division, so that q = 0 (an unused column) cannot divide by zero.
        is_accepted = (uniform * q < p) & (draft < count)
        num_accepted = is_accepted.long().cumprod(dim=1).sum(dim=1, keepdim=True)

        exact = probability[self._text_index, num_accepted.clamp(max=last_row)]
        q_row = drafts.probability[self._text_index, num_accepted.clamp(max=last_draft)]
        residual = (exact - q_row).clamp(min=0)
        is_rejected = num_accepted < count
        # Rounding can reject a draft although p equals q. Then the residual is empty, and the draw
        # is from p itself.
        has_residual = is_rejected & (residual.sum(dim=-1) > 0)
        final_slot = slots.gather(1, num_accepted)
        final_uniform = torch.where(
            is_rejected,
            self._replacement_uniform.gather(1, final_slot),
            self._token_uniform.gather(1, final_slot),
        )
        weights = torch.where(has_residual.unsqueeze(-1), residual, exact)
        final = sample_from(weights, final_uniform)
        self._commit(torch.cat((drafts.tokens, final), dim=1), final, num_accepted, slots, logits)
        return num_accepted.squeeze(1).cpu().numpy()

    def draft(
        self,
        drafts: _Drafts,
        probability: Float64[Tensor, "b j vocabulary"],
        num_accepted: Int64[np.ndarray, " b"],
        stop: Int64[np.ndarray, " b"],
    ) -> _Drafts:
        """Return the drafts for the next round.

        A text whose drafts were all accepted gets those that this round's draft rows predict. Any
        other text gets none: its draft rows saw a rejected draft.
        """
        has_next_draft = (num_accepted == drafts.count) & (drafts.stop < stop)
        # Of the rows drafts.stop..stop - 1 the first one was exact, and its token is committed.
        count = np.where(has_next_draft, stop - drafts.stop - 1, 0)
        width = max(int(count.max()), 1)
        row = self._column(drafts.count) + 1 + torch.arange(width, device=probability.device)
        draft_probability = probability[self._text_index, row.clamp(max=probability.shape[1] - 1)]
        slots = self._slots(drafts.stop + 1, width, drafts.stop + 1 + count)
        tokens = sample_from(draft_probability, self._token_uniform.gather(1, slots))
        # Written but not committed: the next round feeds them as content rows.
        self._state.tokens.scatter_(1, self._state.columns_of(slots), tokens)
        num_committed = np.minimum(drafts.start + num_accepted + 1, stop)
        self._query_start = num_committed
        # The last committed token was drawn after its round's forward pass, so its content row is
        # still to be fed; accepted drafts were fed already.
        self._content_start = np.minimum(drafts.start + num_accepted, num_committed)
        return _Drafts(num_committed, count, tokens, draft_probability)

    def _commit(
        self,
        drafted: Int64[Tensor, "b n"],
        final: Int64[Tensor, "b 1"],
        num_accepted: Int64[Tensor, "b 1"],
        slots: Int64[Tensor, "b n"],
        logits: Tensor,
    ) -> None:
        """Commit the accepted drafts and the token after them."""
        row = torch.arange(slots.shape[1], device=slots.device)
        tokens = torch.where(row < num_accepted, drafted, final)
        columns = self._state.columns_of(slots)
        columns = torch.where(row <= num_accepted, columns, self._state.num_positions)
        num_rows = min(len(row), logits.shape[1])
        columns, tokens = columns[:, :num_rows], tokens[:, :num_rows]
        self._decoder.commit(columns, tokens, log_probability(logits[:, :num_rows], tokens))

    def _query_info(
        self,
        slots: Int64[Tensor, "b Q"],
        exact_slot: Int64[np.ndarray, " b"],
        stop: Int64[np.ndarray, " b"],
    ) -> SlotInfo:
        """Return what a round's query rows need to know.

        Args:
            slots: slots of the rows.
            exact_slot: slot after the drafts. Rows after it are draft rows: they see the content
                rows that are fed so far, and in upper layers one another.
            stop: slot after the last row of each text.
        """
        info = self._state.slot_info_at(slots)
        num_fed = self._column(exact_slot)
        is_draft = (slots > num_fed) & (slots < self._state.num_positions)
        # A draft row's nearest visible token is found among the tokens of the slots fed so far.
        anchors = self._state.anchors(self._slot_of_position < num_fed)
        draft_anchor = anchors.gather(1, info.position.long())
        return info._replace(
            anchor=torch.where(is_draft, draft_anchor, info.anchor),
            query_stop=torch.where(is_draft, num_fed.int(), info.query_stop),
            # The query row of slot s is key s - 1.
            upper_stop=torch.where(is_draft, self._column(stop - 1).int(), info.upper_stop),
        )

    def _slots(
        self, start: Int64[np.ndarray, " b"], width: int, stop: Int64[np.ndarray, " b"]
    ) -> Int64[Tensor, "b w"]:
        """Return slots start, start + 1, ..., flush left; the padding slot from `stop` on."""
        slot = self._column(start) + torch.arange(width, device=self._text_index.device)
        return torch.where(slot < self._column(stop), slot, self._state.num_positions)

    def _column(self, values: Int64[np.ndarray, " b"]) -> Int64[Tensor, "b 1"]:
        return torch.as_tensor(values, device=self._text_index.device).unsqueeze(1)
