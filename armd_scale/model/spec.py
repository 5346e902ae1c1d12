"""From a recipe's model section to megatron-core's TransformerConfig and module specs."""

from functools import partial

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import nn

from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.activation import SwiGlu
from armd_scale.model.attention import StreamAttentionSubmodules, TwoStreamAttention
from armd_scale.model.layer import ArmdLayer, ArmdLayerSubmodules
from armd_scale.model.layer_norm import Norm
from armd_scale.model.lm_head import LMHead

ACTIVATIONS = {"swiglu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


def transformer_config(
    model: ResolvedModel,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    pipeline_dtype: torch.dtype | None = None,
) -> TransformerConfig:
    """megatron-core's configuration of the stack.

    Weights are drawn by `model.init`, by parameter name, so that every layout starts from the same
    ones; the fusions that only exist as CUDA extensions stay off.

    Args:
        model: the recipe's model section, resolved.
        parallel: the recipe's layout.
        dtype: of the parameters as they are built.
        message_dtype: of what pipeline stages send, where an engine converts the parameters later.
    """
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn_hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm" if model.norm == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=ACTIVATIONS[model.activation],
        # Its name apart, it has the MLP take the activation module of its spec, on all rows.
        use_te_activation_func=model.activation == "swiglu",
        add_bias_linear=model.mlp_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        ),
        sequence_parallel=parallel.sequence,
        # Lower stages send content and query rows, upper ones the query alone. The dispatcher is
        # one of experts, of which there are none; megatron-core asks for it with varying lengths.
        variable_seq_lengths=parallel.pipeline > 1,
        moe_token_dispatcher_type="alltoall",
        batch_p2p_comm=False,  # batched messages cross between two ranks, on gloo silently
        pipeline_dtype=pipeline_dtype or dtype,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
    )


def layer_spec() -> ModuleSpec:
    """One transformer layer; the same modules serve two-stream and upper layers."""
    attention = StreamAttentionSubmodules(
        linear_q=ColumnParallelLinear,
        linear_kv=ColumnParallelLinear,
        linear_proj=RowParallelLinear,
    )
    mlp = MLPSubmodules(
        linear_fc1=ColumnParallelLinear,
        linear_fc2=RowParallelLinear,
        activation_func=SwiGlu,  # where use_te_activation_func asks for it
    )
    return ModuleSpec(
        module=ArmdLayer,
        submodules=ArmdLayerSubmodules(
            attention_norm=Norm,
            attention=ModuleSpec(module=TwoStreamAttention, submodules=attention),
            mlp_norm=Norm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
        ),
    )


def set_tensor_parallel_attributes(network: nn.Module, config: TransformerConfig) -> None:
    """Marks every tensor-parallel parameter with the dimension and the stride that it is split by.

    megatron-core sets these marks only while it draws initial weights, which we do ourselves. The
    gated MLP's first matrix holds gate and up halves, each split by itself: stride 2.
    """
    for name, module in network.named_modules():
        gated = name.endswith("linear_fc1") and config.gated_linear_unit
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding | LMHead):
            split = [module.weight, getattr(module, "bias", None)]
            dim = 0
        elif isinstance(module, RowParallelLinear):
            split, dim = [module.weight], 1
        else:
            continue
        for parameter in split:
            if parameter is not None and not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(parameter, True, dim, 2 if gated else 1)
