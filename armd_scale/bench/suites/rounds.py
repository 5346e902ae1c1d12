"""Where a round of decoding spends its time, and that only attention grows with the text."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.profiler import profile, record_function

from armd_scale.bench.operators import ATTENTION, PRODUCTS, new_profiler, operators_of, total
from armd_scale.bench.suites.decode import OPENING, loaded
from armd_scale.bench.table import Row
from armd_scale.bench.timing import wait
from armd_scale.generation import RoundResult, Strategy, generate_tokens
from armd_scale.model.armd_model import ArmdModel

ROUNDS_TIMED = 32
FORWARD = "forward pass of a round"
WRITE = "aten::scatter_"


def measure_rounds(
    checkpoint: str, streams: Sequence[int], after: Sequence[int], runs: int
) -> list[Row]:
    """`profile_rounds` on a checkpoint."""
    with loaded(checkpoint) as network:
        return profile_rounds(network, streams=streams, after=after, runs=runs)


def profile_rounds(
    network: ArmdModel,
    *,
    streams: Sequence[int] = (1, 4),
    after: Sequence[int] = (64, 256, 1024),
    runs: int = 5,
) -> list[Row]:
    """Milliseconds of a round once a text has so many generated tokens.

    Returns:
        For each number of streams and each of `after` the forward passes of a round and its wall
        time, the median of texts in turn. Of that, the operators of the forward pass, from one more
        text that is decoded under the profiler: matrix products, attention, and writing keys and
        values to the cache; `drawing`, by the clock, is all but the forward pass, that is, choosing
        tokens and keeping the canvas; `rest` is what is left: other operators of the forward pass,
        and Python.
    """
    places = [(number, tokens) for number in streams for tokens in after]
    timed: dict[tuple[int, int], list[_RoundTimer]] = {place: [] for place in places}
    for _ in range(runs):
        for number, tokens in places:
            watch = _RoundTimer(first=max(tokens // number, 1))
            _decode(network, tokens, number, watch)
            timed[number, tokens].append(watch)
    return [_row(network, number, tokens, watches) for (number, tokens), watches in timed.items()]


def _row(network: ArmdModel, streams: int, tokens: int, timed: Sequence["_RoundTimer"]) -> Row:
    device = next(network.parameters()).device
    profiler = new_profiler(device)
    _decode(network, tokens, streams, _RoundTimer(first=timed[0].first, profiler=profiler))
    operators = operators_of(profiler, runs=ROUNDS_TIMED, device=device, inside=FORWARD)
    round_milliseconds = statistics.median(watch.milliseconds for watch in timed)
    parts = {
        "matrix products ms": total(operators, PRODUCTS),
        "attention ms": total(operators, ATTENTION),
        "cache writes ms": sum((o.milliseconds for o in operators if o.name == WRITE), 0.0),
        "drawing ms": statistics.median(watch.drawing_milliseconds for watch in timed),
    }
    return {
        "streams": streams,
        "tokens": tokens,
        "forwards a round": timed[0].forwards_per_round,
        "round ms": round_milliseconds,
        **parts,
        "rest ms": round_milliseconds - sum(parts.values()),
    }


class _RoundTimer:
    """Watches the ROUNDS_TIMED rounds that follow round `first`: by the clock, or by a profiler."""

    def __init__(self, *, first: int, profiler: profile | None = None) -> None:
        self.first, self._profiler = first, profiler
        self._ends: list[float] = []
        self._forwards: list[float] = []

    def landed(self, landed: RoundResult) -> None:
        """Is called after each round."""
        if not 0 <= landed.round - self.first <= ROUNDS_TIMED:
            return
        self._ends.append(time.perf_counter())
        if self._profiler is not None and landed.round == self.first:
            self._profiler.start()
        if self._profiler is not None and self._is_over:
            self._profiler.stop()

    @contextmanager
    def of(self, network: ArmdModel) -> Iterator[None]:
        """Has the network's forward passes watched too."""
        forward = network.logits

        def watched(*arguments: Any, **options: Any) -> Tensor:
            if not self._ends or self._is_over:
                return forward(*arguments, **options)
            if self._profiler is not None:
                with record_function(FORWARD):
                    return forward(*arguments, **options)
            began = time.perf_counter()
            logits = forward(*arguments, **options)
            wait()
            self._forwards.append(time.perf_counter() - began)
            return logits

        vars(network)["logits"] = watched
        try:
            yield
        finally:
            del vars(network)["logits"]

    @property
    def _is_over(self) -> bool:
        return len(self._ends) > ROUNDS_TIMED

    @property
    def forwards_per_round(self) -> float:
        return len(self._forwards) / ROUNDS_TIMED

    @property
    def milliseconds(self) -> float:
        """Median time of a round."""
        return 1e3 * statistics.median(self._times())

    @property
    def drawing_milliseconds(self) -> float:
        """Median time of a round outside its forward pass."""
        assert len(self._forwards) == ROUNDS_TIMED, "a round is one forward pass"
        pairs = zip(self._times(), self._forwards, strict=True)
        return 1e3 * statistics.median(whole - forward for whole, forward in pairs)

    def _times(self) -> list[float]:
        return [end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False)]


def _decode(network: ArmdModel, tokens: int, streams: int, rounds: _RoundTimer) -> None:
    # The heads of streams take rounds of their own, and the rounds timed some more tokens.
    num_tokens = tokens + streams * (streams + ROUNDS_TIMED + 1)
    strategy = Strategy(streams=streams)
    with rounds.of(network):
        generate_tokens(
            network, [OPENING], num_tokens=num_tokens, strategy=strategy, on_round=rounds.landed
        )
