"""Model sections of published sizes, for tests that count weights and operations."""

from typing import Any

from armd_scale.config.resolve import ResolvedModel, resolve_model
from armd_scale.config.schema import ModelConfig

GPT2 = {
    "norm": "layernorm",
    "activation": "gelu_tanh",
    "position_embedding": "learned_absolute",
    "max_positions": 1024,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
}


def model(layers: int, hidden: int, ffn_hidden: int, heads: int, **more: Any) -> ResolvedModel:
    """A resolved model section of 100 tokens and, with a table of positions, 17 of them."""
    config = ModelConfig(layers=layers, hidden=hidden, ffn_hidden=ffn_hidden, heads=heads, **more)
    return resolve_model(config, vocab_size=100, max_positions=17)


GPT2_SMALL = model(12, 768, 3072, 12, **GPT2)
GPT2_MEDIUM = model(24, 1024, 4096, 16, **GPT2)
QWEN2_HALF_B = model(24, 896, 4864, 14, kv_heads=2, attention_bias=True)
QWEN3_2B = model(28, 2048, 6144, 16, kv_heads=8, head_dim=128, qk_norm="head")
LLAMA3_8B = model(32, 4096, 14336, 32, kv_heads=8, tie_embeddings=False)
