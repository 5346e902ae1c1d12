"""Small Hugging Face folders written by transformers, with weights far from initial values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

VOCAB = 101
_LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_NEOX = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA | {"rope_parameters": _LLAMA3_ROPE}),
    "llama-biases": (
        "llama",
        _LLAMA
        | {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "llama-linear": (
        "llama",
        _LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral": ("mistral", _LLAMA | {"sliding_window": None, "head_dim": 16}),
    "mistral-window": ("mistral", _LLAMA | {"sliding_window": 24}),
    "qwen2": ("qwen2", _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 16, "rope_parameters": _YARN_ROPE}),
    "phi3": (
        "phi3",
        _LLAMA
        | {
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            }
        },
    ),
    "olmo2": ("olmo2", _LLAMA),
    "gpt_neox": ("gpt_neox", _NEOX),
    "gpt_neox-serial": (
        "gpt_neox", _NEOX | {"use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-untied": ("gpt2", _GPT2 | {"n_inner": 48, "tie_word_embeddings": False}),
}  # fmt: skip


def make_model(name: str, **changes: Any) -> Any:
    """Build the model of a configuration, with noise added to all parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = CONFIGS[name]
    config = AutoConfig.for_model(kind, **(values | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=noise)
    return model


def write_folder(folder: Path, name: str, **options: Any) -> Path:
    """Write the model of a configuration with save_pretrained.

    Args:
        folder: output folder.
        name: key of CONFIGS.
        options: arguments of save_pretrained.
    """
    make_model(name).save_pretrained(folder, **options)
    return folder


def write_byte_tokenizer(folder: Path, texts: Sequence[str], *, adds_bos: bool) -> int:
    """Write a byte-level BPE tokenizer like GPT-2's, readable by transformers and by us.

    Args:
        folder: folder of the model.
        texts: texts to train the BPE merges on.
        adds_bos: whether the tokenizer puts BOS in front of every text, as Llama's does.

    Returns:
        Number of tokens in the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    whole.save_pretrained(folder)
    return len(whole)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer.json with fewer tokens than the models, as for padded vocabularies."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
