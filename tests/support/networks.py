"""Small networks with perturbed weights, and batches to run them on."""

from collections.abc import Sequence

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig, RopeScaling
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights

LLAMA = ModelConfig(
    layers=4, hidden=32, ffn_hidden=48, heads=4, kv_heads=2, vocab_size=101, two_stream_layers=2
)
QWEN3 = ModelConfig(
    layers=3, hidden=32, ffn_hidden=48, heads=4, kv_heads=2, head_dim=16, vocab_size=101,
    two_stream_layers=2, qk_norm="head", attention_bias=True, tie_embeddings=False, rope_theta=1e6,
)  # fmt: skip
GPT2 = ModelConfig(
    layers=4, hidden=32, ffn_hidden=64, heads=4, vocab_size=101, two_stream_layers=2,
    position_embedding="learned_absolute", norm="layernorm", activation="gelu_tanh",
    attention_bias=True, attention_output_bias=True, mlp_bias=True,
)  # fmt: skip
NEOX = ModelConfig(
    layers=3, hidden=32, ffn_hidden=64, heads=4, vocab_size=101, two_stream_layers=2,
    partial_rotary_factor=0.5, parallel_residual=True, norm="layernorm", activation="gelu",
    attention_bias=True, attention_output_bias=True, mlp_bias=True, tie_embeddings=False,
)  # fmt: skip
OLMO2 = ModelConfig(
    layers=3, hidden=32, ffn_hidden=48, heads=4, kv_heads=2, vocab_size=101, two_stream_layers=2,
    norm_position="post", qk_norm="projection", tie_embeddings=False,
    rope_scaling=RopeScaling(
        rope_type="yarn", factor=4.0, beta_slow=0.1, beta_fast=0.5,
        original_max_position_embeddings=16,
    ),
)  # fmt: skip
OTHERS = {"qwen3": QWEN3, "gpt2": GPT2, "neox": NEOX, "olmo2": OLMO2}
SHAPES = {"llama": LLAMA, **OTHERS}


def build(
    model: ModelConfig,
    groups: ProcessGroupCollection,
    *,
    dtype: torch.dtype = torch.float32,
    max_positions: int = 64,
    seed: int = 0,
    parallel: ParallelConfig | None = None,
) -> ArmdModel:
    """Build a network and perturb every parameter, so that no initial 0 or 1 hides a mistake."""
    model = resolve_model(model, max_positions=max_positions)
    config = transformer_config(model, parallel or ParallelConfig(), dtype=dtype)
    network = ArmdModel(model, config, groups=groups)
    init_weights(network, seed=seed)
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            noise = torch.Generator().manual_seed(1000 * seed + index)
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float32)
    return network.to(dtype)


def batch_of(
    tokens: np.ndarray, block: np.ndarray, lengths: Sequence[tuple[int, ...]] | None = None
) -> ArmdBatch:
    """Return samples [b, N+1] as a batch; by default each sample is one document."""
    if lengths is None:
        lengths = [(len(tokens[0]),)] * len(tokens)
    return make_batch(
        tokens, block, lengths=lengths, sample_index=np.arange(tokens.shape[0], dtype=np.int64)
    )


def log_probs_by_position(network: ArmdModel, batch: ArmdBatch) -> list[dict[int, torch.Tensor]]:
    """Return for each sample the log-probability of each target, by its index in the window."""
    log_prob = -network(batch)
    return [
        {
            int(batch.order[b, row + 1]): log_prob[b, row]
            for row in range(log_prob.shape[1])
            if batch.is_target[b, row]
        }
        for b in range(log_prob.shape[0])
    ]
