"""Decoding round by round: one forward pass each, and every row is computed once.

`Decoder` runs rounds; `decode_blocks` is the plain way to use it, one round for each block.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from armd_scale.generation.cache import SlotKVCache
from armd_scale.generation.decode_state import DecodeState, SlotInfo
from armd_scale.generation.output_rules import NO_RULES, EndFinder, OutputRules
from armd_scale.generation.result import RoundResult
from armd_scale.generation.sampling import Sampling, sample_tokens
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.rng import RngStream, uniform_numbers


class Decoder:
    """A network, the texts that it completes, and the cache of all earlier rounds.

    Args:
        network: the model.
        specs: the texts.
        sampling: how tokens are drawn.
        sample_ids: number of each sample, which keys its random numbers.
        follows_spec: whether every round predicts a block of the specs.
        rules: which tokens may be generated, and what ends a text early.
        on_round: called after each round.
    """

    def __init__(
        self,
        network: ArmdModel,
        specs: Sequence[GenerationSpec],
        *,
        sampling: Sampling,
        sample_ids: Sequence[int],
        follows_spec: bool,
        rules: OutputRules = NO_RULES,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        self.network = network
        self.sampling = sampling
        self.sample_ids = list(sample_ids)
        self.device = next(network.parameters()).device
        self.state = DecodeState(specs, device=self.device, follows_spec=follows_spec)
        # Where the content stream is skipped, all layers attend among query rows, so none of them
        # stores content rows.
        is_one_stream = network.can_skip_content_stream(self.state.template)
        self._cache = SlotKVCache(
            num_slots=self.state.num_positions + 1,
            content_layers=0 if is_one_stream else network.num_two_stream,
        )
        self._on_round = on_round
        allowed = rules.allowed_ids(network.vocab_size)
        self.allowed: Bool[Tensor, " vocabulary"] | None = (
            None if allowed is None else torch.as_tensor(allowed, device=self.device)
        )
        """Which token ids may be drawn; None: all."""
        self._end_finder = EndFinder(rules, [int(spec.known.argmin()) for spec in specs])
        self.num_rounds = 0
        self.is_finished: Bool[np.ndarray, " b"] = np.zeros(len(specs), dtype=np.bool_)

    @property
    def ends(self) -> list[int | None]:
        """Number of tokens of each text that has ended early; None for the others."""
        return self._end_finder.ends

    def end_now(self) -> None:
        """End each text that has not ended before its first unknown token."""
        self._end_finder.end_at_unknown(self.state.known.cpu().numpy(), self.state.lengths)

    def uniforms_for(self, stream: RngStream, part: Int[np.ndarray, " b"] | None = None) -> Tensor:
        """Return uniform random numbers in [0, 1), one for each slot of each sample, [b, P + 1].

        Args:
            stream: what they are used for.
            part: for each sample, which sequence of that stream; 0 by default.
        """
        rows = np.zeros((len(self.sample_ids), self.state.num_positions + 1))
        for index, (row, sample_id) in enumerate(zip(rows, self.sample_ids, strict=True)):
            row[:-1] = uniform_numbers(
                self.sampling.seed,
                sample_id,
                len(row) - 1,
                purpose=stream,
                part=0 if part is None else int(part[index]),
            )
        return torch.as_tensor(rows, device=self.device)

    def forward(
        self,
        content_range: tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]],
        query_slots: Int64[Tensor, "b Q"],
        queries: SlotInfo,
        *,
        num_query_keys: int,
        num_logits: int,
    ) -> Float[Tensor, "b num_logits vocabulary"]:
        """Run one round.

        Args:
            content_range: start and stop of the slots whose content rows are fed.
            query_slots: slots whose query rows are fed; P is padding.
            queries: what these rows need to know, [b, Q].
            num_query_keys: number of cached query rows that query rows may attend to.
            num_logits: return the logits of the last so many query rows.
        """
        content_slots = self.state.slot_range(*content_range)
        # The query row of slot s is key s - 1. So key P - 1 is free for the padding slot P, as the
        # last entry of the content keys is.
        self._cache.begin_round(
            content_slots,
            query_slots - 1,
            num_content_keys=int(content_range[1].max()),
            num_query_keys=num_query_keys,
        )
        self.num_rounds += 1
        batch = self.state.make_batch(content_slots, queries)
        return self.network.logits(batch, self._cache, last=num_logits)

    def seen_tokens(self) -> Bool[Tensor, "b 1 vocabulary"] | None:
        """Return which tokens occur in each text so far; None if the sampling does not use it."""
        if self.sampling.repetition_penalty == 1:
            return None
        return self.state.seen_tokens(self.network.vocab_size)

    def sample(
        self, logits: Float[Tensor, "b k vocabulary"], uniform: Float64[Tensor, "b k"]
    ) -> tuple[Int64[Tensor, "b k"], Float[Tensor, "b k"]]:
        """Draw a token for each row of logits; see `sample_tokens`."""
        return sample_tokens(logits, uniform, self.sampling, self.seen_tokens(), self.allowed)

    def commit(
        self, columns: Int64[Tensor, "b k"], tokens: Int64[Tensor, "b k"], logprob: Tensor
    ) -> None:
        """Record the tokens of a round, report them, and find out which texts are finished."""
        self.state.commit(columns, tokens, logprob, self.num_rounds)
        if self._on_round is not None:
            positions = torch.where(columns < self.state.num_positions, columns, 0)
            self._on_round(
                RoundResult(self.num_rounds, positions.cpu().numpy(), tokens.cpu().numpy())
            )
        # Only on request: reading the flags back waits for the device.
        if self._end_finder.is_needed:
            texts = self.state.tokens[:, :-1].cpu().numpy()
            self.is_finished = self._end_finder.find(texts, self.state.known.cpu().numpy())


def decode_blocks(decoder: Decoder) -> None:
    """Predict the blocks of the specs one round each; block i of all texts shares a round."""
    state = decoder.state
    bounds = state.block_bounds()
    uniform: Float64[Tensor, "b columns"] = decoder.uniforms_for(RngStream.TOKEN)
    content_start = np.zeros_like(state.num_given)
    query_start = state.num_given
    for index in range(bounds.shape[1] - 1):
        start, stop = bounds[:, index], bounds[:, index + 1]
        is_active = (start < stop) & ~decoder.is_finished
        if not is_active.any():
            return
        # The first round also feeds the query rows of known targets (the prompt), whose keys the
        # upper layers need. Only the rows of the block itself are sampled from.
        block_slots = state.slot_range(np.where(is_active, start, stop), stop)
        query_slots = state.slot_range(np.where(is_active, query_start, stop), stop)
        logits = decoder.forward(
            (content_start, np.where(is_active, start, content_start)),
            query_slots,
            state.slot_info_at(query_slots),
            num_query_keys=int(stop[is_active].max()) - 1,
            num_logits=block_slots.shape[1],
        )
        tokens, logprob = decoder.sample(logits, uniform.gather(1, block_slots))
        decoder.commit(state.columns_of(block_slots), tokens, logprob)
        # The tokens of this block become content rows in the next round.
        content_start, query_start = start, stop
