"""All samples of a run, by index.

Sample k is a source (`blend`), a window of it (`shuffled_index`), the order policy of k's step
(`OrderPolicy.at_step`) and generation blocks (`sample_blocks`). Each of these is a pure function,
so a sample is the same whoever asks for it and when: on any number of processes, in a longer run,
after a resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from armd_scale.config.schema import DataConfig
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.data.blending import blend
from armd_scale.data.shuffle import shuffled_index
from armd_scale.data.windows import Windows, open_windows
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, eq=False)
class Sample:
    """One window of P = N + 1 tokens with its drawn blocks."""

    tokens: Int64[np.ndarray, " P"]
    block: Int32[np.ndarray, " P"]
    """Generation block of each token; 0: given."""
    lengths: tuple[int, ...]
    """Lengths of the window's documents, in tokens."""
    index: int
    """Index of the sample in the run."""


def draw_sample(
    windows: Windows, window: int, *, order: OrderPolicy, seed: int, index: int
) -> Sample:
    """Draw the blocks of a window.

    Args:
        windows: where the window is read from.
        window: index of the window.
        order: the order policy.
        seed: seed of the draw.
        index: index of the sample in the run, which with the seed decides the draw.
    """
    lengths = windows.lengths(window)
    block = sample_blocks(order, seed=seed, sample_index=index, lengths=lengths)
    return Sample(windows.window(window), block, lengths, index)


def collate(samples: Sequence[Sample]) -> ArmdBatch:
    """Make the micro-batch of some samples."""
    return make_batch(
        np.stack([sample.tokens for sample in samples]),
        np.stack([sample.block for sample in samples]),
        lengths=[sample.lengths for sample in samples],
        sample_index=np.array([sample.index for sample in samples]),
    )


class SampleStream:
    """All samples of a run, by index.

    Args:
        sources: the windows of each source.
        weights: shares of the sources in the samples.
        order: the order section of the recipe.
        seed: the run's seed, for the order of the windows and for the blocks.
    """

    def __init__(
        self,
        sources: Sequence[Windows],
        weights: Sequence[float],
        *,
        order: OrderPolicy,
        seed: int,
    ) -> None:
        self._sources, self._weights = tuple(sources), tuple(weights)
        self._order, self._seed = order, seed

    def sample(self, index: int, *, step: int) -> Sample:
        """Return sample `index` of the run, drawn under the order policy of optimizer step `step`.

        Raises:
            ShardError: a token is outside the model's vocabulary.
        """
        source_index, sample_in_source = blend(self._weights, index)
        source = self._sources[source_index]
        # Every source has epochs of its own: a small one is repeated while a large one is not.
        epoch, position = divmod(sample_in_source, source.num_windows)
        window = shuffled_index(self._seed, epoch, position, source.num_windows)
        order = self._order.at_step(step)
        # The draw uses the index in the run, not the window, so that each epoch draws new blocks.
        return draw_sample(source, window, order=order, seed=self._seed, index=index)


def open_sample_stream(
    data: DataConfig, *, order: OrderPolicy, seed: int, vocab_size: int | None = None
) -> SampleStream:
    """Open the training samples of a recipe.

    Args:
        data: the data section of the recipe.
        order: the order section of the recipe.
        seed: the run's seed.
        vocab_size: vocabulary size of the model, checked in every window; None: not checked.

    Raises:
        ShardError: a source is missing, damaged or shorter than a window.
    """
    sources = [
        open_windows(source.prefixes, data.seq_length, packing=data.packing, vocab_size=vocab_size)
        for source in data.sources
    ]
    weights = [source.weight for source in data.sources]
    return SampleStream(sources, weights, order=order, seed=seed)
