"""One transformer layer over rows that are content, then queries."""

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
from armd_scale.model.attention import KeyValueCache
from armd_scale.model.attention_mask import IntervalMask
from armd_scale.model.decode_linear import mlp_forward
from armd_scale.model.dropout import KeyedDropout
from armd_scale.model.rotary import RotaryCosSin


@dataclass
class ArmdLayerSubmodules:
    """What an ArmdLayer is built from."""

    attention_norm: ModuleSpec | type
    attention: ModuleSpec
    mlp_norm: ModuleSpec | type
    mlp: ModuleSpec


class ArmdLayer(MegatronModule):
    """Attention and MLP beside the residual; both streams share every weight (ARMD)."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: ArmdLayerSubmodules,
        *,
        model: ModelConfig,
        layer_index: int,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.groups = pg_collection
        self.layer_index = layer_index
        self.pre_norm = model.norm_position == "pre"
        self.parallel_residual = model.parallel_residual
        self.attention_norm = build_module(submodules.attention_norm, config, config.hidden_size)
        self.attention = build_module(
            submodules.attention,
            config=config,
            model=model,
            layer_index=layer_index,
            pg_collection=pg_collection,
        )
        self.mlp_norm = build_module(submodules.mlp_norm, config, config.hidden_size)
        self.mlp = build_module(
            submodules.mlp,
            config=config,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=pg_collection.tp,
        )

    def forward(
        self,
        rows: Float[Tensor, "rows batch hidden"],
        rotation: RotaryCosSin | None,
        *,
        num_content: int,
        drop_content: bool,
        mask: IntervalMask | None,
        cache: KeyValueCache | None = None,
        recompute_attention: bool = False,
        dropout: KeyedDropout | None = None,
    ) -> Float[Tensor, "kept batch hidden"]:
        """Applies the layer.

        Args:
            rows: content rows, then query rows.
            rotation: of all rows; None where positions are not rotary.
            num_content: number of content rows; 0 where the query stream attends to itself.
            drop_content: this is the last two-stream layer: content rows give keys and values and
                nothing else, so neither their attention nor their MLP is computed.
            mask: over the rows that attend; None for causal.
            cache: keys and values of earlier rows.
            recompute_attention: compute attention again in the backward pass, keeping its input.
            dropout: of the rows that are returned; None where nothing is dropped.

        Returns:
            All rows, or the query rows alone under `drop_content`.
        """
        attend = partial(
            self.attention,
            num_content=num_content,
            queries_only=drop_content,
            mask=mask,
            cache=cache,
        )
        read = self.attention_norm(rows) if self.pre_norm else rows
        if recompute_attention:
            attended = checkpoint(attend, read, rotation, use_reentrant=False)
        else:
            attended = attend(read, rotation)
        attended = attended if self.pre_norm else self.attention_norm(attended)
        if drop_content:
            rows = self._drop_content_rows(rows, num_content)
        if dropout is not None:
            attended = dropout.in_layer(self.layer_index, "attention")(attended)
        hidden = rows + attended
        mlp_out = self._mlp_branch(rows if self.parallel_residual else hidden, cache is not None)
        if dropout is not None:
            mlp_out = dropout.in_layer(self.layer_index, "mlp")(mlp_out)
        return hidden + mlp_out

    def _mlp_branch(self, rows: Tensor, is_decoding: bool) -> Tensor:
        """What the MLP adds to the residual."""
        normed = self.mlp_norm(rows) if self.pre_norm else rows
        if is_decoding:
            output = mlp_forward(self.mlp, normed, self.groups.tp)
        else:
            output, bias = self.mlp(normed)
            output = output if bias is None else output + bias
        return output if self.pre_norm else self.mlp_norm(output)

    def _drop_content_rows(self, rows: Tensor, num_content: int) -> Tensor:
        """The query rows alone, under sequence parallelism shared out anew among the ranks."""
        if not self.config.sequence_parallel:
            return rows[num_content:]
        group = self.groups.tp
        every = gather_from_sequence_parallel_region(
            rows, tensor_parallel_output_grad=False, group=group
        )
        return scatter_to_sequence_parallel_region(every[num_content:], group=group)
