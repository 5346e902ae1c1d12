"""How fast decoding is."""

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

OPENING = np.zeros(1, dtype=np.int64)


def measure_decoding(checkpoint: str, tokens: int, runs: int, hf: Path | None) -> list[Row]:
    """`compare_decoding` on a checkpoint, as a table with ratios to one stream."""
    with loaded(checkpoint) as network:
        found = compare_decoding(network, num_tokens=tokens, repeats=runs, hf_folder=hf)
    one = found["streams 1"]["tokens_per_second"]
    return [
        {
            "way": name,
            "rounds": way["rounds"],
            "tokens/s": way["tokens_per_second"],
            "ratio": way["tokens_per_second"] / one,
            "drafts accepted": "" if way["acceptance_rate"] is None else way["acceptance_rate"],
        }
        for name, way in found.items()
    ]


@contextmanager
def loaded(checkpoint: str) -> Iterator[ArmdModel]:
    """The network of a checkpoint in a job of one process."""
    here = read_environment()
    with process_groups(here, ParallelConfig()) as groups:
        yield load_model(checkpoint, groups=groups, device=here.device, dtype=torch.float32).network


def compare_decoding(
    network: ArmdModel,
    *,
    streams: Sequence[int] = (1, 2, 4, 8),
    lossless: Sequence[int] = (4,),
    num_tokens: int = 256,
    repeats: int = 3,
    sampling: Sampling | None = None,
    hf_folder: Path | None = None,
) -> dict[str, Any]:
    """Tokens per second of one text, decoded in several ways; medians of runs in turn.

    Args:
        network: the model.
        streams: numbers of streams.
        lossless: of these numbers of streams, verified: as many tokens a round as streams.
        num_tokens: length of the text.
        repeats: runs of each.
        sampling: how tokens are drawn.
        hf_folder: the same weights as a plain AR folder, to run `generate` of transformers on.

    Returns:
        For each way `{"tokens_per_second", "rounds", "acceptance_rate"}`, ready for JSON.
    """
    ways = {f"streams {s}": Strategy(streams=s) for s in streams}
    ways |= {f"lossless {s}, streams {s}": Strategy(streams=s, speculative=s) for s in lossless}
    sampling = sampling or Sampling(temperature=0.8, top_p=0.95)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    result: dict[str, Any] = {}
    hf_rates = []
    hf_model = None if hf_folder is None else _hf_model(hf_folder)
    for _ in range(repeats + 1):  # the first run warms up
        for name, strategy in ways.items():
            made = generate_tokens(
                network, [OPENING], num_tokens=num_tokens, strategy=strategy, sampling=sampling
            )
            rates[name].append(made.tokens_per_second)
            result[name] = {"rounds": made.rounds, "acceptance_rate": made.acceptance_rate}
        if hf_model is not None:
            hf_rates.append(_hf_tokens_per_second(hf_model, num_tokens))
    for name, values in rates.items():
        result[name]["tokens_per_second"] = statistics.median(values[1:])
    if hf_rates:
        rate = statistics.median(hf_rates[1:])
        result["transformers"] = {
            "rounds": num_tokens, "acceptance_rate": None, "tokens_per_second": rate,
        }  # fmt: skip
    return result


def _hf_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def _hf_tokens_per_second(model: Any, num_tokens: int) -> float:
    began = time.perf_counter()
    model.generate(
        torch.from_numpy(OPENING)[None],
        attention_mask=torch.ones(1, 1, dtype=torch.int64),
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        pad_token_id=0,
    )
    return num_tokens / (time.perf_counter() - began)
