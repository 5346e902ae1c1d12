"""Rounds of decoding: one forward each, every row computed once.

`Decoder` runs rounds; `decode_blocks` is the plain way to use it, one round for each block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int32, Int64
from torch import Tensor

from armd_scale.generation.cache import SlotKVCache
from armd_scale.generation.decode_state import DecodeState
from armd_scale.generation.sampling import Sampling, sample_tokens
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.rng import RngStream, uniform_numbers


@dataclass(frozen=True, eq=False)
class RoundResult:
    """The tokens that became known in a round, a row for each text."""

    round: int
    """Number of the round, from 1."""
    positions: Int64[np.ndarray, "b k"]
    """Where they are; 0, which is always given, where a text got fewer than others."""
    tokens: Int64[np.ndarray, "b k"]

    @property
    def max_committed(self) -> int:
        """The most tokens that a text got."""
        return int((self.positions > 0).sum(axis=1).max(initial=0))


class Decoder:
    """A network with a canvas to fill in.

    Args:
        network: the model.
        outlines: of the texts.
        sampling: how tokens are drawn.
        numbers: of the samples, which their random numbers depend on.
        by_outline: whether every round asks for a block of the outlines.
        end: a token that ends texts: what comes after the first of them is not asked for.
        on_round: called after each round.
    """

    def __init__(
        self,
        network: ArmdModel,
        outlines: Sequence[GenerationSpec],
        *,
        sampling: Sampling,
        sample_ids: Sequence[int],
        by_outline: bool,
        end: int | None = None,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        self.network = network
        self.sampling = sampling
        self.numbers = list(sample_ids)
        self.device = next(network.parameters()).device
        self.canvas = DecodeState(outlines, device=self.device, follows_spec=by_outline)
        one_stream = network.can_skip_content_stream(self.canvas.layout)
        self._cache = SlotKVCache(
            num_slots=self.canvas.num_positions + 1,
            content_layers=0 if one_stream else network.num_two_stream,
        )
        self._end, self._on_round = end, on_round
        self.rounds = 0
        self.is_over: Bool[np.ndarray, " b"] = np.zeros(len(outlines), dtype=np.bool_)

    def uniforms_for(self, purpose: RngStream, part: Int[np.ndarray, " b"] | None = None) -> Tensor:
        """Random numbers [b, places] of every slot of every sample."""
        rows = np.zeros((len(self.numbers), self.canvas.num_positions + 1))
        for item, (row, number) in enumerate(zip(rows, self.numbers, strict=True)):
            row[:-1] = uniform_numbers(
                self.sampling.seed,
                number,
                len(row) - 1,
                purpose=purpose,
                part=0 if part is None else int(part[item]),
            )
        return torch.from_numpy(rows).to(self.device)

    def forward(
        self,
        content: tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]],
        slots: Int64[Tensor, "b Q"],
        facts: Int32[Tensor, "b Q 6"],
        *,
        num_query_keys: int,
        last: int,
    ) -> Float[Tensor, "b last vocabulary"]:
        """Runs a round.

        Args:
            content: first and end of the slots whose content rows are fed.
            slots: whose query rows are fed; nobody's, P, may be among them.
            facts: of those rows.
            num_query_keys: how many keys query rows may look at.
            last: number of last query rows to return the logits of.
        """
        content_slots = self.canvas.slots(*content)
        # Query row s is key s - 1; nobody's, P, goes to the last place of either kind.
        self._cache.begin_round(
            content_slots,
            slots - 1,
            num_content_keys=int(content[1].max()),
            num_query_keys=num_query_keys,
        )
        self.rounds += 1
        return self.network.logits(self.canvas.batch(content_slots, facts), self._cache, last=last)

    def seen(self) -> Bool[Tensor, "b 1 vocabulary"] | None:
        """Tokens that each text shows, where sampling wants to know."""
        needed = self.sampling.repetition_penalty != 1
        return self.canvas.seen(self.network.vocab_size) if needed else None

    def commit(
        self, places: Int64[Tensor, "b k"], tokens: Int64[Tensor, "b k"], logprob: Tensor
    ) -> None:
        """Makes a round's tokens known."""
        self.canvas.write(places, tokens, logprob, self.rounds)
        if self._on_round is not None:
            positions = torch.where(places < self.canvas.num_positions, places, 0)
            self._on_round(RoundResult(self.rounds, positions.cpu().numpy(), tokens.cpu().numpy()))
        if self._end is not None:
            self.is_over = self.canvas.finished(self._end)


def decode_blocks(decoder: Decoder) -> None:
    """Predicts every block of the outlines in one round, the texts' blocks side by side."""
    canvas = decoder.canvas
    bounds = canvas.bounds()
    uniform: Float64[Tensor, "b places"] = decoder.uniforms_for(RngStream.TOKEN)
    content_begin = np.zeros_like(canvas.num_given)
    query_begin = canvas.num_given
    for begin, end in zip(bounds.T[:-1], bounds.T[1:], strict=True):
        is_active = (begin < end) & ~decoder.is_over
        if not is_active.any():
            return
        asked = canvas.slots(np.where(is_active, begin, end), end)
        slots = canvas.slots(np.where(is_active, query_begin, end), end)
        logits = decoder.forward(
            (content_begin, np.where(is_active, begin, content_begin)),
            slots,
            canvas.slot_info_at(slots),
            num_query_keys=int(end[is_active].max()) - 1,
            last=asked.shape[1],
        )
        tokens, logprob = sample_tokens(
            logits, uniform.gather(1, asked), decoder.sampling, decoder.seen()
        )
        decoder.commit(canvas.places_of(asked), tokens, logprob)
        content_begin, query_begin = begin, end
