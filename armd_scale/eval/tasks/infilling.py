"""Infilling: the middle of a text from both its sides, against what stood there by ROUGE.

As the literature does with the five-sentence stories of ROCStories (Mostafazadeh et al., 2016).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64, Int64
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.lambada import read_lines
from armd_scale.eval.text_metrics import rouge, words
from armd_scale.generation import TO_GENERATE, GenerationSpec, Sampling, generate_from_specs
from armd_scale.generation.text import encode_prompt
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.draw import sample_blocks
from armd_scale.order.policies import OrderPolicy


@dataclass(frozen=True, eq=False)
class InfillExample:
    """A text without its middle."""

    text: Int64[np.ndarray, " P"]
    """From the token that opens a document on; HOLE for each token of the middle."""
    middle: str
    """What stood there."""


@dataclass(frozen=True, kw_only=True)
class InfillResult:
    """How close filled middles came to what stood there."""

    task: str
    order: str
    """SPEC of the order that the middles' tokens were generated in."""
    rouge_1: float
    rouge_2: float
    rouge_l: float
    """Mean F1 over passages, 0 to 1; of words in lower case, unstemmed."""
    rouge_1_standard_error: float | None
    rouge_2_standard_error: float | None
    rouge_l_standard_error: float | None
    """Were the passages drawn anew; None for a single one."""
    num_passages: int
    num_tokens: int
    """Tokens generated."""


def read_examples(path: Path, tokenizer: Tokenizer, *, max_tokens: int) -> list[InfillExample]:
    """Each passage with a hole for its middle, of as many tokens as the middle has.

    Args:
        path: JSON lines with the keys `before`, `middle` and `after`, which together are the text:
            the blank before a middle is its own, or of what stands before it.
        tokenizer: of the model.
        max_tokens: most tokens of a text, the one that opens it included.

    Raises:
        ArmdError: no such file, a line that is no such object or too long, or no passage at all.
    """
    gaps = []
    for number, line in enumerate(read_lines(path), start=1):
        before, middle, after = _parts(line, f"{path}, line {number}")
        hole, end = tokenizer.encode_batch([middle, after])
        begin = encode_prompt(before, tokenizer)
        text = np.concatenate((begin, np.full(len(hole), TO_GENERATE), end)).astype(np.int64)
        if len(text) > max_tokens:
            raise ArmdError(
                f"{path}, line {number} must be a text of at most {max_tokens} tokens, got "
                f"{len(text)}: shorten it, or raise --seq-length"
            )
        gaps.append(InfillExample(text, middle))
    if not gaps:
        raise ArmdError(f"{path} must hold passages, one a line, and is empty: give another file")
    return gaps


def run_infill(
    network: ArmdModel,
    gaps: Sequence[InfillExample],
    tokenizer: Tokenizer,
    *,
    order: OrderPolicy,
    sampling: Sampling,
    micro_batch: int,
    groups: ProcessGroupCollection,
    on_batch: Callable[[int], None] = lambda count: None,
) -> InfillResult:
    """Fills all middles, shared out among the data parallel ranks, which must all call this.

    What fills a middle depends on the seed and the passage's number alone.

    Args:
        network: the model.
        gaps: the passages.
        tokenizer: of the model.
        order: of the middles' tokens, drawn for each as for a document of its length; what is
            around them is given.
        sampling: how tokens are drawn; its seed is the orders' too.
        micro_batch: passages of one batch.
        groups: the process groups.
        on_batch: called with the number of passages that this rank has filled.
    """
    device = next(network.parameters()).device
    scores = torch.zeros(len(gaps), 3, dtype=torch.float64, device=device)
    mine = range(groups.dp.rank(), len(gaps), groups.dp.size())
    # Alike in length where they are filled together, which is when a batch wastes least.
    by_length = sorted(mine, key=lambda number: len(gaps[number].text))
    for begin in range(0, len(by_length), micro_batch):
        numbers = by_length[begin : begin + micro_batch]
        made = generate_from_specs(
            network,
            [example_spec(gaps[i].text, order, seed=sampling.seed, number=i) for i in numbers],
            sampling=sampling,
            sample_ids=numbers,
        )
        for number, sample in zip(numbers, made.samples, strict=True):
            filled = tokenizer.decode(sample.tokens[sample.generated].tolist())
            found = rouge(words(filled), words(gaps[number].middle))
            scores[number] = torch.tensor([found.rouge_1, found.rouge_2, found.rouge_l])
        on_batch(len(numbers))
    dist.all_reduce(scores, group=groups.dp)
    num_tokens = sum(int((gap.text == TO_GENERATE).sum()) for gap in gaps)
    return _summary(scores, order, num_tokens=num_tokens)


def _summary(
    scores: Float64[Tensor, "passages 3"], order: OrderPolicy, *, num_tokens: int
) -> InfillResult:
    means = scores.mean(dim=0).tolist()
    errors: list[float | None] = [None, None, None]
    if len(scores) > 1:
        errors = (scores.std(dim=0) / math.sqrt(len(scores))).tolist()
    return InfillResult(
        task="infill",
        order=str(order),
        rouge_1=means[0],
        rouge_2=means[1],
        rouge_l=means[2],
        rouge_1_standard_error=errors[0],
        rouge_2_standard_error=errors[1],
        rouge_l_standard_error=errors[2],
        num_passages=len(scores),
        num_tokens=num_tokens,
    )


def example_spec(
    text: Int64[np.ndarray, " P"], order: OrderPolicy, *, seed: int, number: int
) -> GenerationSpec:
    """The passage with its middle's tokens in the blocks of a document of their number."""
    is_hole = text == TO_GENERATE
    length = int(is_hole.sum()) + 1
    block = np.zeros(len(text), dtype=np.int64)
    block[is_hole] = sample_blocks(order, seed=seed, sample_index=number, lengths=(length,))[1:]
    return GenerationSpec(tokens=np.where(is_hole, 0, text), block=block, known=~is_hole)


def _parts(line: str, where: str) -> tuple[str, str, str]:
    try:
        record = json.loads(line)
        parts = tuple(record[key] for key in ("before", "middle", "after"))
    except (ValueError, KeyError, TypeError):
        parts = ()
    if not parts or not all(isinstance(part, str) for part in parts) or not words(parts[1]):
        raise ArmdError(
            f'{where} must be an object with the texts "before", "middle" and "after", and a word '
            f"in the middle, got {line.strip()[:60]!r}: mend or remove the line"
        )
    return parts
