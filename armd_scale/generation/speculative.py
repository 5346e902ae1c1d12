"""Lossless decoding: several tokens a round, distributed exactly as one-at-a-time decoding has it.

Speculative sampling (Leviathan et al., arXiv 2211.17192; in any order: ASSD, arXiv 2504.20456) with
the network as its own draft. A round of k tokens has one query row that is exact, the one of the
next slot, and k - 1 that are drafts: each predicts a later slot from what is known now. The next
round feeds the drafted tokens and, for each of their slots, the exact row, which sees the drafts
before it. With p the exact probabilities and q those that a draft d was drawn by, d is accepted
with probability min(1, p(d) / q(d)), and the first that is not is replaced by a draw from
(p - q)+: either way the token is distributed as p. The same forward holds the exact row of the slot
after all drafts and k - 1 new drafts, for the case that all are accepted. So every round settles at
least one token, at most k, and a round after a replacement starts without drafts.

Rows of drafts that were not accepted stay in the cache where nobody looks, until the rows that
belong there are written over them. Every slot's random numbers are its own: what is decided about a
slot depends on earlier slots' numbers alone, so those of a draft that was dropped are still fresh.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor

from armd_scale.generation.decode_state import ANCHOR, POSITION, QUERY_STOP, UPPER_STOP
from armd_scale.generation.decoder import Decoder
from armd_scale.generation.sampling import log_probability, sample_from, token_probabilities
from armd_scale.order.rng import RngStream


@dataclass(frozen=True)
class SpeculativeStats:
    """How drafts fared."""

    drafted: int
    """Drafts that a round verified, those after a rejected one included."""
    accepted: int


@dataclass
class _Drafts:
    """Tokens drafted for the slots from `begin` on, a row for each text."""

    begin: Int64[np.ndarray, " b"]
    """First slot that is not settled."""
    count: Int64[np.ndarray, " b"]
    """Drafts of each text, of at least one column."""
    tokens: Int64[Tensor, "b m"]
    probability: Float64[Tensor, "b m vocabulary"]
    """What each was drawn by."""

    @property
    def end(self) -> Int64[np.ndarray, " b"]:
        """The slots after the drafts, whose rows are exact if all are accepted."""
        return self.begin + self.count


def decode_speculative(decoder: Decoder, size: int) -> SpeculativeStats:
    """Fills in what is unknown of outlines of one-token blocks, up to `size` tokens a round."""
    canvas, rounds = decoder.canvas, _SpeculativeDecoder(decoder, size)
    none = torch.zeros(len(canvas.lengths), 1, dtype=torch.int64, device=decoder.device)
    impossible = none.new_zeros(len(none), 1, decoder.network.vocab_size, dtype=torch.float64)
    drafts = _Drafts(canvas.num_known, 0 * canvas.num_known, none, impossible)
    drafted = accepted = 0
    while ((drafts.begin < canvas.lengths) & ~decoder.is_over).any():
        logits, end = rounds.run(drafts)
        probability = token_probabilities(logits, decoder.sampling, rounds.seen(drafts, logits))
        num_accepted = rounds.verify(drafts, logits, probability, end)
        drafted, accepted = drafted + drafts.count.sum(), accepted + num_accepted.sum()
        drafts = rounds.draft(drafts, probability, num_accepted, end)
    return SpeculativeStats(int(drafted), int(accepted))


class _SpeculativeDecoder:
    """The parts of a round. Rows j = 0, 1, ... are those of the slots from `drafts.begin` on."""

    def __init__(self, decoder: Decoder, size: int) -> None:
        self._decoder, self._size = decoder, size
        self._canvas = decoder.canvas
        self._slot_at = self._canvas.facts[:, :-1, POSITION].argsort(dim=1)
        self._for_token, self._for_acceptance, self._for_replacement = (
            decoder.uniforms_for(purpose)
            for purpose in (RngStream.TOKEN, RngStream.ACCEPTANCE, RngStream.REPLACEMENT)
        )
        self._items = torch.arange(len(self._slot_at), device=decoder.device).unsqueeze(1)
        self._query_begin = self._canvas.num_given
        self._content_begin = 0 * self._canvas.num_given

    def run(self, drafts: _Drafts) -> tuple[Tensor, Int64[np.ndarray, " b"]]:
        """Feeds drafts, their exact rows, the exact row after them and rows for new drafts.

        Returns:
            Logits [b, j, vocabulary], and the end of the slots that each text has them for.
        """
        canvas = self._canvas
        limit = np.where(self._decoder.is_over, drafts.begin, canvas.lengths)
        is_active = drafts.begin < limit
        end = np.where(is_active, np.minimum(drafts.end + self._size, limit), drafts.end)
        slots = canvas.slots(np.where(is_active, self._query_begin, end), end)
        num_rows = int((end - drafts.begin)[is_active].max())
        logits = self._decoder.forward(
            (np.where(is_active, self._content_begin, drafts.end), drafts.end),
            slots,
            self._facts(slots, drafts.end, end),
            num_query_keys=int(end[is_active].max()) - 1,
            last=num_rows,
        )
        # They come flush right.
        row = torch.arange(num_rows, device=logits.device)
        row = row + num_rows - self._column(end - drafts.begin)
        return logits[self._items, row.clamp(max=num_rows - 1)], end

    def seen(self, drafts: _Drafts, logits: Tensor) -> Bool[Tensor, "b j vocabulary"] | None:
        """What rows may see for the repetition penalty: settled tokens and the drafts before."""
        settled = self._decoder.seen()
        if settled is None:
            return None
        row = torch.arange(logits.shape[1], device=logits.device).unsqueeze(1)
        draft = torch.arange(drafts.tokens.shape[1], device=logits.device)
        is_before = (draft < row) & (draft < self._column(drafts.count).unsqueeze(-1))
        token = F.one_hot(drafts.tokens, logits.shape[-1])
        return settled | ((is_before.double() @ token.double()) > 0)

    def verify(
        self, drafts: _Drafts, logits: Tensor, probability: Tensor, end: Int64[np.ndarray, " b"]
    ) -> Int64[np.ndarray, " b"]:
        """Accepts drafts up to the first that is replaced, and draws the token after them.

        Returns:
            How many were accepted.
        """
        last_row, last_draft = probability.shape[1] - 1, drafts.tokens.shape[1] - 1
        draft = torch.arange(last_draft + 1, device=logits.device)
        count = self._column(drafts.count)
        p = probability[self._items, draft.clamp(max=last_row), drafts.tokens]
        q = drafts.probability[self._items, draft, drafts.tokens]
        slots = self._slots(drafts.begin, last_draft + 2, end)
        chance = self._for_acceptance.gather(1, slots[:, :-1])
        wins = (chance * q < p) & (draft < count)
        num_accepted = wins.long().cumprod(dim=1).sum(dim=1, keepdim=True)
        exact = probability[self._items, num_accepted.clamp(max=last_row)]
        residual = exact - drafts.probability[self._items, num_accepted.clamp(max=last_draft)]
        residual = residual.clamp(min=0)
        is_replaced = num_accepted < count
        # Rounding can reject a draft where p and q are one, and leaves no excess.
        has_excess = is_replaced & (residual.sum(dim=-1) > 0)
        at = slots.gather(1, num_accepted)
        uniform = torch.where(
            is_replaced, self._for_replacement.gather(1, at), self._for_token.gather(1, at)
        )
        final = sample_from(torch.where(has_excess.unsqueeze(-1), residual, exact), uniform)
        self._land(torch.cat((drafts.tokens, final), dim=1), final, num_accepted, slots, logits)
        return num_accepted.squeeze(1).cpu().numpy()

    def draft(
        self,
        drafts: _Drafts,
        probability: Tensor,
        num_accepted: Int64[np.ndarray, " b"],
        end: Int64[np.ndarray, " b"],
    ) -> _Drafts:
        """The drafts that go with what was settled: new ones where all were accepted."""
        has_next_draft = (num_accepted == drafts.count) & (drafts.end < end)
        count = np.where(has_next_draft, end - drafts.end - 1, 0)
        width = max(int(count.max()), 1)
        row = self._column(drafts.count) + 1 + torch.arange(width, device=probability.device)
        chosen = probability[self._items, row.clamp(max=probability.shape[1] - 1)]
        slots = self._slots(drafts.end + 1, width, drafts.end + 1 + count)
        tokens = sample_from(chosen, self._for_token.gather(1, slots))
        self._canvas.text.scatter_(1, self._canvas.places_of(slots), tokens)
        settled = np.minimum(drafts.begin + num_accepted + 1, end)
        self._query_begin = settled
        self._content_begin = np.minimum(drafts.begin + num_accepted, settled)
        return _Drafts(settled, count, tokens, chosen)

    def _land(
        self, drafted: Tensor, final: Tensor, num_accepted: Tensor, slots: Tensor, logits: Tensor
    ) -> None:
        """Makes known what was settled."""
        row = torch.arange(slots.shape[1], device=slots.device)
        tokens = torch.where(row < num_accepted, drafted, final)
        places = self._canvas.places_of(slots)
        places = torch.where(row <= num_accepted, places, self._canvas.num_positions)
        num_rows = min(len(row), logits.shape[1])
        places, tokens = places[:, :num_rows], tokens[:, :num_rows]
        self._decoder.commit(places, tokens, log_probability(logits[:, :num_rows], tokens))

    def _facts(
        self,
        slots: Int64[Tensor, "b Q"],
        exact: Int64[np.ndarray, " b"],
        end: Int64[np.ndarray, " b"],
    ) -> Int32[Tensor, "b Q 6"]:
        """Of a round's query rows: those after slot `exact` see what is fed, and one another."""
        facts = self._canvas.slot_info_at(slots)
        fed = self._column(exact)
        is_draft = (slots > fed) & (slots < self._canvas.num_positions)
        anchors = self._canvas.anchors(self._slot_at < fed)
        changed = {
            ANCHOR: anchors.gather(1, facts[..., POSITION].long()),
            QUERY_STOP: fed,
            UPPER_STOP: self._column(end - 1),
        }
        for column, value in changed.items():
            facts[..., column] = torch.where(is_draft, value, facts[..., column])
        return facts

    def _slots(
        self, begin: Int64[np.ndarray, " b"], width: int, end: Int64[np.ndarray, " b"]
    ) -> Int64[Tensor, "b w"]:
        """Slots begin, begin + 1, ...; nobody's from `end` on."""
        slot = self._column(begin) + torch.arange(width, device=self._items.device)
        return torch.where(slot < self._column(end), slot, self._canvas.num_positions)

    def _column(self, values: Int64[np.ndarray, " b"]) -> Int64[Tensor, "b 1"]:
        return torch.from_numpy(values).to(self._items.device).unsqueeze(1)
