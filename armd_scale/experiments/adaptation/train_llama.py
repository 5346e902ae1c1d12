"""A small Llama of `transformers`, trained by a plain loop: the pretrained model of an experiment.

Nothing of this package's network or optimizer takes part, so what is converted afterwards is a
model as anybody else would have made it. Its text is that of a recipe, sample by sample.
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
BETAS, WEIGHT_DECAY, CLIP_GRAD = (0.9, 0.95), 0.1, 1.0
RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")
WARMUP_FRACTION, FLOOR = 0.07, 0.1


def write_byte_tokenizer(folder: Path) -> None:
    """Writes an HF tokenizer that has a token for each byte, and one more to end documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOD).save_pretrained(folder)


def train_llama(
    recipe: Recipe, folder: Path, *, tokenizer: Path, steps: int, learning_rate: float
) -> None:
    """Trains a Llama of the recipe's shape on its batches, left to right, and saves it as HF does.

    Args:
        recipe: gives shape, data, seed and batch; its order and optim sections play no part.
        folder: the HF folder to write; it appears when the model is trained.
        tokenizer: HF tokenizer of the data, saved along.
        steps: optimizer steps.
        learning_rate: peak of half a cosine after a short warm-up.

    Raises:
        TrainingError: there is such a folder already.
    """
    from transformers import LlamaForCausalLM

    if folder.exists():
        raise TrainingError(
            f"the folder of a new model must not exist yet, and {folder} does: name another one, "
            "or remove it"
        )
    torch.manual_seed(recipe.run.seed)
    words = load_tokenizer(tokenizer)
    network = LlamaForCausalLM(_config(recipe, vocab_size=words.vocab_size))
    _narrow_residual(network)
    optimizer = torch.optim.AdamW(_groups(network), lr=learning_rate, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    samples = open_sample_stream(recipe.data, order=LeftToRight(), seed=recipe.run.seed)
    with ProgressBar("training a Llama", steps, unit="steps") as track:
        for step in range(steps):
            tokens = _batch(samples, recipe.train.global_batch, step)
            loss = network(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRAD)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            track.advance(note=f"loss {loss.item():.4f}")
    with atomic_directory(folder, error_class=TrainingError) as partial:
        network.save_pretrained(partial)
        words.save(partial)
        read = {"steps": steps, "tokens": steps * tokens_per_step(recipe)}
        (partial / "training.json").write_text(json.dumps(read) + "\n")


@torch.no_grad()
def score_llama(folder: Path, recipe: Recipe) -> float:
    """Nats per token of an HF model on the held-out windows of a recipe, by `transformers` alone.

    Raises:
        ShardError: data.valid is missing, damaged or shorter than a window.
    """
    from transformers import AutoModelForCausalLM

    assert recipe.data.valid is not None
    windows = TokenWindows(recipe.data.valid, recipe.data.seq_length)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, min(recipe.eval.samples, windows.num_windows)
    for number in range(count):
        tokens = torch.from_numpy(windows.window(number))[None]
        logits = network(input_ids=tokens[:, :-1]).logits[0]
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
        bos_token_id=None,
        eos_token_id=vocab_size - 1,
    )


@torch.no_grad()
def _narrow_residual(network: nn.Module) -> None:
    """Makes what writes to the residual stream smaller by sqrt(2 x layers), as GPT-2 starts.

    `transformers` leaves it out, and the Llama would be a weaker one: 0.18 nats after 150 steps.
    """
    writers = [p for name, p in network.named_parameters() if name.endswith(RESIDUAL_WRITERS)]
    for parameter in writers:
        parameter /= math.sqrt(len(writers))


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors, which do not."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine to `FLOOR`."""
    warmup = max(1, round(WARMUP_FRACTION * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2


def _batch(samples: SampleStream, size: int, step: int) -> Tensor:
    """Tokens [size, N + 1] of a step, the samples that this package's trainer would take."""
    numbers = range(step * size, (step + 1) * size)
    return torch.from_numpy(np.stack([samples.sample(k, step=step).tokens for k in numbers]))
