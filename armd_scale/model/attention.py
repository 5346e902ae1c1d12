"""Attention of one layer: content and query rows against one set of keys.

With singleton blocks, content row i and query row i see the same keys 0..i. Both streams are then
one causal attention call with twice the query heads on the same key/value heads, and no mask
exists. With larger blocks the streams see different prefixes and the rows are stacked instead,
under a mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import flex_attention

from armd_scale.config.schema import ModelConfig
from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.decode_linear import column_parallel_linear, row_parallel_linear
from armd_scale.model.layer_norm import Norm, ProjectionNorm
from armd_scale.model.rotary import RotaryCosSin
from armd_scale.parallel.tensor.partition import gather_or_copy_input


@runtime_checkable
class KeyValueCache(Protocol):
    """Where a decoder keeps the keys and values of the rows of all rounds, this one's included."""

    num_content_keys: int
    """Keys of content rows that a layer's rows may look at in this round."""
    num_query_keys: int
    """Keys of query rows that a layer's rows may look at in this round."""
    query_slots: Int[Tensor, "batch queries"]
    """Key of each query row of this round."""

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts this round's rows of a layer to the others; all, [batch, kv_heads, keys, width]."""
        ...


@dataclass
class StreamAttentionSubmodules:
    """What a StreamAttention is built from."""

    linear_q: ModuleSpec | type
    linear_kv: ModuleSpec | type
    linear_proj: ModuleSpec | type


class TwoStreamAttention(MegatronModule):
    """Multi-head (grouped-query) attention for rows that are content, then queries.

    Keys and values are projected apart from queries: a query row has a key only in the upper
    layers, where the query stream attends to itself.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: StreamAttentionSubmodules,
        *,
        model: ModelConfig,
        layer_index: int,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        assert config.kv_channels is not None
        assert config.num_query_groups is not None
        self.layer_index = layer_index
        self.groups = pg_collection
        self.head_dim = config.kv_channels
        tensor_size = pg_collection.tp.size()
        self.heads = config.num_attention_heads // tensor_size
        self.kv_heads = config.num_query_groups // tensor_size
        linear = {
            "config": config,
            "init_method": config.init_method,
            "skip_bias_add": False,
            "tp_group": pg_collection.tp,
        }
        # Both read the same gathered rows, so gathering and reduction are shared_input's.
        column = {
            "bias": model.attention_bias,
            "gather_output": False,
            "disable_grad_reduce": True,
        }
        width = config.num_attention_heads * self.head_dim
        kv_width = 2 * config.num_query_groups * self.head_dim
        hidden = config.hidden_size
        self.linear_q: Any = build_module(submodules.linear_q, hidden, width, **column, **linear)
        self.linear_kv: Any = build_module(
            submodules.linear_kv, hidden, kv_width, **column, **linear
        )
        self.linear_q.sequence_parallel = self.linear_kv.sequence_parallel = False
        self.linear_proj = build_module(
            submodules.linear_proj,
            width,
            config.hidden_size,
            bias=model.attention_output_bias,
            input_is_parallel=True,
            is_expert=False,
            **linear,
        )
        self.q_norm = self._norm_of_heads(model, self.heads)
        self.k_norm = self._norm_of_heads(model, self.kv_heads)

    def _norm_of_heads(self, model: ModelConfig, heads: int) -> nn.Module | None:
        match model.qk_norm:
            case "none":
                return None
            case "head":
                return Norm(self.config, self.head_dim, on_heads=True)
            case "projection":
                return ProjectionNorm(self.config, heads, self.head_dim, group=self.groups.tp)

    def forward(
        self,
        rows: Float[Tensor, "rows batch hidden"],
        rotation: RotaryCosSin | None,
        *,
        num_content: int,
        queries_only: bool,
        mask: IntervalMask | None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "attending batch hidden"]:
        """Attends from all rows, or from the query rows alone, to the keys of the layer.

        Args:
            rows: what the layer reads, content rows first.
            rotation: of all rows; None where positions are not rotary.
            num_content: number of content rows; 0 where the query stream attends to itself.
            queries_only: leave the content rows out of the output.
            mask: over the attending rows and all keys, cached ones included; None for causal.
            cache: keys and values of earlier rows.

        Returns:
            The projected output of the attending rows.
        """
        rows = gather_or_copy_input(rows, self.config, self.groups.tp)
        num_rows = rows.shape[0]
        first = num_content if queries_only else 0
        num_keys = num_content or num_rows
        project = _project if cache is None else column_parallel_linear
        q = self._queries(
            project(self.linear_q, rows[first:]), rotation and rotation.rows(first, num_rows)
        )
        k, v = self._keys_values(
            project(self.linear_kv, rows[:num_keys]), rotation and rotation.rows(0, num_keys)
        )
        if cache is not None:
            k, v = cache.update(self.layer_index, k, v)
        if mask is None:
            # Streams of equal length over the same keys: fold them into the heads.
            folded = causal_attention(q.unflatten(0, (-1, num_keys)), k, v)
            attended = folded.flatten(0, 1)
        elif mask.document_rows is not None and not q.is_cuda:
            streams = q.unflatten(0, (-1, num_keys))
            attended = document_attention(streams, k, v, mask.document_rows).flatten(0, 1)
        else:
            attended = masked_attention(q, k, v, mask)
        if cache is not None:
            return row_parallel_linear(self.linear_proj, attended.flatten(2), self.groups.tp)
        return _project(self.linear_proj, attended.flatten(2))

    def _queries(self, projected: Tensor, rotation: RotaryCosSin | None) -> Tensor:
        q = projected.unflatten(-1, (self.heads, self.head_dim))
        q = q if self.q_norm is None else self.q_norm(q)
        return q if rotation is None else rotation(q)

    def _keys_values(
        self, projected: Tensor, rotation: RotaryCosSin | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [batch, kv_heads, rows, head_dim]; each head's pair lies side by side."""
        k, v = projected.unflatten(-1, (self.kv_heads, 2, self.head_dim)).unbind(dim=-2)
        k = k if self.k_norm is None else self.k_norm(k)
        k = k if rotation is None else rotation(k)
        return k.permute(1, 2, 0, 3), v.permute(1, 2, 0, 3)


def _project(layer: Any, rows: Tensor) -> Tensor:
    """A megatron-core layer's product, bias included."""
    return layer(rows)[0]


def causal_attention(
    q: Float[Tensor, "streams rows batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads rows head_dim"],
    v: Float[Tensor, "batch kv_heads rows head_dim"],
) -> Float[Tensor, "streams rows batch heads head_dim"]:
    """Row i of every stream attends to keys 0..i; one call, heads laid [kv head, stream, group]."""
    kv_heads = k.shape[1]
    streams, _, _, heads, _ = q.shape
    grouped = q.unflatten(3, (kv_heads, heads // kv_heads)).permute(2, 3, 0, 4, 1, 5)
    out = F.scaled_dot_product_attention(
        grouped.flatten(1, 3), k, v, is_causal=True, enable_gqa=grouped.shape[2:4].numel() > 1
    )
    out = out.unflatten(1, (kv_heads, streams, heads // kv_heads))
    return out.permute(2, 4, 0, 1, 3, 5).flatten(3, 4)


def sdpa_backend_name(
    *,
    heads: int,
    kv_heads: int,
    rows: int,
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """What scaled_dot_product_attention runs for `attend_causally`: FLASH_ATTENTION, for example.

    `MATH` is the one to beware of: it holds all scores.
    """
    new = partial(torch.empty, device=device, dtype=dtype, requires_grad=True)
    q, k = new(1, heads, rows, head_dim), new(1, kv_heads, rows, head_dim)
    # The choice has no public name; this is what scaled_dot_product_attention itself asks.
    choice = torch._fused_sdp_choice(  # pyright: ignore[reportPrivateImportUsage]
        q, k, k, is_causal=True, enable_gqa=heads > kv_heads
    )
    return SDPBackend(choice).name


def document_attention(
    q: Float[Tensor, "streams rows batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads rows head_dim"],
    v: Float[Tensor, "batch kv_heads rows head_dim"],
    document_rows: Sequence[tuple[int, ...]],
) -> Float[Tensor, "streams rows batch heads head_dim"]:
    """Packed documents, each a causal call of its own: no row looks at a key only to hide it.

    A dense mask has all rows visit all keys; FlexAttention on CUDA skips empty tiles by itself.
    """
    samples = []
    for sample, lengths in enumerate(document_rows):
        one = slice(sample, sample + 1)
        documents = zip(
            q[:, :, one].split(lengths, dim=1),
            k[one].split(lengths, dim=2),
            v[one].split(lengths, dim=2),
            strict=True,
        )
        samples.append(torch.cat([causal_attention(*document) for document in documents], dim=1))
    return torch.cat(samples, dim=2)


def masked_attention(
    q: Float[Tensor, "rows batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: IntervalMask,
) -> Float[Tensor, "rows batch heads head_dim"]:
    """Every row attends to its interval of keys: FlexAttention on CUDA, a dense mask on CPU.

    FlexAttention has no backward on CPU; a dense mask on CUDA would fall to the quadratic kernel,
    so it serves there only where rows are few (a round of decoding), with groups folded into rows.
    """
    rows, _, heads, _ = q.shape
    group = heads // k.shape[1]
    if q.is_cuda and torch.is_grad_enabled():
        out = _compiled_flex()(
            q.permute(1, 2, 0, 3), k, v, block_mask=mask.blocks, enable_gqa=group > 1
        )
        return out.permute(2, 0, 1, 3)
    if q.is_cuda:
        folded = q.unflatten(2, (-1, group)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        dense = mask.dense.repeat_interleave(group, dim=2)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=dense)
        return out.unflatten(2, (rows, group)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    out = F.scaled_dot_product_attention(
        q.permute(1, 2, 0, 3), k, v, attn_mask=mask.dense, enable_gqa=group > 1
    )
    return out.permute(2, 0, 1, 3)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """flex_attention under torch.compile, which alone makes it a fused kernel."""
    return torch.compile(flex_attention)
