"""Training steps of AR models of other implementations, at the sizes of ours."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import random

from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.spec import transformer_config
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu


def llama_step(
    model: ResolvedModel, batch: ArmdBatch, *, dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """Return a step (forward and backward) of the Llama of `transformers`, with SDPA attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    length = batch.labels.shape[1]
    sizes: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn_hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": length + 1,
        "tie_word_embeddings": model.tie_embeddings,
        "attn_implementation": "sdpa",
    }
    with device:  # draws the weights there
        network: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    # Weights in the compute type, without autocast, as in our network.
    network = network.to(dtype)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        # The labels of a left-to-right batch are the next tokens already. `labels=` of transformers
        # would shift them once more.
        logits = network(batch.tokens, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten()).backward()

    return step


def megatron_step(
    model: ResolvedModel, batch: ArmdBatch, *, dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """Return a step (forward and backward) of megatron-core's GPTModel with its local layers."""
    config = transformer_config(model, ParallelConfig(), dtype=dtype)
    # With True, megatron-core asks the layer spec for an activation, and the local spec has none.
    config.use_te_activation_func = False
    length = batch.labels.shape[1]
    with _without_cuda_rng():
        # The local layers compute attention as two batched products around a softmax, and hold all
        # scores: no fused kernel.
        network = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=model.vocab_size,
            max_sequence_length=length,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=model.tie_embeddings,
        ).to(device)
        for parameter in network.parameters():
            # Norm weights too, as only a benchmark may: the time does not depend on values.
            torch.nn.init.normal_(parameter, std=model.init_std)
    positions = torch.arange(length, device=device).expand_as(batch.labels)
    # megatron-core masks what is True: keys after the row.
    future = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).triu(1)

    def step() -> None:
        with _without_cuda_rng():
            network.zero_grad(set_to_none=True)
            network(batch.tokens, positions, future, labels=batch.labels).mean().backward()

    return step


@contextlib.contextmanager
def _without_cuda_rng() -> Iterator[None]:
    """Disable the CUDA RNG fork that megatron-core makes around dropout, even with dropout off."""
    tracker: Any = random.get_cuda_rng_tracker()
    fork, tracker.fork = tracker.fork, lambda *_: contextlib.nullcontext()
    try:
        with patch_cuda_for_cpu():
            yield
    finally:
        tracker.fork = fork
