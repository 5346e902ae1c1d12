"""Start of the query stream, G^0: a target's row before the first layer.

A row may know its position and the tokens visible to it, but never the token it predicts. With
block[p] the generation block of position p (recipe key `model.query`):

* `anchor`: G_p = E[x_a] + gap[min(p - 1 - a, K)], with a = max{j < p : block[j] < block[p]} the
  nearest visible token to the left, and gap[0] = 0. Under left-to-right singleton blocks a = p - 1,
  so the row is that of an AR model at position p - 1: a pretrained AR model is exactly an ARMD.
* `prefix` (ARMD, arXiv 2601.16971, Eq. 6): G_p = scale * mean over visible j of
  <PE_p, PE_j> E[x_j]. The paper sums; without the division the size would grow with the prefix.
* `learned` (A3, arXiv 2601.13228; XLNet): one vector for all targets.
* `anchor+prefix`: the sum of both, with the prefix scale initialized to zero.
"""

import torch
from jaxtyping import Float, Int
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.config.resolve import ResolvedModel
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.kv_cache import KeyValueCache

PREFIX_CACHE_LAYER = -1  # the layer index under which a cache stores the prefix query's keys


class QueryStart(nn.Module):
    """Computes G^0 for the targets of a batch.

    The names of this module and its parameters are part of the checkpoint format.

    Args:
        model: the recipe's model section, resolved.
        config: megatron-core's configuration, for the dtype of the parameters.
    """

    def __init__(self, model: ResolvedModel, config: TransformerConfig) -> None:
        super().__init__()
        kinds = model.query.split("+")
        self.uses_anchor = "anchor" in kinds
        self.uses_prefix = "prefix" in kinds
        # Without two-stream layers the network runs left to right only, where every gap is 0.
        has_gaps = self.uses_anchor and model.two_stream_layers > 0
        self.gap = GapEmbedding(model.max_anchor_gap, config) if has_gaps else None
        self.prefix = (
            PrefixQuery(model.position_table_rows, model.prefix_width, config)
            if self.uses_prefix
            else None
        )
        self.vector = (
            nn.Parameter(torch.empty(config.hidden_size, dtype=config.params_dtype))
            if "learned" in kinds
            else None
        )

    def forward(
        self,
        batch: ArmdBatch,
        *,
        content: Float[Tensor, "content batch hidden"],
        anchors: Float[Tensor, "anchors batch hidden"],
        mask: IntervalMask | None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "queries batch hidden"]:
        """Return G^0 of every query row.

        Args:
            batch: positions and gaps of the targets.
            content: token embeddings of the content rows, without positions; used by `prefix`.
            anchors: token embeddings of the anchors, one per query row; used by `anchor`.
            mask: content keys that each query row sees; None for causal.
            cache: content rows of earlier decoding rounds.
        """
        if self.vector is not None:
            batch_size, num_queries = batch.labels.shape
            return self.vector.expand(num_queries, batch_size, -1)
        terms = []
        if self.uses_anchor:
            terms.append(anchors if self.gap is None else anchors + self.gap(batch.anchor_gaps))
        if self.prefix is not None:
            terms.append(self.prefix(batch, content=content, mask=mask, cache=cache))
        return sum(terms[1:], start=terms[0])


class GapEmbedding(nn.Module):
    """Embedding of the gap (number of hidden tokens) between a target and its anchor.

    Gap 0 maps to zero whatever the optimizer does to row 0, so that the left-to-right path remains
    a plain AR model.

    Args:
        largest_gap: K; larger gaps share its row.
        config: hidden size and dtype.
    """

    def __init__(self, largest_gap: int, config: TransformerConfig) -> None:
        super().__init__()
        shape = (largest_gap + 1, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype))

    def forward(self, gaps: Int[Tensor, "batch queries"]) -> Float[Tensor, "queries batch hidden"]:
        """Look up the gaps, clamped to the size of the table."""
        clamped = gaps.t().clamp(max=self.weight.shape[0] - 1)
        vectors = nn.functional.embedding(clamped, self.weight)
        return vectors * (clamped > 0).unsqueeze(-1)


class PrefixQuery(nn.Module):
    """scale * mean over visible j of <PE_p, PE_j> E[x_j]: a linear attention head without softmax.

    Args:
        positions: number of positions of the learned position embedding PE.
        width: width of PE.
        config: hidden size and dtype.
    """

    def __init__(self, positions: int, width: int, config: TransformerConfig) -> None:
        super().__init__()
        dtype = config.params_dtype
        self.position_embedding = nn.Parameter(torch.empty(positions, width, dtype=dtype))
        self.scale = nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))

    def forward(
        self,
        batch: ArmdBatch,
        *,
        content: Float[Tensor, "content batch hidden"],
        mask: IntervalMask | None,
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "queries batch hidden"]:
        """Attend from label positions to content positions; values are token embeddings."""
        queries = nn.functional.embedding(batch.label_positions, self.position_embedding)
        # A cache holds [batch, kv_heads, keys, width]; this is one head.
        keys = nn.functional.embedding(batch.positions, self.position_embedding).unsqueeze(1)
        values = content.transpose(0, 1).unsqueeze(1)
        if cache is not None:
            keys, values = cache.update(PREFIX_CACHE_LAYER, keys, values)
        weights = queries @ keys.squeeze(1).mT  # [batch, queries, keys]
        visible = torch.ones_like(weights).tril() if mask is None else mask.dense.squeeze(1)
        num_visible = visible.sum(dim=-1, keepdim=True).clamp(min=1)
        mean = (weights * visible / num_visible) @ values.squeeze(1)
        return self.scale * mean.transpose(0, 1)
