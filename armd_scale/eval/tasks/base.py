"""The interface of evaluation tasks, and the code that runs any of them on all ranks."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float64
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.data.tokenizer import Tokenizer
from armd_scale.errors import ArmdError
from armd_scale.files import read_error_reason, read_text
from armd_scale.generation import Sampling
from armd_scale.json_files import parse_json
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.policies import OrderPolicy

ExampleT = TypeVar("ExampleT")


@runtime_checkable
class EvalResult(Protocol):
    """The figures of an evaluation: a dataclass, whose fields are the keys of the JSON file."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def format_line(self) -> str:
        """The figures as one line of text."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Options that a task may use."""

    order: OrderPolicy
    """Order of generated tokens."""
    sampling: Sampling
    """How tokens are drawn; its seed is also the seed of order draws."""
    max_tokens: int
    """Longest text, including the token that opens it."""
    max_examples: int | None = None
    """Number of examples, taken from the start of the file; None: all."""


@runtime_checkable
class Task(Protocol):
    """Examples read from a file, their scores under a network, and the summary of the scores.

    A new task is a class with these members and a row in `registry.TASKS`. `run` only sees the
    examples of its own rank; `run_task` distributes them and collects the scores.
    """

    name: ClassVar[str]
    """The task's name for --task."""
    help: ClassVar[str]
    """Format of the file and the figures it gives, for --help."""
    score_names: ClassVar[tuple[str, ...]]
    """Names of the figures that `run` computes for every example."""
    needs_left_to_right: ClassVar[bool]
    """Whether the task is defined for left-to-right order only."""
    draws_tokens: ClassVar[bool]
    """Whether the task samples tokens, so that seed and temperature have an effect."""

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer, options: TaskOptions) -> "Task":
        """Read the examples of a JSON Lines file.

        Raises:
            ArmdError: the file cannot be read, has no examples, or has an invalid line.
        """
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def run(
        self,
        network: ArmdModel,
        indices: Sequence[int],
        *,
        micro_batch: int,
        on_batch: Callable[[int], None],
    ) -> Float64[Tensor, "indices scores"]:
        """Score some of the examples.

        Args:
            network: the model, in evaluation mode.
            indices: which examples; may be empty.
            micro_batch: examples per forward pass.
            on_batch: called after each batch with its number of examples.

        Returns:
            The scores on the CPU, with columns `score_names`. A row depends on its example alone,
            not on the other indices.
        """
        ...

    def summarize(self, scores: Float64[Tensor, "examples scores"]) -> EvalResult:
        """Compute the result from the scores of all examples."""
        ...


def run_task(
    task: Task,
    network: ArmdModel,
    *,
    micro_batch: int,
    groups: ProcessGroupCollection,
    on_batch: Callable[[int], None] = lambda count: None,
) -> EvalResult:
    """Run a task on all data parallel ranks, which must call this together.

    Returns:
        The result, on every rank; it does not depend on the number of ranks.
    """
    rank, size = groups.dp.rank(), groups.dp.size()
    device = next(network.parameters()).device
    # Every row is filled by one rank and zero on all others: their sum is exact, and the same for
    # any number of ranks. Sums of each rank's own scores would round differently.
    scores = torch.zeros(len(task), len(task.score_names), dtype=torch.float64, device=device)
    # Ranks take examples in turn, because files are often sorted by length or topic.
    indices = range(rank, len(task), size)
    own_scores = task.run(network, indices, micro_batch=micro_batch, on_batch=on_batch)
    scores[rank::size] = own_scores.to(device)
    dist.all_reduce(scores, group=groups.dp)
    return task.summarize(scores.cpu())


def read_examples(
    path: Path, parse: Callable[[Any], ExampleT], *, expected: str
) -> list[tuple[str, ExampleT]]:
    """Parse every line of a JSON Lines file.

    Args:
        path: a UTF-8 file with one JSON value per line.
        parse: converts the value of a line; raises ValueError, KeyError, TypeError or
            AttributeError for one that is invalid.
        expected: what a line must be, for the error message.

    Returns:
        For each line its location (`PATH, line 3`) and the parsed value.

    Raises:
        ArmdError: the file cannot be read or is empty, or a line is invalid.
    """
    try:
        # Not `str.splitlines`, which also splits at U+2028, which a JSON string may contain.
        lines = read_text(path).removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ArmdError(
            f"{path} must be a UTF-8 file of JSON lines, but it cannot be read "
            f"({read_error_reason(error)}): give another file"
        ) from error
    if lines == [""]:
        raise ArmdError(f"{path} must have at least one line, but it is empty: give another file")
    examples = []
    # Lines are counted from 1, as editors show them.
    for number, line in enumerate(lines, start=1):
        location = f"{path}, line {number}"
        try:
            examples.append((location, parse(parse_json(line))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArmdError(
                f"{location} must be {expected} (got {line.strip()[:60]!r}): fix or remove the line"
            ) from error
    return examples
