"""Measure the rows of the paper's tables for given checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from armd_scale.checkpoint.pretrained import open_model
from armd_scale.config.schema import ParallelConfig, Recipe
from armd_scale.errors import ArmdError
from armd_scale.eval.data import require_tokenizer
from armd_scale.eval.evaluate import evaluate_checkpoint
from armd_scale.eval.likelihood import Likelihood
from armd_scale.eval.paper.tables import BENCHMARKS, GENERATIVE_COLUMNS, Row
from armd_scale.eval.request import EvalRequest
from armd_scale.eval.tasks.generative_perplexity import (
    GeneratedText,
    GenerativeQuality,
    generative_perplexity,
    read_texts,
)
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.generation import Sampling, Strategy, generate_tokens
from armd_scale.generation.output_rules import rules_of
from armd_scale.generation.text import encode_prompt, text_records
from armd_scale.order.policies import Progressive
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups

ORDERS = ("l2r", "strided:2", "strided:4", "random")
"""Orders of the ablation tables; `strided:S` is what decoding in S streams samples from."""

Ablation: TypeAlias = Literal["ablation-two-stream", "ablation-rho"]


def parse_benchmark_texts(arguments: Sequence[str]) -> dict[str, Path]:
    """Parse NAME=FILE arguments into files by column of the zero-shot table.

    Raises:
        ArmdError: an argument has another form, or its name is not in BENCHMARKS.
    """
    texts = {}
    for argument in arguments:
        name, equals, file = argument.partition("=")
        if not equals or name not in BENCHMARKS:
            raise ArmdError(
                f"--text must be NAME=FILE with NAME one of {', '.join(BENCHMARKS)} (got "
                f"'{argument}'): write, for example, --text PTB=ptb.test.txt"
            )
        texts[name] = Path(file)
    return texts


def zero_shot_row(checkpoint: str, texts: Mapping[str, Path], environment: DistributedEnv) -> Row:
    """Measure left-to-right perplexity per token of each benchmark text.

    Args:
        checkpoint: a checkpoint, a run folder or a Hugging Face folder.
        texts: file of each benchmark, as distributed.
        environment: this process's rank and device.

    Raises:
        ArmdError: as `evaluate_checkpoint`.
    """
    figures = {}
    for name, path in texts.items():
        # No stride: windows do not overlap in the published figures either.
        request = EvalRequest(
            checkpoint=checkpoint, text=path, detokenizer=BENCHMARKS[name], order="l2r"
        )
        figures[name] = _perplexity(request, environment)
    return Row(Path(checkpoint).name, figures)


def generative_rows(
    checkpoint: str,
    reference_lm: ReferenceLM,
    environment: DistributedEnv,
    *,
    streams: Sequence[int] = (1, 2, 4),
    num_samples: int,
    num_tokens: int,
) -> list[Row]:
    """Generate unconditional texts with each number of streams, and measure their quality.

    Args:
        checkpoint: a checkpoint, a run folder or a Hugging Face folder.
        reference_lm: the model that scores the texts.
        environment: this process's rank and device.
        streams: one row for each.
        num_samples: texts per row.
        num_tokens: length of the texts.

    Raises:
        ArmdError: the checkpoint has no tokenizer, or the length exceeds its positions.
    """
    folder = open_model(checkpoint)
    tokenizer = require_tokenizer(folder.checkpoint)
    # An empty prompt is the token that texts start with: they are unconditional samples.
    prompt = encode_prompt(None, tokenizer)
    rows = []
    with process_groups(environment, ParallelConfig()) as groups:
        # float32 whatever the model was trained in: bf16 rounding would change sampled tokens.
        network = folder.load_network(groups=groups, device=environment.device, dtype=torch.float32)
        for num_streams in streams:
            output = generate_tokens(
                network,
                [prompt.tokens] * num_samples,
                num_tokens=num_tokens,
                strategy=Strategy(streams=num_streams),
                sampling=Sampling(seed=folder.checkpoint.recipe.run.seed),
                rules=rules_of(tokenizer),
            )
            texts = [GeneratedText(r.text, r.tokens) for r in text_records(output, prompt)]
            quality = generative_perplexity(texts, reference_lm)
            rows.append(Row(f"{Path(checkpoint).name}, S = {num_streams}", _figures(quality)))
    return rows


def texts_row(path: Path, reference_lm: ReferenceLM) -> Row:
    """Measure the quality of texts that `tools/generate.py --json` wrote.

    Args:
        path: the file, whose name without suffix is the row's label.
        reference_lm: the model that scores the texts.

    Raises:
        ArmdError: the file cannot be read, or has an empty text.
    """
    return Row(path.stem, _figures(generative_perplexity(read_texts(path), reference_lm)))


def ablation_row(
    checkpoint: str,
    data: str,
    environment: DistributedEnv,
    *,
    samples: int | None,
    ablation: Ablation,
) -> Row:
    """Measure held-out perplexity under each of ORDERS.

    Args:
        checkpoint: a checkpoint, a run folder or a Hugging Face folder.
        data: path of held-out shards without its ending.
        environment: this process's rank and device.
        samples: number of windows; None: all.
        ablation: which setting the checkpoints differ in; it becomes the row's label.

    Raises:
        ArmdError: as `evaluate_checkpoint`.
    """
    figures = {
        order: _perplexity(
            EvalRequest(checkpoint=checkpoint, data=data, order=order, samples=samples), environment
        )
        for order in ORDERS
    }
    # The orders are fixed, but the checkpoints differ in what they were trained on: the label says
    # which setting the table varies.
    label = _ablation_label(open_model(checkpoint).checkpoint.recipe, ablation)
    return Row(f"{Path(checkpoint).name}: {label}", figures)


def _figures(quality: GenerativeQuality) -> dict[str, float]:
    """Figures by column; self-BLEU is missing for a single text."""
    metrics = quality.diversity
    figures = (
        quality.perplexity,
        metrics.entropy_bits,
        metrics.distinct_1,
        metrics.distinct_2,
        metrics.distinct_3,
        metrics.self_bleu,
    )
    by_column = zip(GENERATIVE_COLUMNS, figures, strict=True)
    return {name: figure for name, figure in by_column if figure is not None}


def _ablation_label(recipe: Recipe, ablation: Ablation) -> str:
    if ablation == "ablation-two-stream":
        return f"{recipe.model.two_stream_layers} of {recipe.model.layers} layers two-stream"
    order = recipe.order
    return f"rho {order.rho}" if isinstance(order, Progressive) else f"order {order.policy}"


def _perplexity(request: EvalRequest, environment: DistributedEnv) -> float:
    result = evaluate_checkpoint(request, environment)
    assert isinstance(result, Likelihood)
    return result.perplexity
