"""What an evaluation leaves behind: a JSON file for its figures, safetensors for every token's."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from safetensors.torch import save_file

from armd_scale.eval.likelihood import Likelihood, Scores
from armd_scale.eval.tasks.infilling import InfillResult
from armd_scale.eval.tasks.lambada import LambadaResult
from armd_scale.files import atomic_file, atomic_write_json


def summary(found: Likelihood | LambadaResult | InfillResult) -> str:
    """The figures as one line for people."""
    match found:
        case LambadaResult():
            return _last_words(found)
        case InfillResult():
            return _infilled(found)
    return _likelihood(found)


def _last_words(found: LambadaResult) -> str:
    error = found.accuracy_standard_error
    return (
        f"{found.task}  accuracy {found.accuracy:.4f}"
        + ("" if error is None else f" (standard error {error:.4f})")
        + f"  perplexity {found.perplexity:.2f}  {found.num_passages} passages"
    )


def _infilled(found: InfillResult) -> str:
    figures = []
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        error = getattr(found, f"{name}_standard_error")
        figures.append(
            f"{name.upper().replace('_', '-')} {getattr(found, name):.4f}"
            + ("" if error is None else f" (standard error {error:.4f})")
        )
    return "  ".join([found.task, found.order, *figures, f"{found.num_passages} passages"])


def _likelihood(likelihood: Likelihood) -> str:
    error, over_orders = likelihood.standard_error, likelihood.standard_error_over_orders
    bits, words = likelihood.bits_per_byte, likelihood.perplexity_per_word
    errors = "" if error is None else f"standard error {error:.4f}"
    if over_orders is not None:
        errors += f"{errors and ', '}over orders {over_orders:.4f}"
    parts = [
        likelihood.order,
        f"{likelihood.nll_nats_per_token:.4f} nats/token" + (errors and f" ({errors})"),
        f"perplexity {likelihood.perplexity:.2f}",
        *([] if words is None else [f"{words:.2f} per word"]),
        *([] if bits is None else [f"{bits:.4f} bits/byte"]),
        f"{likelihood.num_tokens} tokens",
    ]
    return "  ".join(parts)


def write_json(path: Path, found: Likelihood | LambadaResult | InfillResult) -> None:
    """Writes the figures as one JSON object; the file appears whole or not at all.

    Raises:
        ArmdError: the file cannot be written.
    """
    atomic_write_json(path, asdict(found), indent=1)


def write_dump(path: Path, scores: Sequence[Scores], *, groups: ProcessGroupCollection) -> None:
    """Collects the scored windows of all ranks, and writes them from the first rank.

    The file holds `tokens` [n, N+1], `block` [n, N+1] and `logprob` [n, N] in nats, all in text
    order: token p has its log-probability in column p - 1, NaN where it is given. All ranks must
    call this together.

    Raises:
        ArmdError: the file cannot be written.
    """
    size, is_first = groups.dp.size(), groups.dp.rank() == 0
    gathered: list[list[Scores]] | None = [[] for _ in range(size)] if is_first else None
    dist.gather_object(list(scores), gathered, group=groups.dp, group_dst=0)
    if gathered is None or dist.get_rank() != 0:
        return
    in_order = sorted(chain.from_iterable(gathered), key=lambda part: part.first)
    tensors = {
        name: torch.cat([getattr(part, name) for part in in_order]).contiguous()
        for name in ("tokens", "block", "logprob")
    }
    with atomic_file(path) as partial:
        save_file(tensors, partial)
