"""The start of the query stream, G^0: what a target's row holds before it has looked at anything.

A row may know where it is and what is visible to it, never the token it predicts.

* `anchor`: the embedding of the nearest visible token to the left, plus a learned vector for the
  number of hidden tokens between. Under left-to-right singleton blocks that is the row an AR model
  would have at the position before, which is why a pretrained AR model is exactly an ARMD with this
  start.
* `prefix` (ARMD, Eq. 6): visible embeddings weighted by <PE_p, PE_j>, divided by their number,
  which the paper leaves out: without it the size grows with the prefix.
* `learned` (A3, XLNet): one vector for all targets.
* `anchor+prefix`: the sum, the prefix scale starting at zero.
"""

import torch
from jaxtyping import Float, Int
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from armd_scale.config.resolve import ResolvedModel
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.attention import KeyValueCache
from armd_scale.model.attention_mask import IntervalMask

PREFIX_CACHE_LAYER = -1


class QueryInit(nn.Module):
    """Computes G^0 for the targets of a batch.

    Args:
        model: the recipe's model section.
        config: megatron-core's configuration, for the dtype of the parameters.
    """

    def __init__(self, model: ResolvedModel, config: TransformerConfig) -> None:
        super().__init__()
        kinds = model.query.split("+")
        self.uses_anchor = "anchor" in kinds
        self.uses_prefix = "prefix" in kinds
        # A plain auto-regressive stack runs left to right, where there is never a gap.
        has_gaps = self.uses_anchor and model.two_stream_layers > 0
        self.gap = GapEmbedding(model.max_anchor_gap, config) if has_gaps else None
        self.prefix = (
            PrefixQuery(model.position_table_rows, model.prefix_width, config)
            if self.uses_prefix
            else None
        )
        self.query_embedding = (
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
        """G^0 of every query row.

        Args:
            batch: positions and gaps of the targets.
            content: token embeddings of the content rows, without positions; read if
                `sees_content`.
            anchors: token embeddings of the anchors, one a query row; read if `sees_anchor`.
            mask: content keys that each query row sees; None for causal.
            cache: content rows of earlier rounds.
        """
        if self.query_embedding is not None:
            batch_size, num_queries = batch.labels.shape
            return self.query_embedding.expand(num_queries, batch_size, -1)
        parts = []
        if self.uses_anchor:
            parts.append(anchors if self.gap is None else anchors + self.gap(batch.anchor_gaps))
        if self.prefix is not None:
            parts.append(self.prefix(batch, content=content, mask=mask, cache=cache))
        return sum(parts[1:], start=parts[0])


class GapEmbedding(nn.Module):
    """A vector for the number of hidden tokens between a target and its anchor; none for none.

    Row 0 stays zero whatever the optimizer does, so that the left-to-right path stays a plain AR
    model.
    """

    def __init__(self, largest_gap: int, config: TransformerConfig) -> None:
        super().__init__()
        shape = (largest_gap + 1, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype))

    def forward(self, gaps: Int[Tensor, "batch queries"]) -> Float[Tensor, "queries batch hidden"]:
        """The vectors of the gaps, larger ones than the table knows counted as the largest."""
        clamped = gaps.t().clamp(max=self.weight.shape[0] - 1)
        vectors = nn.functional.embedding(clamped, self.weight)
        return vectors * (clamped > 0).unsqueeze(-1)


class PrefixQuery(nn.Module):
    """scale * mean over visible j of <PE_p, PE_j> E[x_j] (ARMD, Eq. 6)."""

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
        """One linear attention head: its keys are positions, its values embeddings."""
        queries = nn.functional.embedding(batch.label_positions, self.position_embedding)
        keys = nn.functional.embedding(batch.positions, self.position_embedding).unsqueeze(1)
        values = content.transpose(0, 1).unsqueeze(1)
        if cache is not None:
            keys, values = cache.update(PREFIX_CACHE_LAYER, keys, values)
        weights = queries @ keys.squeeze(1).mT
        visible = torch.ones_like(weights).tril() if mask is None else mask.dense.squeeze(1)
        num_visible = visible.sum(dim=-1, keepdim=True).clamp(min=1)
        mean = (weights * visible / num_visible) @ values.squeeze(1)
        return self.scale * mean.transpose(0, 1)
