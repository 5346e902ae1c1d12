"""The supported Hugging Face model families: one table row each, no code per family.

A row says which config.json keys correspond to our model section, and which of the family's modules
hold which of ours. Whether a module has a bias, a norm or a head of its own follows from the
network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from armd_scale.checkpoint.hf.packing import Layout, PackedTensor, Shape

GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu"}
# The last three are the same tanh approximation, in three implementations of transformers.
PLAIN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


@dataclass(frozen=True)
class FusedModule:
    """A module that holds several of our modules, or one of them in another layout."""

    modules: tuple[str, ...]
    layout: Layout = "rows"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's config.json and tensor names map to ours."""

    architecture: str
    """Class of the model in transformers."""
    config_keys: Mapping[str, str]
    """The family's config key by our model key, for all keys that vary within the family."""
    defaults: Mapping[str, Any]
    """Model keys with one value for the whole family, where it is not our default."""
    activations: Mapping[str, str]
    """Our activation by the family's name for it; the usual one comes first."""
    activation_key: str = "hidden_act"
    required: Mapping[str, Any] = field(default_factory=dict)
    """Config keys that must have these values; other values are not supported."""
    has_partial_rotation: bool = False
    """Whether the rotary embedding may rotate only a part of each head."""
    base: str
    """Prefix of all modules but the LM head."""
    modules: Mapping[str, str | FusedModule]
    """Our module, or modules, by the family's module below `base`; {} is the layer index."""
    head: str = "lm_head"
    buffers: str = r"(.*\.)?rotary_emb\.inv_freq"
    """Pattern of tensors in older folders that are not weights."""

    @property
    def embedding(self) -> str:
        """Full name of the token embedding module."""
        return self.base + next(name for name, own in self.modules.items() if own == "embedding")

    @property
    def has_rotary(self) -> bool:
        """Whether positions are encoded by rotary embedding, not by a table."""
        return self.defaults.get("position_embedding") != "learned_absolute"


# The rows below are composed of these parts. Keys on the left of config mappings are ours, and on
# the right the family's; in module mappings the family's are on the left.
_SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn_hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
_ATTENTION_BIASES = {
    "attention_bias": "attention_bias",
    "attention_output_bias": "attention_bias",
}
_ENDS = {"embed_tokens": "embedding", "norm": "final_norm"}
_ATTENTION = {
    "layers.{}.self_attn.q_proj": "layers.{}.attention.linear_q",
    "layers.{}.self_attn.k_proj": "layers.{}.attention.linear_k",
    "layers.{}.self_attn.v_proj": "layers.{}.attention.linear_v",
    "layers.{}.self_attn.o_proj": "layers.{}.attention.linear_proj",
    "layers.{}.self_attn.q_norm": "layers.{}.attention.q_norm",
    "layers.{}.self_attn.k_norm": "layers.{}.attention.k_norm",
}
_MLP = {
    "layers.{}.mlp.gate_proj": "layers.{}.mlp.linear_gate",
    "layers.{}.mlp.up_proj": "layers.{}.mlp.linear_up",
    "layers.{}.mlp.down_proj": "layers.{}.mlp.linear_fc2",
}
_PRE_NORMS = {
    "layers.{}.input_layernorm": "layers.{}.attention_norm",
    "layers.{}.post_attention_layernorm": "layers.{}.mlp_norm",
}
# OLMo 2 normalizes the output of attention and MLP, not their input. The name of the first norm is
# the one under which Llama has the second.
_POST_NORMS = {
    "layers.{}.post_attention_layernorm": "layers.{}.attention_norm",
    "layers.{}.post_feedforward_layernorm": "layers.{}.mlp_norm",
}
_LLAMA = {**_ENDS, **_ATTENTION, **_MLP, **_PRE_NORMS}
_QKV = tuple(f"layers.{{}}.attention.linear_{part}" for part in "qkv")
_PHI3 = {
    **_ENDS,
    **_PRE_NORMS,
    "layers.{}.self_attn.qkv_proj": FusedModule(_QKV),
    "layers.{}.self_attn.o_proj": "layers.{}.attention.linear_proj",
    "layers.{}.mlp.gate_up_proj": FusedModule(
        ("layers.{}.mlp.linear_gate", "layers.{}.mlp.linear_up")
    ),
    "layers.{}.mlp.down_proj": "layers.{}.mlp.linear_fc2",
}
# GPT-NeoX fuses query, key and value head by head: [q of head 0, k of head 0, v of head 0, q of
# head 1, ...]. Phi-3 and GPT-2 store all of q, then all of k, then all of v.
_GPT_NEOX = {
    "embed_in": "embedding",
    "final_layer_norm": "final_norm",
    **_PRE_NORMS,
    "layers.{}.attention.query_key_value": FusedModule(_QKV, "heads"),
    "layers.{}.attention.dense": "layers.{}.attention.linear_proj",
    "layers.{}.mlp.dense_h_to_4h": "layers.{}.mlp.linear_fc1",
    "layers.{}.mlp.dense_4h_to_h": "layers.{}.mlp.linear_fc2",
}
# GPT-2 uses Conv1D modules, whose weights are [in, out]: transposed against nn.Linear.
_GPT2 = {
    "wte": "embedding",
    "wpe": "position_embedding",
    "ln_f": "final_norm",
    "h.{}.ln_1": "layers.{}.attention_norm",
    "h.{}.ln_2": "layers.{}.mlp_norm",
    "h.{}.attn.c_attn": FusedModule(_QKV, "columns"),
    "h.{}.attn.c_proj": FusedModule(("layers.{}.attention.linear_proj",), "columns"),
    "h.{}.mlp.c_fc": FusedModule(("layers.{}.mlp.linear_fc1",), "columns"),
    "h.{}.mlp.c_proj": FusedModule(("layers.{}.mlp.linear_fc2",), "columns"),
}


def _like_llama(
    architecture: str, config_keys: Mapping[str, str] | None = None, **others: Any
) -> Family:
    """A family like Llama, with more config keys, and with other fields of `Family` replaced."""
    options = {"defaults": {}, "modules": _LLAMA, **others}
    return Family(
        architecture=architecture,
        config_keys={**_SIZES, **(config_keys or {})},
        activations=GATED_ACTIVATIONS,
        base="model.",
        **options,
    )


# Order matters for export: a model without a source folder gets the first family that fits.
FAMILIES = {
    "llama": _like_llama("LlamaForCausalLM", {**_ATTENTION_BIASES, "mlp_bias": "mlp_bias"}),
    "mistral": _like_llama("MistralForCausalLM"),
    "qwen2": _like_llama("Qwen2ForCausalLM", defaults={"attention_bias": True}),
    "qwen3": _like_llama("Qwen3ForCausalLM", _ATTENTION_BIASES, defaults={"qk_norm": "head"}),
    "phi3": _like_llama("Phi3ForCausalLM", modules=_PHI3, has_partial_rotation=True),
    "olmo2": _like_llama(
        "Olmo2ForCausalLM",
        _ATTENTION_BIASES,
        defaults={"qk_norm": "projection", "norm_position": "post"},
        modules={**_ENDS, **_ATTENTION, **_MLP, **_POST_NORMS},
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        config_keys={
            **{key: name for key, name in _SIZES.items() if key not in ("kv_heads", "head_dim")},
            **_ATTENTION_BIASES,
            "norm_eps": "layer_norm_eps",
            "parallel_residual": "use_parallel_residual",
        },
        defaults={"norm": "layernorm", "mlp_bias": True},
        activations=PLAIN_ACTIVATIONS,
        has_partial_rotation=True,
        base="gpt_neox.",
        modules=_GPT_NEOX,
        head="embed_out",
        buffers=r"(.*\.)?attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        config_keys={
            "layers": "n_layer",
            "hidden": "n_embd",
            "ffn_hidden": "n_inner",
            "heads": "n_head",
            "vocab_size": "vocab_size",
            "norm_eps": "layer_norm_epsilon",
            "tie_embeddings": "tie_word_embeddings",
            "init_std": "initializer_range",
        },
        defaults={
            "position_embedding": "learned_absolute",
            "norm": "layernorm",
            "attention_bias": True,
            "attention_output_bias": True,
            "mlp_bias": True,
        },
        activations={"gelu_new": "gelu_tanh", **PLAIN_ACTIVATIONS},
        activation_key="activation_function",
        required={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        base="transformer.",
        modules=_GPT2,
        buffers=r"(.*\.)?h\.\d+\.attn\.(bias|masked_bias)",
    ),
}

UNSUPPORTED = {
    "smollm3": "some of its layers have no position embedding",
    "gemma": "its norms add one to their weights and its embeddings are scaled",
    "gemma2": "its attention scores and logits are soft-capped",
    "gemma3_text": "its layers alternate between sliding windows and different rotary bases",
    "mixtral": "its MLPs are mixtures of experts",
    "qwen2_moe": "its MLPs are mixtures of experts",
    "qwen3_moe": "its MLPs are mixtures of experts",
    "olmoe": "its MLPs are mixtures of experts",
    "phimoe": "its MLPs are mixtures of experts",
    "deepseek_v3": "its MLPs are mixtures of experts and its keys are low-rank",
    "phi": "attention and MLP share one norm in each layer",
    "gptj": "its rotary embedding rotates neighboring channels",
    "olmo": "its norms have no weights",
    "bloom": "its positions are attention biases (ALiBi)",
    "falcon": "its heads share keys in a layout that is not supported",
    "opt": "its position table has an offset of two",
}
"""Reason why some well-known families are not in the table."""

PREFIX_POSITIONS, PREFIX_SCALE = "query_start.prefix.position_embedding", "query_start.prefix.scale"
ARMD_TENSORS = {
    "query_start.gap.weight": "armd.gap_embedding.weight",
    PREFIX_POSITIONS: "armd.prefix.position_embedding.weight",
    PREFIX_SCALE: "armd.prefix.scale",
    "query_start.vector": "armd.query_embedding",
}
"""Name in an interchange folder of each tensor of the query initialization."""


def family_tensors(
    family: Family, pieces: Mapping[str, Shape], *, layers: int, head_dim: int
) -> list[PackedTensor]:
    """Return the tensors of a family's folder that contain the pieces of a network.

    Args:
        family: a row of the table.
        pieces: pieces of the network with their shapes.
        layers: number of layers.
        head_dim: rows of an attention head.
    """
    tensors = []
    modules = {family.base + module: own for module, own in family.modules.items()}
    for module, own in {**modules, family.head: "output_layer"}.items():
        fused = FusedModule((own,)) if isinstance(own, str) else own
        for layer in range(layers if "{}" in module else 1):
            for suffix in ("weight", "bias"):
                names = [f"{name.format(layer)}.{suffix}" for name in fused.modules]
                # The network decides what exists: no bias, no q_norm, or a tied head is no piece.
                if names[0] not in pieces:
                    continue
                # A bias is a vector, so the transposed layout of GPT-2's weights is plain rows.
                is_plain = fused.layout == "columns" and suffix == "bias"
                layout = "rows" if is_plain else fused.layout
                name = f"{module.format(layer)}.{suffix}"
                shapes = {name: pieces[name] for name in names}
                tensors.append(PackedTensor(name, shapes, layout, head_dim))
    mapped = {name for packed in tensors for name in packed.pieces}
    for name in pieces.keys() - mapped:
        assert name in ARMD_TENSORS, f"{family.architecture} has no tensor for {name}"
    return tensors


def armd_tensors(pieces: Mapping[str, Shape]) -> list[PackedTensor]:
    """Return the tensors that an interchange folder has and a plain AR folder does not."""
    return [
        PackedTensor(name, {piece: pieces[piece]})
        for piece, name in ARMD_TENSORS.items()
        if piece in pieces
    ]
