"""The model families of Hugging Face that are networks of ours: a table, and no code per family.

A family says how its config.json spells our model section, and which of its modules hold which of
ours. Whether a module has a bias, a norm or a head of its own follows from the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from armd_scale.checkpoint.hf.packing import Layout, PackedTensor, Shape

GATED_ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu"}
PLAIN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


@dataclass(frozen=True)
class FusedModule:
    """A module that holds several of ours, or one of ours otherwise than as it is."""

    modules: tuple[str, ...]
    layout: Layout = "rows"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family says what our model section says."""

    architecture: str
    """Class of the model in transformers."""
    config_keys: Mapping[str, str]
    """Config key of each key of ours that it leaves open."""
    defaults: Mapping[str, Any]
    """What all its models have in common, where it is not our default."""
    activations: Mapping[str, str]
    """Our name of each activation that it may name; its usual one comes first."""
    activation_key: str = "hidden_act"
    required: Mapping[str, Any] = field(default_factory=dict)
    """Values of config keys without which a model is none of ours."""
    has_partial_rotation: bool = False
    """Whether its rotary embedding may turn a part of a head."""
    base: str
    """Prefix of all modules but the head."""
    modules: Mapping[str, str | FusedModule]
    """Ours in each module of the base; {} stands for the number of a layer."""
    head: str = "lm_head"
    buffers: str = r"(.*\.)?rotary_emb\.inv_freq"
    """Pattern of tensors without weights that older folders hold."""


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
_GPT_NEOX = {
    "embed_in": "embedding",
    "final_layer_norm": "final_norm",
    **_PRE_NORMS,
    "layers.{}.attention.query_key_value": FusedModule(_QKV, "heads"),
    "layers.{}.attention.dense": "layers.{}.attention.linear_proj",
    "layers.{}.mlp.dense_h_to_4h": "layers.{}.mlp.linear_fc1",
    "layers.{}.mlp.dense_4h_to_h": "layers.{}.mlp.linear_fc2",
}
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
    architecture: str, fields: Mapping[str, str] | None = None, **others: Any
) -> Family:
    given = {"defaults": {}, "modules": _LLAMA, **others}
    return Family(
        architecture=architecture,
        config_keys={**_SIZES, **(fields or {})},
        activations=GATED_ACTIVATIONS,
        base="model.",
        **given,
    )


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
    "smollm3": "some of its layers know no positions",
    "gemma": "its norms add one to their weights and its embeddings are scaled",
    "gemma2": "its scores and logits are capped",
    "gemma3_text": "its layers alternate between windows and different rotary bases",
    "mixtral": "its MLPs are mixtures of experts",
    "qwen2_moe": "its MLPs are mixtures of experts",
    "qwen3_moe": "its MLPs are mixtures of experts",
    "olmoe": "its MLPs are mixtures of experts",
    "phimoe": "its MLPs are mixtures of experts",
    "deepseek_v3": "its MLPs are mixtures of experts and its keys are compressed",
    "phi": "its rows share one norm for attention and MLP",
    "gptj": "its rotary embedding turns neighbouring channels",
    "olmo": "its norms have no weights",
    "bloom": "its positions are biases of attention",
    "falcon": "its heads share keys in a layout of their own",
    "opt": "its positions are counted from two",
}
"""Why some well-known families are not in the table."""

ARMD_TENSORS = {
    "query_start.gap.weight": "armd.gap_embedding.weight",
    "query_start.prefix.position_embedding": "armd.prefix.position_embedding.weight",
    "query_start.prefix.scale": "armd.prefix.scale",
    "query_start.vector": "armd.query_embedding",
}
"""Names of the query start's tensors in an interchange folder."""


def family_tensors(
    family: Family, pieces: Mapping[str, Shape], *, layers: int, head_dim: int
) -> list[PackedTensor]:
    """The tensors of a family's folder that hold the given pieces.

    Args:
        family: from the table.
        pieces: of the network, with their shapes.
        layers: of the network.
        head_dim: width of a head.
    """
    tensors = []
    for module, ours in {**_prefixed(family), family.head: "output_layer"}.items():
        joint = FusedModule((ours,)) if isinstance(ours, str) else ours
        for layer in range(layers if "{}" in module else 1):
            for suffix in ("weight", "bias"):
                names = [f"{name.format(layer)}.{suffix}" for name in joint.modules]
                if names[0] not in pieces:
                    continue
                held = {name: pieces[name] for name in names}
                flat = joint.layout == "columns" and suffix == "bias"
                layout = "rows" if flat else joint.layout
                name = f"{module.format(layer)}.{suffix}"
                tensors.append(PackedTensor(name, held, layout, head_dim))
    held = {name for packed in tensors for name in packed.pieces}
    for name in pieces.keys() - held:
        assert name in ARMD_TENSORS, f"{family.architecture} has no place for {name}"
    return tensors


def armd_tensors(pieces: Mapping[str, Shape]) -> list[PackedTensor]:
    """The tensors of an interchange folder that a plain AR one has not."""
    return [
        PackedTensor(name, {piece: pieces[piece]})
        for piece, name in ARMD_TENSORS.items()
        if piece in pieces
    ]


def _prefixed(family: Family) -> dict[str, str | FusedModule]:
    return {family.base + module: ours for module, ours in family.modules.items()}
