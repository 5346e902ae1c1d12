"""Dynamic decoding: every round scores all that is left and keeps the best tokens of it (A3).

Scoring rows ask for all remaining positions as one block, and tokens are drawn from the scores. Of
what is kept the query rows are computed again in the next round, as the block that they became. So
what is cached, and the log-probabilities that are reported, are those of teacher forcing under the
blocks that came about. The two distributions are one where query rows do not see their own block
(`upper_visibility: self`, or all layers two-stream), and in a text's last round; elsewhere they
differ by what a row learns from which other positions are asked.
"""

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from armd_scale.generation.decode_state import CONTENT_STOP, PADDING_SLOT, POSITION, UPPER_STOP
from armd_scale.generation.decoder import Decoder
from armd_scale.generation.sampling import log_probability, sample_tokens
from armd_scale.generation.strategy import ConfidenceSchedule, Rule
from armd_scale.order.rng import RngStream


def decode_by_confidence(decoder: Decoder, dynamic: ConfidenceSchedule) -> None:
    """Fills in what is unknown, `dynamic.size` tokens of every text a round."""
    rounds = _ConfidenceDecoder(decoder, dynamic)
    while rounds.is_active.any():
        left = rounds.slots_left()
        facts = rounds.facts_of_left(left)
        rounds.keep(left, facts, rounds.run(left, facts))


class _ConfidenceDecoder:
    """The parts of a round, and how far each text is."""

    def __init__(self, decoder: Decoder, dynamic: ConfidenceSchedule) -> None:
        self._decoder, self._dynamic = decoder, dynamic
        self._canvas = canvas = decoder.canvas
        self._random_scores = decoder.uniforms_for(RngStream.ORDER)
        self._filled = canvas.num_known
        # From here on query rows must be computed for good: known targets, then what was kept.
        self._kept_begin = canvas.num_given
        self._content_begin = 0 * canvas.num_given

    @property
    def is_active(self) -> np.ndarray:
        """Which texts have something left."""
        return (self._filled < self._canvas.lengths) & ~self._decoder.is_over

    def slots_left(self) -> Int64[Tensor, "b left"]:
        """The slots of all that is left, which positions take in text order for the time being."""
        end = np.where(self.is_active, self._canvas.lengths, self._filled)
        return self._canvas.slots(self._filled, end)

    def facts_of_left(self, left: Int64[Tensor, "b left"]) -> Int32[Tensor, "b left 6"]:
        """Facts of one block of all that is left."""
        canvas, known = self._canvas, self._canvas.known
        filled = self._column(self._filled)
        unknown_first = known.to(torch.int8).argsort(dim=1, stable=True)
        is_real = left < canvas.num_positions
        position = unknown_first.gather(1, torch.where(is_real, left - filled, 0))
        facts = torch.stack(
            (
                position,
                canvas.anchors(known).gather(1, position),
                position,  # no content row yet
                filled.expand_as(position),
                (self._column(canvas.num_given) - 1).expand_as(position),
                (self._column(canvas.lengths) - 1).expand_as(position),
            ),
            dim=-1,
        ).int()
        return torch.where(is_real.unsqueeze(-1), facts, facts.new_tensor(PADDING_SLOT))

    def run(
        self, left: Int64[Tensor, "b left"], facts: Int32[Tensor, "b left 6"]
    ) -> Float[Tensor, "b left vocabulary"]:
        """Feeds what was kept, as its block, and rows of all that is left; returns their logits."""
        canvas, is_active = self._canvas, self.is_active
        begin = np.where(is_active, self._kept_begin, self._filled)
        kept = canvas.slots(begin, self._filled)
        num_kept = kept.shape[1] if self._decoder.rounds else 0
        logits = self._decoder.forward(
            (np.where(is_active, self._content_begin, self._filled), self._filled),
            torch.cat((kept, left), dim=1),
            torch.cat((canvas.slot_info_at(kept), facts), dim=1),
            num_query_keys=int(canvas.lengths[is_active].max()) - 1,
            last=num_kept + left.shape[1],
        )
        if num_kept:
            places = canvas.places_of(kept)
            tokens = canvas.text.gather(1, places)
            logprob = log_probability(logits[:, :num_kept], tokens).double()
            canvas.logprob.scatter_(1, places, logprob)
        return logits[:, num_kept:]

    def keep(
        self,
        left: Int64[Tensor, "b left"],
        facts: Int32[Tensor, "b left 6"],
        logits: Float[Tensor, "b left vocabulary"],
    ) -> None:
        """Draws a token for each row, and makes the best of them known as a block."""
        decoder, canvas = self._decoder, self._canvas
        position = facts[..., POSITION].long()
        numbers = decoder.uniforms_for(RngStream.DYNAMIC, part=self._filled - canvas.num_known)
        tokens, logprob = sample_tokens(
            logits, numbers.gather(1, position), decoder.sampling, decoder.seen()
        )
        score = _score(self._dynamic.rule, logits, logprob, self._random_scores.gather(1, position))
        score = score.masked_fill(left == canvas.num_positions, -torch.inf)
        after = np.where(
            self.is_active,
            np.minimum(self._filled + self._dynamic.size, canvas.lengths),
            self._filled,
        )
        slots = canvas.slots(self._filled, after)
        best = score.argsort(dim=1, descending=True, stable=True)[:, : slots.shape[1]]
        best = best.sort(dim=1).values  # flush right, as slots are
        canvas.assign_slots(slots, self._block_of(facts, best, after), number=decoder.rounds)
        decoder.commit(canvas.places_of(slots), tokens.gather(1, best), logprob.gather(1, best))
        self._kept_begin = self._content_begin = self._filled
        self._filled = after

    def _block_of(
        self,
        facts: Int32[Tensor, "b left 6"],
        best: Int64[Tensor, "b k"],
        after: Int64[np.ndarray, " b"],
    ) -> Int32[Tensor, "b k 6"]:
        """Facts of the best rows as a block that ends before slot `after`."""
        block = facts.gather(1, best.unsqueeze(-1).expand(-1, -1, facts.shape[-1]))
        is_somebody = block[..., POSITION] > 0
        end = self._column(after).int()
        for column, stop in ((CONTENT_STOP, end), (UPPER_STOP, end - 1)):
            block[..., column] = torch.where(is_somebody, stop, block[..., column])
        return block

    def _column(self, values: Int64[np.ndarray, " b"]) -> Int64[Tensor, "b 1"]:
        return torch.from_numpy(values).to(self._decoder.device).unsqueeze(1)


def _score(
    rule: Rule,
    logits: Float[Tensor, "b left vocabulary"],
    logprob: Float[Tensor, "b left"],
    chance: Float[Tensor, "b left"],
) -> Float[Tensor, "b left"]:
    """How good each drawn token is, by the model's own distribution whatever the sampling."""
    if rule == "confidence":
        return logprob
    if rule == "random":
        return chance
    probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    if rule == "entropy":
        return -torch.special.entr(probability).sum(dim=-1)
    first, second = probability.topk(2).values.unbind(dim=-1)
    return first - second
