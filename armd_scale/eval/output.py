"""Write the files of an evaluation: figures as JSON, log-probabilities as safetensors."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from safetensors.torch import save_file

from armd_scale.eval.likelihood import Scores
from armd_scale.eval.tasks.base import EvalResult
from armd_scale.files import atomic_file
from armd_scale.json_files import atomic_write_json


def write_result(path: Path, result: EvalResult) -> None:
    """Write the figures as one JSON object; the file appears complete or not at all.

    JSON has no infinity, which a perplexity may be: null stands for it.

    Raises:
        ArmdError: the file cannot be written.
    """
    values = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(result).items()
    }
    atomic_write_json(path, values, indent=1)


def write_dump(path: Path, scores: Sequence[Scores], *, groups: ProcessGroupCollection) -> None:
    """Collect the scores of all ranks and write them from the first rank.

    The file has `tokens` [n, N+1], `block` [n, N+1] and `logprob` [n, N] in nats, all in text
    order: token p has its log-probability in column p - 1, NaN if it is given or if an earlier
    window has scored it. All ranks must call this together.

    Raises:
        ArmdError: the file cannot be written.
    """
    size, is_first = groups.dp.size(), groups.dp.rank() == 0
    gathered: list[list[Scores]] | None = [[] for _ in range(size)] if is_first else None
    dist.gather_object(list(scores), gathered, group=groups.dp, group_dst=0)
    # With tensor parallelism several ranks are first in their data parallel groups.
    if gathered is None or dist.get_rank() != 0:
        return
    # Ranks take batches in turn, so each of their lists has gaps that the others fill.
    in_order = sorted(chain.from_iterable(gathered), key=lambda part: part.first)
    tensors = {
        name: torch.cat([getattr(part, name) for part in in_order]).contiguous()
        for name in ("tokens", "block", "logprob")
    }
    with atomic_file(path) as partial:
        save_file(tensors, partial)
