"""The rows of the tables that checkpoints of one's own earn."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from armd_scale.checkpoint.pretrained import open_model
from armd_scale.config.schema import ParallelConfig, Recipe
from armd_scale.errors import ArmdError
from armd_scale.eval.data import require_tokenizer
from armd_scale.eval.evaluate import EvalRequest, evaluate_checkpoint
from armd_scale.eval.likelihood import Likelihood
from armd_scale.eval.paper.tables import BENCHMARKS, GENERATIVE_COLUMNS, Row
from armd_scale.eval.tasks.generative_perplexity import (
    GeneratedText,
    GenerativeQuality,
    generative_perplexity,
)
from armd_scale.eval.tasks.reference_lm import ReferenceLM
from armd_scale.generation import Sampling, Strategy, generate_tokens
from armd_scale.generation.text import encode_prompt, text_records
from armd_scale.order.policies import Progressive
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups

ORDERS = ("l2r", "strided-ar:2", "strided-ar:4", "random")


def benchmark_texts(named: Sequence[str]) -> dict[str, Path]:
    """Reads NAME=FILE for columns of the zero-shot table.

    Raises:
        ArmdError: something else, or a name that is no column's.
    """
    texts = {}
    for pair in named:
        name, sign, file = pair.partition("=")
        if not sign or name not in BENCHMARKS:
            raise ArmdError(
                f"--text must be NAME=FILE with NAME one of {', '.join(BENCHMARKS)}, got '{pair}': "
                "write --text PTB=ptb.test.txt"
            )
        texts[name] = Path(file)
    return texts


def zero_shot_row(checkpoint: str, texts: Mapping[str, Path], environment: DistributedEnv) -> Row:
    """Left-to-right perplexity per token of each benchmark text; errors as `evaluate_checkpoint`'s.

    Windows do not overlap, as in the published figures.
    """
    figures = {}
    for name, path in texts.items():
        request = EvalRequest(
            checkpoint=checkpoint, text=path, detokenise=BENCHMARKS[name], order="l2r"
        )
        figures[name] = _perplexity(request, environment)
    return Row(Path(checkpoint).name, figures)


def generative_rows(
    checkpoint: str,
    judge: ReferenceLM,
    environment: DistributedEnv,
    *,
    streams: Sequence[int] = (1, 2, 4),
    num_samples: int,
    num_tokens: int,
) -> list[Row]:
    """Quality of texts from a document's start, a row for each S.

    Raises:
        ArmdError: a checkpoint without tokenizer, or a length that the model cannot serve.
    """
    opened = open_model(checkpoint)
    tokenizer = require_tokenizer(opened.checkpoint)
    rows = []
    with process_groups(environment, ParallelConfig()) as groups:
        network = opened.load_network(groups=groups, device=environment.device, dtype=torch.float32)
        for s in streams:
            made = generate_tokens(
                network,
                [encode_prompt(None, tokenizer)] * num_samples,
                num_tokens=num_tokens,
                strategy=Strategy(streams=s),
                sampling=Sampling(seed=opened.checkpoint.recipe.run.seed),
            )
            records = text_records(made, tokenizer)
            quality = generative_perplexity(
                [GeneratedText(r.text, r.tokens) for r in records], judge
            )
            rows.append(Row(f"{Path(checkpoint).name}, S = {s}", _figures(quality)))
    return rows


def _figures(quality: GenerativeQuality) -> dict[str, float]:
    """By column; of a single text, which has none to compare it with, no self-BLEU."""
    variety = quality.diversity
    figures = (
        quality.perplexity,
        variety.entropy_bits,
        variety.distinct_1,
        variety.distinct_2,
        variety.distinct_3,
        variety.self_bleu,
    )
    named = zip(GENERATIVE_COLUMNS, figures, strict=True)
    return {name: figure for name, figure in named if figure is not None}


def ablation_row(
    checkpoint: str, data: str, environment: DistributedEnv, *, samples: int | None, of: str
) -> Row:
    """Held-out perplexity under each of ORDERS, labelled by what the ablation is of.

    Args:
        checkpoint: a checkpoint or run.
        data: prefix of held-out shards.
        environment: this process's place.
        samples: windows; None: all.
        of: `ablation-two-stream` or `ablation-rho`.
    """
    figures = {
        order: _perplexity(
            EvalRequest(checkpoint=checkpoint, data=data, order=order, samples=samples), environment
        )
        for order in ORDERS
    }
    label = _ablation_label(open_model(checkpoint).checkpoint.recipe, of)
    return Row(f"{Path(checkpoint).name}: {label}", figures)


def _ablation_label(recipe: Recipe, of: str) -> str:
    if of == "ablation-two-stream":
        return f"{recipe.model.two_stream_layers} of {recipe.model.layers} layers two-stream"
    order = recipe.order
    return f"rho {order.rho}" if isinstance(order, Progressive) else f"order {order.policy}"


def _perplexity(request: EvalRequest, environment: DistributedEnv) -> float:
    found = evaluate_checkpoint(request, environment)
    assert isinstance(found, Likelihood)
    return found.perplexity
