"""Time of one decoding round by operator group; only attention should grow with the text."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.profiler import profile, record_function

from armd_scale.bench.profiler import ATTENTION, MATMUL, new_profiler, operators_of, total
from armd_scale.bench.suites.decode import PROMPT, load_for_decoding
from armd_scale.bench.table import Row
from armd_scale.bench.timing import synchronize
from armd_scale.generation import RoundResult, Strategy, generate_tokens
from armd_scale.model.armd_model import ArmdModel

NUM_ROUNDS = 32
FORWARD_RANGE = "forward pass of a round"
CACHE_WRITE = "aten::scatter_"


def measure_rounds(
    checkpoint: str, streams: Sequence[int], context: Sequence[int], repeats: int
) -> list[Row]:
    """Run `profile_rounds` on a checkpoint."""
    with load_for_decoding(checkpoint) as network:
        return profile_rounds(network, streams=streams, context=context, repeats=repeats)


def profile_rounds(
    network: ArmdModel,
    *,
    streams: Sequence[int] = (1, 4),
    context: Sequence[int] = (64, 256, 1024),
    repeats: int = 5,
) -> list[Row]:
    """Measure the milliseconds of a round after a text has a number of generated tokens.

    Args:
        network: the model.
        streams: numbers of streams.
        context: numbers of generated tokens before the timed rounds.
        repeats: texts of each case, in turn.

    Returns:
        For each number of streams and each context the forward passes of a round and its median
        wall time. Of that, from one more text under the profiler, the operators of the forward
        pass: matmul, attention, and cache writes (keys and values). `sampling`, by the clock, is
        everything outside the forward pass: choosing tokens and updating the decode state. `rest`
        is what is left: other operators of the forward pass, and Python.
    """
    cases = [(num_streams, tokens) for num_streams in streams for tokens in context]
    timers: dict[tuple[int, int], list[_RoundTimer]] = {case: [] for case in cases}
    for _ in range(repeats):
        for num_streams, tokens in cases:
            # A round commits a token of each stream, but each stream's first one takes a round of
            # its own: the text has S (S - 1) tokens fewer when the clock starts, 12 with 4 streams.
            timer = _RoundTimer(first=max(tokens // num_streams, 1))
            _decode(network, tokens, num_streams, timer)
            timers[num_streams, tokens].append(timer)
    return [_row(network, *case, case_timers) for case, case_timers in timers.items()]


def _row(network: ArmdModel, streams: int, tokens: int, timers: Sequence["_RoundTimer"]) -> Row:
    device = next(network.parameters()).device
    # The profiler slows Python down, so profiled rounds are not among the timed ones.
    profiler = new_profiler(device)
    _decode(network, tokens, streams, _RoundTimer(first=timers[0].first, profiler=profiler))
    operators = operators_of(profiler, repeats=NUM_ROUNDS, device=device, inside=FORWARD_RANGE)
    round_milliseconds = statistics.median(timer.milliseconds for timer in timers)
    # Scatters of new keys and values into the cache; the profiler's groups count them as `other`.
    cache_writes = (item.milliseconds for item in operators if item.name == CACHE_WRITE)
    parts = {
        "matmul ms": total(operators, MATMUL),
        "attention ms": total(operators, ATTENTION),
        "cache writes ms": sum(cache_writes, 0.0),
        "sampling ms": statistics.median(timer.sampling_milliseconds for timer in timers),
    }
    return {
        "streams": streams,
        "tokens": tokens,
        "forwards per round": timers[0].forwards_per_round,
        "round ms": round_milliseconds,
        **parts,
        "rest ms": round_milliseconds - sum(parts.values()),
    }


class _RoundTimer:
    """Times or profiles the NUM_ROUNDS rounds that follow round `first` of a text."""

    def __init__(self, *, first: int, profiler: profile | None = None) -> None:
        self.first, self._profiler = first, profiler
        self._round_ends: list[float] = []
        self._forward_seconds: list[float] = []

    def on_round(self, result: RoundResult) -> None:
        """Record the end of a round; `generate` calls this after each one."""
        # Round `first` is only the start of the clock: NUM_ROUNDS rounds need one more end.
        if not 0 <= result.round - self.first <= NUM_ROUNDS:
            return
        # No synchronize: the tokens in `result` have been copied to the host, which waits for them.
        self._round_ends.append(time.perf_counter())
        if self._profiler is not None and result.round == self.first:
            self._profiler.start()
        if self._profiler is not None and self._is_over:
            self._profiler.stop()

    @contextmanager
    def watch_forward(self, network: ArmdModel) -> Iterator[None]:
        """Time (or profile) the forward passes of the network too, inside this context."""
        forward = network.logits

        def timed_forward(*args: Any, **kwargs: Any) -> Tensor:
            if not self._round_ends or self._is_over:
                return forward(*args, **kwargs)
            if self._profiler is not None:
                with record_function(FORWARD_RANGE):
                    return forward(*args, **kwargs)
            start = time.perf_counter()
            logits = forward(*args, **kwargs)
            # A GPU only queues the forward pass; without this its time would count as sampling.
            synchronize()
            self._forward_seconds.append(time.perf_counter() - start)
            return logits

        # An instance attribute hides the method; nn.Module.__setattr__ is not needed for that.
        vars(network)["logits"] = timed_forward
        try:
            yield
        finally:
            del vars(network)["logits"]

    @property
    def _is_over(self) -> bool:
        return len(self._round_ends) > NUM_ROUNDS

    @property
    def forwards_per_round(self) -> float:
        return len(self._forward_seconds) / NUM_ROUNDS

    @property
    def milliseconds(self) -> float:
        """Median time of a round."""
        return 1e3 * statistics.median(self._round_seconds())

    @property
    def sampling_milliseconds(self) -> float:
        """Median time of a round outside its forward pass."""
        assert len(self._forward_seconds) == NUM_ROUNDS, "a round is one forward pass"
        pairs = zip(self._round_seconds(), self._forward_seconds, strict=True)
        return 1e3 * statistics.median(seconds - forward for seconds, forward in pairs)

    def _round_seconds(self) -> list[float]:
        return [stop - start for start, stop in pairwise(self._round_ends)]


def _decode(network: ArmdModel, tokens: int, streams: int, timer: _RoundTimer) -> None:
    # The first token of each stream takes a round of its own, and the timed rounds need tokens too.
    num_tokens = tokens + streams * (streams + NUM_ROUNDS + 1)
    strategy = Strategy(streams=streams)
    with timer.watch_forward(network):
        generate_tokens(
            network, [PROMPT], num_tokens=num_tokens, strategy=strategy, on_round=timer.on_round
        )
