"""All samples of a run, by number.

Sample k is: a source (`blend`), a window of it (`window_of`), the order of k's step (`order_at`)
and blocks (`draw_blocks`). None of these remembers anything, so a sample is the same whoever asks
for it, and when: on any number of processes, in a longer run, after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from armd_scale.config.schema import DataConfig
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.data.blending import blend
from armd_scale.data.shuffle import shuffled_index
from armd_scale.data.windows import TokenWindows, Windows
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, eq=False)
class Sample:
    """One window of P = N + 1 tokens with its drawn blocks."""

    tokens: Int64[np.ndarray, " P"]
    block: Int32[np.ndarray, " P"]
    lengths: tuple[int, ...]
    """Lengths of its documents, in tokens."""
    index: int
    """Number of the sample in its run."""


def draw_sample(
    windows: Windows, window: int, *, order: OrderPolicy, seed: int, index: int
) -> Sample:
    """A window under an order, as sample `index`."""
    lengths = windows.lengths(window)
    block = sample_blocks(order, seed=seed, sample_index=index, lengths=lengths)
    return Sample(windows.window(window), block, lengths, index)


def collate(samples: Sequence[Sample]) -> ArmdBatch:
    """The micro-batch of some samples."""
    return make_batch(
        np.stack([sample.tokens for sample in samples]),
        np.stack([sample.block for sample in samples]),
        lengths=[sample.lengths for sample in samples],
        sample_index=np.array([sample.index for sample in samples]),
    )


class SampleStream:
    """All samples of a run, by number.

    Args:
        sources: windows of each source.
        weights: their shares of the samples.
        order: the recipe's order.
        seed: the run's seed, of both the order of windows and the drawn blocks.
    """

    def __init__(
        self,
        sources: Sequence[TokenWindows],
        weights: Sequence[float],
        *,
        order: OrderPolicy,
        seed: int,
    ) -> None:
        self._sources, self._weights = tuple(sources), tuple(weights)
        self._order, self._seed = order, seed

    def sample(self, index: int, *, step: int) -> Sample:
        """Sample `index` of the run, ordered as optimizer step `step` asks.

        Raises:
            ShardError: a token that the model does not know.
        """
        source_index, sample_in_source = blend(self._weights, index)
        source = self._sources[source_index]
        epoch, sample_in_source = divmod(sample_in_source, source.num_windows)
        window = shuffled_index(self._seed, epoch, sample_in_source, source.num_windows)
        order = self._order.at_step(step)
        return draw_sample(source, window, order=order, seed=self._seed, index=index)

    def reopen(self) -> None:
        """Opens all files anew, as a forked process should."""
        for source in self._sources:
            source.reopen()


def open_sample_stream(
    data: DataConfig, *, order: OrderPolicy, seed: int, vocab_size: int | None = None
) -> SampleStream:
    """The training samples of a recipe.

    Raises:
        ShardError: a source that is missing, damaged or shorter than a window.
    """
    if isinstance(data.train, str):
        shares = [(data.train, 1.0)]
    else:
        shares = [(part.path, part.weight) for part in data.train]
    sources = [
        TokenWindows(path, data.seq_length, packing=data.packing, vocab_size=vocab_size)
        for path, _ in shares
    ]
    return SampleStream(sources, [weight for _, weight in shares], order=order, seed=seed)
