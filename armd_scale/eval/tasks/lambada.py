"""LAMBADA: the last word of each passage (Paperno et al., 2016), as lm-evaluation-harness asks."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.eval.loglikelihood import ContextContinuation, encode_pair, score_continuations
from armd_scale.generation.text import encode_prompt
from armd_scale.model.armd_model import ArmdModel


@dataclass(frozen=True, kw_only=True)
class LambadaResult:
    """How well last words were foretold."""

    task: str
    accuracy: float
    """Share of passages whose last word greedy decoding spells exactly."""
    accuracy_standard_error: float | None
    """Were the passages drawn anew; None for a single one."""
    perplexity: float
    """exp of the mean nats of a last word, all of its tokens together."""
    num_passages: int


def read_passages(path: Path, tokenizer: Tokenizer) -> list[ContextContinuation]:
    """Each passage before its last word, and that word with the blank before it.

    Args:
        path: JSON lines with the key `text`.
        tokenizer: of the model.

    Raises:
        ArmdError: no such file, a line that is no such object, or no passage at all.
    """
    encode = partial(encode_prompt, tokenizer=tokenizer)
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            before, blank, word = json.loads(line)["text"].strip().rpartition(" ")
        except (ValueError, KeyError, TypeError, AttributeError):
            before = blank = word = ""
        if not before or not word:
            raise ArmdError(
                f'{path}, line {number} must be an object with a "text" of two words or more, got '
                f"{line.strip()[:60]!r}: mend or remove the line"
            )
        pairs.append(encode_pair(before, blank + word, encode))
    if not pairs:
        raise ArmdError(f"{path} must hold passages, one a line, and is empty: give another file")
    return pairs


def score_last_words(
    network: ArmdModel,
    passages: Sequence[ContextContinuation],
    *,
    micro_batch: int,
    max_tokens: int,
    groups: ProcessGroupCollection,
    on_batch: Callable[[int], None] = lambda count: None,
) -> LambadaResult:
    """Scores all passages, shared out among the data parallel ranks, which must all call this.

    `on_batch` is called with the number of passages that this rank has scored.
    """
    rank, size = groups.dp.rank(), groups.dp.size()
    verdicts = score_continuations(
        network,
        passages[rank::size],
        micro_batch=micro_batch,
        max_tokens=max_tokens,
        on_batch=on_batch,
    )
    device = next(network.parameters()).device
    sums = torch.tensor(
        [sum(v.is_greedy for v in verdicts), -sum(v.logprob for v in verdicts)],
        dtype=torch.float64,
        device=device,
    )
    dist.all_reduce(sums, group=groups.dp)
    right, nats = sums.tolist()
    count = len(passages)
    accuracy = right / count
    error = math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else None
    return LambadaResult(
        task="lambada",
        accuracy=accuracy,
        accuracy_standard_error=error,
        perplexity=torch.tensor(nats / count, dtype=torch.float64).exp().item(),
        num_passages=count,
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a task's file.

    Raises:
        ArmdError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArmdError(
            f"{path} must be a file of JSON lines in UTF-8, and cannot be read ({error}): name "
            "another file"
        ) from error
