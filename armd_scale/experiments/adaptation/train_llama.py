"""Train a small Llama of `transformers` with a plain loop: the pretrained model of an experiment.

It uses neither this package's network nor its optimizer, so the converted model is independent of
them. Its samples are those that a recipe would train on.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from armd_scale.config.derived import tokens_per_step
from armd_scale.config.resolve import resolve_kv_heads
from armd_scale.config.schema import Recipe
from armd_scale.data.sample_stream import SampleStream, open_sample_stream
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import TrainingError
from armd_scale.files import atomic_directory
from armd_scale.log import ProgressBar
from armd_scale.order.policies import LeftToRight

EOD = "<|endoftext|>"
# The values of recipes/adapt_cpu.yaml, so that the Llama is trained as it is fine-tuned later.
BETAS, WEIGHT_DECAY, CLIP_GRAD = (0.9, 0.95), 0.1, 1.0
RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")
WARMUP_FRACTION, FINAL_FRACTION = 0.07, 0.1
"""Of the steps, and of the peak learning rate."""


def write_byte_tokenizer(folder: Path) -> None:
    """Write an HF tokenizer with one token per byte and an end-of-document token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # 256 letters, one for each byte. There are no merges, so a token is a byte.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    # No space is added in front of a text: encoding and decoding keep every byte.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOD).save_pretrained(folder)


def train_llama(
    recipe: Recipe, folder: Path, *, tokenizer: Path, steps: int, learning_rate: float
) -> None:
    """Train a Llama of the recipe's size on its batches, left to right, and save an HF folder.

    Args:
        recipe: defines size, data, seed and batch; its order and optim sections are not used.
        folder: the HF folder to write; it appears when training is complete.
        tokenizer: HF tokenizer of the data, copied into the folder.
        steps: optimizer steps.
        learning_rate: peak, reached after a short warm-up and followed by a cosine decay.

    Raises:
        TrainingError: the folder exists already.
    """
    from transformers import LlamaForCausalLM

    if folder.exists():
        raise TrainingError(
            f"the folder of a new model must not exist yet (got {folder}): choose another one, or "
            "remove it"
        )
    torch.manual_seed(recipe.run.seed)
    text_tokenizer = load_tokenizer(tokenizer)
    network = LlamaForCausalLM(_config(recipe, vocab_size=text_tokenizer.vocab_size))
    _scale_residual_init(network)
    optimizer = torch.optim.AdamW(_parameter_groups(network), lr=learning_rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, steps)
    )
    samples = open_sample_stream(recipe.data, order=LeftToRight(), seed=recipe.run.seed)
    with ProgressBar("training a Llama", steps, unit="steps") as progress:
        for step in range(steps):
            tokens = _batch(samples, recipe.train.global_batch, step)
            # The network shifts the labels itself: the mean over the N targets of N + 1 tokens.
            loss = network(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRAD)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.advance(note=f"loss {loss.item():.4f}")
    with atomic_directory(folder, error_class=TrainingError) as partial:
        network.save_pretrained(partial)
        text_tokenizer.save(partial)
        read = {"steps": steps, "tokens": steps * tokens_per_step(recipe)}
        (partial / "training.json").write_text(json.dumps(read) + "\n")


@torch.no_grad()
def score_llama(folder: Path, recipe: Recipe) -> float:
    """Return the nats per token of an HF model on a recipe's validation windows.

    Computed by `transformers` alone, left to right.

    Raises:
        ShardError: data.valid is missing, damaged or shorter than a window.
    """
    from transformers import AutoModelForCausalLM

    assert recipe.data.valid is not None
    windows = TokenWindows(recipe.data.valid, recipe.data.seq_length)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # The first windows, which the evaluations of the recipe use too.
    total, count = 0.0, min(recipe.eval.samples, windows.num_windows)
    for index in range(count):
        tokens = torch.from_numpy(windows.window(index))[None]
        logits = network(input_ids=tokens[:, :-1]).logits[0]
        # In float64: the result is compared with the converted model to 1e-5 nats. All windows have
        # as many targets, so the mean of their means is the mean over targets.
        total += cross_entropy(logits.double(), tokens[0, 1:]).item() / count
    return total


def _config(recipe: Recipe, *, vocab_size: int):
    from transformers import LlamaConfig

    model = recipe.model
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.ffn_hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=resolve_kv_heads(model),
        max_position_embeddings=recipe.data.seq_length + 1,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        # The byte tokenizer has its end-of-document token last, and no other special token.
        bos_token_id=None,
        eos_token_id=vocab_size - 1,
    )


@torch.no_grad()
def _scale_residual_init(network: nn.Module) -> None:
    """Divide the initial weights that write to the residual stream by sqrt(2 x layers), as GPT-2.

    `transformers` does not; without it the Llama is 0.18 nats worse after 150 steps.
    """
    # Two in each layer: there are 2 x layers of them.
    writers = [p for name, p in network.named_parameters() if name.endswith(RESIDUAL_WRITERS)]
    for parameter in writers:
        parameter /= math.sqrt(len(writers))


def _parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return AdamW groups: matrices with weight decay, vectors without."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _learning_rate_factor(step: int, steps: int) -> float:
    """Return the learning rate over its peak: linear warm-up, then cosine to FINAL_FRACTION."""
    warmup = max(1, round(WARMUP_FRACTION * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(math.pi * progress)) / 2


def _batch(samples: SampleStream, size: int, step: int) -> Tensor:
    """Return the tokens [size, N + 1] that this package's trainer would use in a step."""
    indices = range(step * size, (step + 1) * size)
    return torch.from_numpy(
        np.stack([samples.sample(index, step=step).tokens for index in indices])
    )
