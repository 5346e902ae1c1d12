"""What the evaluate command is asked to do, and which combinations of options are valid."""

from dataclasses import dataclass
from pathlib import Path

from armd_scale.errors import ArmdError
from armd_scale.eval.tasks.registry import TASKS
from armd_scale.order.policies import LeftToRight, OrderPolicy


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """Options of an evaluation; None means the value from the checkpoint's recipe."""

    checkpoint: str | None = None
    """A checkpoint or a run folder."""
    hf: Path | None = None
    """A Hugging Face folder of an ARMD or AR model, instead of a checkpoint."""
    data: str | None = None
    """Path of a .bin/.idx pair without its ending."""
    text: Path | None = None
    """A text file, instead of data."""
    detokenizer: str = "none"
    """Name in DETOKENIZERS of the function that turns the text file into ordinary text."""
    task: tuple[str, Path] | None = None
    """Name in TASKS and file of examples, instead of data."""
    order: str
    """SPEC of the order."""
    orders_per_sample: int = 1
    """Order draws per window, with consecutive seeds."""
    stride: int | None = None
    """Tokens between window starts, for left-to-right order; None: windows do not overlap."""
    samples: int | None = None
    """Number of windows or examples, taken from the start; None: all."""
    seq_length: int | None = None
    """N, targets per window."""
    micro_batch: int | None = None
    """Windows or examples per forward pass."""
    seed: int | None = None
    """Seed of order draws and generated text; None: the run's seed, which reproduces the
    evaluations of the training run."""
    temperature: float | None = None
    """Sampling temperature of generated text, 0 for greedy; None: 1, the model's distribution."""
    json: Path | None = None
    """Output file for the figures."""
    dump: Path | None = None
    """Output file for the log-probability of every token."""


def check_options(request: EvalRequest, order: OrderPolicy) -> None:
    """Check that the options do not contradict each other and that none of them has no effect.

    Raises:
        ArmdError: they do; the message names the options.
    """
    # Every rule is a sentence and whether it is violated; the first violated one is reported.
    rules = _data_rules(request, order) if request.task is None else _task_rules(request, order)
    for problem, is_violated in (_common_rules(request) | rules).items():
        if is_violated:
            raise ArmdError(f"{problem}: change the options, --help has an example")


def _common_rules(request: EvalRequest) -> dict[str, bool]:
    sources = [x for x in (request.data, request.text, request.task) if x is not None]
    return {
        "exactly one of --data, --text and --task must be given": len(sources) != 1,
        "--detokenizer needs --text": request.detokenizer != "none" and request.text is None,
    }


def _data_rules(request: EvalRequest, order: OrderPolicy) -> dict[str, bool]:
    stride, length = request.stride, request.seq_length
    drawing = " or ".join(name for name, task in TASKS.items() if task.draws_tokens)
    return {
        # With overlap the overlapped tokens must be context of all new targets. Windows that only
        # touch (stride equal to the length) can be scored under any order.
        "--stride needs --order l2r": (
            stride is not None and stride != length and order != LeftToRight()
        ),
        "--stride must be at most --seq-length": (
            stride is not None and length is not None and stride > length
        ),
        "--dump stores one order per window, so it cannot be combined with --orders-per-sample": (
            request.dump is not None and request.orders_per_sample > 1
        ),
        f"--temperature needs --task {drawing}": request.temperature is not None,
    }


def _task_rules(request: EvalRequest, order: OrderPolicy) -> dict[str, bool]:
    assert request.task is not None
    name, task = request.task[0], TASKS.get(request.task[0])
    if task is None:
        return {f"--task must be {' FILE or '.join(TASKS)} FILE (got '{name}')": True}
    return {
        "--task cannot be combined with --dump, --stride or --orders-per-sample": (
            request.dump is not None or request.stride is not None or request.orders_per_sample > 1
        ),
        f"--task {name} needs --order l2r": task.needs_left_to_right and order != LeftToRight(),
        f"--task {name} draws nothing at random, so it cannot be combined with --seed": (
            not task.draws_tokens and request.seed is not None
        ),
        f"--task {name} generates no text, so it cannot be combined with --temperature": (
            not task.draws_tokens and request.temperature is not None
        ),
    }
