"""Two-stream attention: content and query rows attend to one set of keys.

With singleton blocks, content row i and query row i see the same keys 0..i. Both streams are then
one causal attention call with twice the query heads on the same key/value heads, without a mask
(2 cores, 2048 targets: AR 129 ms, both streams folded 256 ms, two calls with dense masks 513 ms).
With larger blocks the streams see different prefixes; their rows are concatenated under a mask.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from armd_scale.config.schema import ModelConfig
from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.decode_linear import column_parallel_linear, row_parallel_linear
from armd_scale.model.kv_cache import KeyValueCache
from armd_scale.model.layer_norm import Norm, ProjectionNorm
from armd_scale.model.rotary import RotaryCosSin
from armd_scale.parallel.tensor.partition import gather_or_copy_input


@dataclass
class TwoStreamAttentionSubmodules:
    """The linear layers of a TwoStreamAttention."""

    linear_q: ModuleSpec | type
    linear_kv: ModuleSpec | type
    linear_proj: ModuleSpec | type


class TwoStreamAttention(MegatronModule):
    """Multi-head or grouped-query attention over content rows, then query rows.

    Keys and values have a projection separate from queries, because in two-stream layers query rows
    have no keys: they attend to the content stream. In upper layers the query stream attends to
    itself.

    Args:
        config: megatron-core's configuration.
        submodules: the linear layers to build.
        model: the recipe's model section.
        layer_index: index in the whole network, which identifies the layer in a cache.
        groups: the process groups of the layout.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TwoStreamAttentionSubmodules,
        *,
        model: ModelConfig,
        layer_index: int,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        assert config.kv_channels is not None
        assert config.num_query_groups is not None
        self.layer_index = layer_index
        self.groups = groups
        self.head_dim = config.kv_channels
        tensor_size = groups.tp.size()
        self.heads = config.num_attention_heads // tensor_size
        self.kv_heads = config.num_query_groups // tensor_size
        linear = {
            "config": config,
            "init_method": config.init_method,
            "skip_bias_add": False,
            "tp_group": groups.tp,
        }
        # Queries and keys/values read the same input, so `gather_or_copy_input` gathers it once and
        # reduces its gradient once; the layers themselves must do neither.
        column = {
            "bias": model.attention_bias,
            "gather_output": False,
            "disable_grad_reduce": True,
        }
        hidden = config.hidden_size
        q_width = config.num_attention_heads * self.head_dim
        kv_width = 2 * config.num_query_groups * self.head_dim
        self.linear_q: Any = build_module(submodules.linear_q, hidden, q_width, **column, **linear)
        self.linear_kv: Any = build_module(
            submodules.linear_kv, hidden, kv_width, **column, **linear
        )
        self.linear_q.sequence_parallel = self.linear_kv.sequence_parallel = False
        self.linear_proj = build_module(
            submodules.linear_proj,
            q_width,
            hidden,
            bias=model.attention_output_bias,
            input_is_parallel=True,
            is_expert=False,
            **linear,
        )
        self.q_norm = self._build_head_norm(model, self.heads)
        self.k_norm = self._build_head_norm(model, self.kv_heads)

    def _build_head_norm(self, model: ModelConfig, heads: int) -> nn.Module | None:
        match model.qk_norm:
            case "none":
                return None
            case "head":
                return Norm(self.config, self.head_dim, on_heads=True)
            case "projection":
                return ProjectionNorm(self.config, heads, self.head_dim, group=self.groups.tp)

    def forward(
        self,
        rows: Float[Tensor, "local_rows batch hidden"],
        rotation: RotaryCosSin | None,
        *,
        num_content: int,
        drop_content: bool,
        mask: IntervalMask | None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "local_attending batch hidden"]:
        """Attend from all rows, or from the query rows only, to the keys of the layer.

        Args:
            rows: content rows, then query rows; this rank's share under sequence parallelism.
            rotation: rotary cosines and sines of all rows; None without rotary embedding.
            num_content: number of content rows; 0 if the query stream attends to itself.
            drop_content: content rows provide keys and values but no output.
            mask: over the attending rows and all keys, cached ones included; None for causal.
            cache: keys and values of earlier decoding rounds.

        Returns:
            The projected output of the attending rows.
        """
        rows = gather_or_copy_input(rows, self.config, self.groups.tp)
        num_rows = rows.shape[0]
        first_query = num_content if drop_content else 0
        # Only content rows have keys in a two-stream layer; all rows have keys in an upper layer.
        num_keys = num_content or num_rows
        project = _project if cache is None else column_parallel_linear
        q = self._queries(
            project(self.linear_q, rows[first_query:]),
            rotation and rotation.rows(first_query, num_rows),
        )
        k, v = self._keys_values(
            project(self.linear_kv, rows[:num_keys]), rotation and rotation.rows(0, num_keys)
        )
        if cache is not None:
            k, v = cache.update(self.layer_index, k, v)
        attended = _attend(q, k, v, mask, num_keys=num_keys).flatten(2)
        if cache is not None:
            return row_parallel_linear(self.linear_proj, attended, self.groups.tp)
        return _project(self.linear_proj, attended)

    def _queries(
        self, projected: Float[Tensor, "attending batch width"], rotation: RotaryCosSin | None
    ) -> Float[Tensor, "attending batch heads head_dim"]:
        q = projected.unflatten(-1, (self.heads, self.head_dim))
        q = q if self.q_norm is None else self.q_norm(q)
        return q if rotation is None else rotation(q)

    def _keys_values(
        self, projected: Float[Tensor, "keys batch kv_width"], rotation: RotaryCosSin | None
    ) -> tuple[
        Float[Tensor, "batch kv_heads keys head_dim"],
        Float[Tensor, "batch kv_heads keys head_dim"],
    ]:
        # The columns are [kv_head, (key, value), head_dim]: key and value of a head are adjacent,
        # so that a tensor parallel split along heads cuts neither.
        k, v = projected.unflatten(-1, (self.kv_heads, 2, self.head_dim)).unbind(dim=-2)
        k = k if self.k_norm is None else self.k_norm(k)
        k = k if rotation is None else rotation(k)
        return k.permute(1, 2, 0, 3), v.permute(1, 2, 0, 3)


def _project(layer: Any, rows: Tensor) -> Tensor:
    """Apply a linear layer of megatron-core, which returns (output, bias if not yet added)."""
    return layer(rows)[0]


def _attend(
    q: Float[Tensor, "attending batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads keys head_dim"],
    v: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: IntervalMask | None,
    *,
    num_keys: int,
) -> Float[Tensor, "attending batch heads head_dim"]:
    """Choose the attention function for a mask.

    Args:
        q: queries of one or two streams, concatenated along rows.
        k: keys, cached ones included.
        v: values.
        mask: visible keys of each row; None for causal.
        num_keys: number of keys of this forward pass, which is the number of rows per stream.
    """
    if mask is None:
        return causal_attention(q.unflatten(0, (-1, num_keys)), k, v).flatten(0, 1)
    if mask.document_rows is not None and not q.is_cuda:
        streams = q.unflatten(0, (-1, num_keys))
        return document_attention(streams, k, v, mask.document_rows).flatten(0, 1)
    return masked_attention(q, k, v, mask)


def causal_attention(
    q: Float[Tensor, "streams rows batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads rows head_dim"],
    v: Float[Tensor, "batch kv_heads rows head_dim"],
) -> Float[Tensor, "streams rows batch heads head_dim"]:
    """Attend from row i of every stream to keys 0..i, in one call with the streams as heads."""
    kv_heads = k.shape[1]
    streams, _, _, heads, _ = q.shape
    # Grouped-query attention assigns consecutive query heads to a key/value head. So streams go
    # between key/value head and group: [batch, kv_head, stream, group, row, head_dim].
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
    """Return the kernel that PyTorch selects for `causal_attention`, such as FLASH_ATTENTION.

    `MATH` materializes all rows x rows scores and should be avoided for long samples.
    """
    empty = partial(torch.empty, device=device, dtype=dtype, requires_grad=True)
    q, k = empty(1, heads, rows, head_dim), empty(1, kv_heads, rows, head_dim)
    # There is no public function for this; scaled_dot_product_attention itself calls this one.
    backend = torch._fused_sdp_choice(  # pyright: ignore[reportPrivateImportUsage]
        q, k, k, is_causal=True, enable_gqa=heads > kv_heads
    )
    return SDPBackend(backend).name


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave cuDNN out of the attention kernels that PyTorch chooses from, as context or decorator.

    cuDNN plans a kernel for each exact shape. On an H200 the first call with a new number of keys
    took 113 ms with cuDNN and 0.1 ms without, and in decoding every round has a new number of keys.
    """
    # As a context around many calls, because entering it costs as much as launching two kernels.
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(others):
        yield


def document_attention(
    q: Float[Tensor, "streams rows batch heads head_dim"],
    k: Float[Tensor, "batch kv_heads rows head_dim"],
    v: Float[Tensor, "batch kv_heads rows head_dim"],
    document_rows: Sequence[tuple[int, ...]],
) -> Float[Tensor, "streams rows batch heads head_dim"]:
    """Attend causally within packed documents, with one call per document.

    On CPU only. A dense mask would compute the scores between documents just to hide them;
    FlexAttention on CUDA skips empty tiles by itself.

    Args:
        q: queries of one or two streams.
        k: keys.
        v: values.
        document_rows: for each sample, the number of rows of each document; they sum to `rows`.
    """
    samples = []
    for index, lengths in enumerate(document_rows):
        sample = slice(index, index + 1)  # keeps the batch dimension
        documents = zip(
            q[:, :, sample].split(lengths, dim=1),
            k[sample].split(lengths, dim=2),
            v[sample].split(lengths, dim=2),
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
    """Attend from every row to its interval of keys.

    FlexAttention for training on CUDA (it has no backward pass on CPU), a dense mask on CPU and for
    decoding, where rows are few.
    """
    rows, _, heads, _ = q.shape
    group = heads // k.shape[1]
    if q.is_cuda and torch.is_grad_enabled():
        out = _compiled_flex_attention()(
            q.permute(1, 2, 0, 3), k, v, block_mask=mask.blocks, enable_gqa=group > 1
        )
        return out.permute(2, 0, 1, 3)
    if q.is_cuda:
        # On CUDA, attn_mask together with enable_gqa falls back to the quadratic math kernel. The
        # query heads of a group share keys and mask, so they become rows of one head instead.
        folded = q.unflatten(2, (-1, group)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        dense = mask.dense.repeat_interleave(group, dim=2)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=dense)
        return out.unflatten(2, (rows, group)).permute(2, 0, 1, 3, 4).flatten(2, 3)
    out = F.scaled_dot_product_attention(
        q.permute(1, 2, 0, 3), k, v, attn_mask=mask.dense, enable_gqa=group > 1
    )
    return out.permute(2, 0, 1, 3)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """Return flex_attention under torch.compile; eager, it materializes all scores."""
    return torch.compile(flex_attention)
