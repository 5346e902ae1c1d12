"""megatron-core's TransformerConfig and module specs for a recipe's model section."""

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
from armd_scale.model.attention import TwoStreamAttention, TwoStreamAttentionSubmodules
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
    """Return megatron-core's configuration of the transformer stack.

    Initial weights are drawn by `weight_init` from parameter names, so that every layout starts
    from the same ones. Fusions that exist only as CUDA extensions are disabled.

    Args:
        model: the recipe's model section, resolved.
        parallel: the recipe's layout.
        dtype: type of the parameters as they are built.
        pipeline_dtype: type of the rows that stages send, if the training engine converts the
            parameters afterwards; `dtype` by default.
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
        # Despite its name (te: Transformer Engine), this makes the MLP use the activation module of
        # its spec, here SwiGlu.
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
        # Lower stages send content and query rows, upper stages query rows only. With varying
        # lengths megatron-core insists on this dispatcher, although there are no experts.
        variable_seq_lengths=parallel.pipeline > 1,
        moe_token_dispatcher_type="alltoall",
        # Batched messages between two ranks cross on gloo, without an error: with two interleaved
        # stages the grad norm was 509 instead of 1.70.
        batch_p2p_comm=False,
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
    """Return the spec of a transformer layer; two-stream and upper layers use the same modules."""
    attention = TwoStreamAttentionSubmodules(
        linear_q=ColumnParallelLinear,
        linear_kv=ColumnParallelLinear,
        linear_proj=RowParallelLinear,
    )
    mlp = MLPSubmodules(
        linear_fc1=ColumnParallelLinear,
        linear_fc2=RowParallelLinear,
        activation_func=SwiGlu,  # used only with use_te_activation_func
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
    """Mark every tensor parallel parameter with its partition dimension and stride, in place.

    megatron-core sets these attributes only while it draws initial weights, which `weight_init`
    replaces. They drive `tensor_partition` and DeepSpeed's gradient norm.
    """
    for name, module in network.named_modules():
        # The gated MLP's first matrix holds a gate and an up section, each split by itself.
        is_gated = name.endswith("linear_fc1") and config.gated_linear_unit
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding | LMHead):
            parameters = [module.weight, getattr(module, "bias", None)]
            dim = 0
        elif isinstance(module, RowParallelLinear):
            # The bias is added after the sum over ranks, so every rank holds it whole.
            parameters, dim = [module.weight], 1
        else:
            continue
        for parameter in parameters:
            if parameter is not None and not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(parameter, True, dim, 2 if is_gated else 1)
