"""One transformer layer over content rows, then query rows."""

from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from armd_scale.config.schema import ModelConfig
from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.decode_linear import mlp_forward
from armd_scale.model.dropout import KeyedDropout
from armd_scale.model.kv_cache import KeyValueCache
from armd_scale.model.rotary import RotaryCosSin


@dataclass
class ArmdLayerSubmodules:
    """The modules of an ArmdLayer."""

    attention_norm: ModuleSpec | type
    attention: ModuleSpec
    mlp_norm: ModuleSpec | type
    mlp: ModuleSpec


class ArmdLayer(MegatronModule):
    """Attention and MLP with residuals; both streams share every weight (arXiv 2601.16971).

    Supports pre-norm (Llama, GPT-2), post-norm within the residual (OLMo 2) and the parallel
    residual, where the MLP reads the layer's input (GPT-NeoX).

    Args:
        config: megatron-core's configuration.
        submodules: the modules to build.
        model: the recipe's model section.
        layer_index: index in the whole network.
        groups: the process groups of the layout.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: ArmdLayerSubmodules,
        *,
        model: ModelConfig,
        layer_index: int,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.groups = groups
        self.layer_index = layer_index
        self.pre_norm = model.norm_position == "pre"
        self.parallel_residual = model.parallel_residual
        self.attention_norm = build_module(submodules.attention_norm, config, config.hidden_size)
        self.attention = build_module(
            submodules.attention,
            config=config,
            model=model,
            layer_index=layer_index,
            groups=groups,
        )
        self.mlp_norm = build_module(submodules.mlp_norm, config, config.hidden_size)
        self.mlp = build_module(
            submodules.mlp,
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=groups.tp,
        )

    def forward(
        self,
        rows: Float[Tensor, "local_rows batch hidden"],
        rotation: RotaryCosSin | None,
        *,
        num_content: int,
        drop_content: bool,
        mask: IntervalMask | None,
        cache: KeyValueCache | None = None,
        recompute_attention: bool = False,
        dropout: KeyedDropout | None = None,
    ) -> Float[Tensor, "local_output_rows batch hidden"]:
        """Apply the layer.

        Args:
            rows: content rows, then query rows; this rank's share under sequence parallelism.
            rotation: rotary cosines and sines of all rows; None without rotary embedding.
            num_content: number of content rows; 0 if the query stream attends to itself.
            drop_content: this is the last two-stream layer: no later layer reads the content
                stream, so content rows provide keys and values, and neither their attention nor
                their MLP is computed.
            mask: over the rows that attend; None for causal.
            cache: keys and values of earlier decoding rounds.
            recompute_attention: recompute attention in the backward pass and save only its input.
            dropout: dropout of the rows that are returned; None to drop nothing.

        Returns:
            All rows, or only the query rows if `drop_content`.
        """
        attend = partial(
            self.attention,
            num_content=num_content,
            drop_content=drop_content,
            mask=mask,
            cache=cache,
        )
        normed = self.attention_norm(rows) if self.pre_norm else rows
        # The norm stays outside of the checkpoint: its output is where recomputation starts.
        if recompute_attention:
            attention_out = checkpoint(attend, normed, rotation, use_reentrant=False)
        else:
            attention_out = attend(normed, rotation)
        if not self.pre_norm:
            attention_out = self.attention_norm(attention_out)
        if drop_content:
            rows = self._drop_content_rows(rows, num_content)
        if dropout is not None:
            attention_out = dropout.in_layer(self.layer_index, "attention")(attention_out)
        hidden = rows + attention_out
        # GPT-NeoX: hidden = rows + attention(norm1(rows)) + mlp(norm2(rows)).
        mlp_in = rows if self.parallel_residual else hidden
        mlp_out = self._mlp_branch(mlp_in, is_decoding=cache is not None)
        if dropout is not None:
            mlp_out = dropout.in_layer(self.layer_index, "mlp")(mlp_out)
        return hidden + mlp_out

    def _mlp_branch(self, rows: Tensor, *, is_decoding: bool) -> Tensor:
        """Return what the MLP adds to the residual, norm included."""
        normed = self.mlp_norm(rows) if self.pre_norm else rows
        if is_decoding:
            output = mlp_forward(self.mlp, normed, self.groups.tp)
        else:
            output, bias = self.mlp(normed)
            output = output if bias is None else output + bias
        return output if self.pre_norm else self.mlp_norm(output)

    def _drop_content_rows(self, rows: Tensor, num_content: int) -> Tensor:
        """Return the query rows, redistributed over ranks under sequence parallelism.

        Each rank holds a contiguous share of all rows: the first half of the ranks has the content
        rows, the second half the query rows. Dropping them locally would leave half of the ranks
        without work, so all rows are gathered and the query rows distributed again.
        """
        if not self.config.sequence_parallel:
            return rows[num_content:]
        group = self.groups.tp
        # The backward pass of the scatter all-gathers, after which every rank has the whole
        # gradient. So that of the gather must take this rank's slice (False); a reduce-scatter
        # would add up tp equal copies.
        all_rows = gather_from_sequence_parallel_region(
            rows, tensor_parallel_output_grad=False, group=group
        )
        return scatter_to_sequence_parallel_region(all_rows[num_content:], group=group)
