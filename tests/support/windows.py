"""Random windows with drawn orders, and the logits of a network for each position in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.draw import sample_blocks
from armd_scale.order.spec import parse_spec
from tests.support.networks import batch_of

VOCAB = 101


@dataclass(frozen=True)
class Windows:
    """Windows of P tokens, all with the same document lengths."""

    tokens: np.ndarray
    """[b, P]"""
    block: np.ndarray
    """[b, P]"""
    lengths: tuple[int, ...]

    @property
    def document(self) -> np.ndarray:
        """[P], the index of the document of each token in the window."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """[P], the position in its document of each token in the window."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def batch(self, tokens: np.ndarray | None = None) -> ArmdBatch:
        """Make the batch of the windows, with `tokens` in place of their own if given."""
        tokens = self.tokens if tokens is None else tokens
        return batch_of(tokens, self.block, [self.lengths] * len(tokens))


def draw_windows(order: str, lengths: Sequence[int], *, count: int = 2, seed: int = 0) -> Windows:
    """Draw random tokens and blocks.

    Args:
        order: an order spec, or `given`: blocks with given tokens (block 0) anywhere.
        lengths: lengths of the documents in each window.
        count: number of windows.
        seed: seed of the tokens and blocks.
    """
    lengths = tuple(lengths)
    tokens = np.random.default_rng(seed).integers(0, VOCAB, size=(count, sum(lengths)))
    if order == "given":
        block = np.random.default_rng(seed + 1).integers(0, 5, size=tokens.shape).astype(np.int32)
        block[:, np.cumsum((0, *lengths[:-1]))] = 0
        return Windows(tokens, block, lengths)
    spec = parse_spec(order)
    draws = [sample_blocks(spec, seed=seed, sample_index=i, lengths=lengths) for i in range(count)]
    return Windows(tokens, np.stack(draws), lengths)


def logits_by_index(network: ArmdModel, batch: ArmdBatch) -> Tensor:
    """Return the logits for each position, [b, P, vocabulary]; NaN where a token is given."""
    rows = network.logits(batch)
    out = torch.full((*batch.order.shape, rows.shape[-1]), torch.nan, dtype=rows.dtype)
    index = batch.order[:, 1:].unsqueeze(-1).expand_as(rows)
    return out.scatter(1, index, rows.where(batch.is_target.unsqueeze(-1), torch.nan))
