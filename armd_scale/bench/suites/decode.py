"""Tokens per second of decoding in streams, with verified drafts, and by `transformers`."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armd_scale.bench.table import Row
from armd_scale.checkpoint.pretrained import load_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.generation import Sampling, Strategy, generate_tokens
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

PROMPT = np.zeros(1, dtype=np.int64)  # one token, so that nearly all of the text is generated


def measure_decoding(checkpoint: str, tokens: int, repeats: int, hf: Path | None) -> list[Row]:
    """Run `compare_decoding` on a checkpoint; returns a table with ratios to one stream."""
    with load_for_decoding(checkpoint) as network:
        results = compare_decoding(network, num_tokens=tokens, repeats=repeats, hf_folder=hf)
    baseline = results["streams 1"]["tokens_per_second"]
    return [
        {
            "case": name,
            "rounds": result["rounds"],
            "tokens/s": result["tokens_per_second"],
            "ratio": result["tokens_per_second"] / baseline,
            "drafts accepted": (
                "" if result["acceptance_rate"] is None else result["acceptance_rate"]
            ),
        }
        for name, result in results.items()
    ]


@contextmanager
def load_for_decoding(checkpoint: str) -> Iterator[ArmdModel]:
    """Yield the network of a checkpoint in a job of one process."""
    environment = read_environment()
    with process_groups(environment, ParallelConfig()) as groups:
        yield load_model(
            checkpoint, groups=groups, device=environment.device, dtype=torch.float32
        ).network


def compare_decoding(
    network: ArmdModel,
    *,
    streams: Sequence[int] = (1, 2, 4, 8),
    speculative: Sequence[int] = (4,),
    num_tokens: int = 256,
    repeats: int = 3,
    sampling: Sampling | None = None,
    hf_folder: Path | None = None,
) -> dict[str, Any]:
    """Measure tokens per second of one text in several cases: medians of repeats in turn.

    Args:
        network: the model.
        streams: numbers of streams to decode in without verification.
        speculative: numbers of streams to decode in with verified drafts, one draft per stream.
        num_tokens: length of the text.
        repeats: timed repeats of each case.
        sampling: temperature and filters; 0.8 and top-p 0.95 if None.
        hf_folder: the same weights as a plain AR folder, to run `generate` of transformers on.

    Returns:
        For each case `{"tokens_per_second", "rounds", "acceptance_rate"}`, ready for JSON.
    """
    strategies = {f"streams {s}": Strategy(streams=s) for s in streams}
    strategies |= {
        f"speculative {s}, streams {s}": Strategy(streams=s, speculative=s) for s in speculative
    }
    sampling = sampling or Sampling(temperature=0.8, top_p=0.95)
    rates: dict[str, list[float]] = {name: [] for name in strategies}
    result: dict[str, Any] = {}
    # Rates are of the whole call: prompt and sampling count, loading the model does not.
    hf_rates = []
    hf_model = None if hf_folder is None else _hf_model(hf_folder, like=network)
    for _ in range(repeats + 1):  # the first repeat warms up
        for name, strategy in strategies.items():
            output = generate_tokens(
                network, [PROMPT], num_tokens=num_tokens, strategy=strategy, sampling=sampling
            )
            rates[name].append(output.tokens_per_second)
            result[name] = {"rounds": output.rounds, "acceptance_rate": output.acceptance_rate}
        if hf_model is not None:
            hf_rates.append(_hf_tokens_per_second(hf_model, num_tokens))
    for name, values in rates.items():
        # Without the first repeat.
        result[name]["tokens_per_second"] = statistics.median(values[1:])
    if hf_rates:
        rate = statistics.median(hf_rates[1:])
        result["transformers"] = {
            "rounds": num_tokens, "acceptance_rate": None, "tokens_per_second": rate,
        }  # fmt: skip
    return result


def _hf_model(folder: Path, *, like: torch.nn.Module) -> Any:
    """Load the model of transformers with the data type and the device of ours."""
    from transformers import AutoModelForCausalLM

    weight = next(like.parameters())
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype)
    return model.eval().to(weight.device)


@torch.no_grad()
def _hf_tokens_per_second(model: Any, num_tokens: int) -> float:
    start = time.perf_counter()
    # Equal minimum and maximum, so that no end-of-document token makes the text shorter. Sampled as
    # `compare_decoding` does by default, whatever its argument is.
    model.generate(
        torch.from_numpy(PROMPT)[None].to(model.device),
        attention_mask=torch.ones(1, 1, dtype=torch.int64, device=model.device),
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        pad_token_id=0,
    )
    return num_tokens / (time.perf_counter() - start)
