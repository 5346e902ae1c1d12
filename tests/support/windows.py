"""Random windows under an order, and what a network says about each position of them."""

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
    """Windows of P tokens, all cut into documents alike."""

    tokens: np.ndarray
    """[b, P]"""
    block: np.ndarray
    """[b, P]"""
    lengths: tuple[int, ...]

    @property
    def document(self) -> np.ndarray:
        """[P], the number of the document of each index in the window."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def position(self) -> np.ndarray:
        """[P], the position in its document of each index in the window."""
        return np.concatenate([np.arange(length) for length in self.lengths])

    def batch(self, tokens: np.ndarray | None = None) -> ArmdBatch:
        """The windows as a batch, with other tokens where given."""
        tokens = self.tokens if tokens is None else tokens
        return batch_of(tokens, self.block, [self.lengths] * len(tokens))


def draw_windows(order: str, lengths: Sequence[int], *, count: int = 2, seed: int = 0) -> Windows:
    """Random tokens under drawn orders; `given` draws blocks with given tokens anywhere."""
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
    """[b, P, vocabulary]: the logits for each index in the window; NaN where a token is given."""
    rows = network.logits(batch)
    out = torch.full((*batch.order.shape, rows.shape[-1]), torch.nan, dtype=rows.dtype)
    index = batch.order[:, 1:].unsqueeze(-1).expand_as(rows)
    return out.scatter(1, index, rows.where(batch.is_target.unsqueeze(-1), torch.nan))
