"""One evaluation of a checkpoint, from what was asked for to the files that were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.pretrained import ModelFolder, open_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import ArmdError
from armd_scale.eval.data import Source, open_data, open_text, require_tokenizer
from armd_scale.eval.held_out import check_max_positions
from armd_scale.eval.likelihood import Likelihood, Scores, score_all_windows, summarize
from armd_scale.eval.loglikelihood import ContextContinuation
from armd_scale.eval.output import write_dump, write_json
from armd_scale.eval.tasks.infilling import InfillExample, InfillResult, read_examples, run_infill
from armd_scale.eval.tasks.lambada import LambadaResult, read_passages, score_last_words
from armd_scale.files import require_parent_dir
from armd_scale.generation import Sampling
from armd_scale.log import ProgressBar
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.policies import LeftToRight, OrderPolicy
from armd_scale.order.spec import parse_spec
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups

TASKS = ("lambada", "infill")
EvalResult: TypeAlias = Likelihood | LambadaResult | InfillResult


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What to evaluate; None leaves the choice to the checkpoint's recipe."""

    checkpoint: str | None = None
    """A checkpoint, or a run's folder."""
    hf: Path | None = None
    """A Hugging Face folder, of an ARMD or an AR model; in place of a checkpoint."""
    data: str | None = None
    """Prefix of the .bin/.idx pair."""
    text: Path | None = None
    """A text file, in place of data."""
    detokenise: str = "none"
    """Convention by which the text file becomes ordinary text."""
    task: tuple[str, Path] | None = None
    """One of TASKS and its file of passages, in place of data."""
    order: str
    """SPEC of the order."""
    orders_per_sample: int = 1
    """Draws of each window's order, with seeds that follow one another."""
    stride: int | None = None
    """Tokens from window to window, for left-to-right order; None: windows do not overlap."""
    samples: int | None = None
    """Windows or passages, from the first; None: all."""
    seq_length: int | None = None
    """N, targets of a window."""
    micro_batch: int | None = None
    """Windows or passages of one forward pass."""
    seed: int | None = None
    """Seed of drawn orders and texts; None: the run's, so that its own evaluations are found
    again."""
    temperature: float | None = None
    """Of the texts that fill gaps, 0 being greedy; None: 1, the model's own distribution."""
    json: Path | None = None
    """File for the figures."""
    dump: Path | None = None
    """File for every token's log-probability."""


def evaluate_checkpoint(request: EvalRequest, environment: DistributedEnv) -> EvalResult:
    """Evaluates on all processes of the job, each holding the whole network; the first one writes.

    Raises:
        ArmdError: an order that does not exist, a checkpoint or data that cannot be used or do not
            fit each other, a file that cannot be written.
    """
    ready = prepare(request)
    with process_groups(environment, ParallelConfig()) as groups:
        found = run_prepared(ready, groups, environment.device)
    if request.json is not None and environment.is_rank0:
        write_json(request.json, found)
    return found


@dataclass(frozen=True)
class LastWordTask:
    """Passages whose last words are asked for."""

    pairs: list[ContextContinuation]


@dataclass(frozen=True)
class InfillTask:
    """Passages whose middles are."""

    gaps: list[InfillExample]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class PreparedEval:
    """A request that can be met."""

    request: EvalRequest
    order: OrderPolicy
    opened: ModelFolder
    task: Source | LastWordTask | InfillTask
    """Windows to score, or a task."""


def prepare(request: EvalRequest) -> PreparedEval:
    """Opens everything but the network; errors as of `evaluate_checkpoint`."""
    order = parse_spec(request.order)
    require_parent_dir(request.json, "--json")
    require_parent_dir(request.dump, "--dump")
    _check_options(request, order)
    path = request.hf or request.checkpoint
    assert path is not None
    opened = open_model(path)
    work = _open_work(request, opened.checkpoint)
    return PreparedEval(request=request, order=order, opened=opened, task=work)


def run_prepared(
    ready: PreparedEval, groups: ProcessGroupCollection, device: torch.device
) -> EvalResult:
    """Loads the network and scores; every process of the groups must call this."""
    network = ready.opened.load_network(groups=groups, device=device)
    match ready.task:
        case LastWordTask(pairs):
            return _run_lambada(ready, pairs, network, groups)
        case InfillTask():
            return _run_infill(ready, ready.task, network, groups)
    found, scores = _run_likelihood(ready, ready.task, network, groups)
    if ready.request.dump is not None:
        write_dump(ready.request.dump, scores, groups=groups)
    return found


def _check_options(request: EvalRequest, order: OrderPolicy) -> None:
    """Refuses options that contradict one another, or that nothing would come of."""
    length = request.seq_length
    given = [x for x in (request.data, request.text, request.task) if x is not None]
    overlaps = request.stride is not None and request.stride != length
    task = None if request.task is None else request.task[0]
    conflicts = {
        "one of --data, --text and --task must be given": len(given) != 1,
        "--stride needs --order l2r": overlaps and order != LeftToRight(),
        "--stride must be at most --seq-length": None not in (request.stride, length)
        and (request.stride or 0) > (length or 0),
        "--dump holds one order of each window, so leave out --orders-per-sample": (
            request.dump is not None and request.orders_per_sample > 1
        ),
        "--detokenise is for --text": request.detokenise != "none" and request.text is None,
        f"--task must be {' FILE or '.join(TASKS)} FILE": task not in (None, *TASKS),
        "--task goes without --dump, --stride and --orders-per-sample": task is not None
        and (
            request.dump is not None or request.stride is not None or request.orders_per_sample > 1
        ),
        "--task lambada needs --order l2r": task == "lambada" and order != LeftToRight(),
        "--task lambada draws nothing, so leave out --seed": (
            task == "lambada" and request.seed is not None
        ),
        "--temperature is for --task infill": request.temperature is not None and task != "infill",
    }
    for sentence, is_wrong in conflicts.items():
        if is_wrong:
            raise ArmdError(f"{sentence}: change the options, --help has an example")


def _open_work(request: EvalRequest, checkpoint: Checkpoint) -> Source | LastWordTask | InfillTask:
    how = {"seq_length": request.seq_length, "stride": request.stride}
    if request.data is not None:
        return open_data(request.data, checkpoint, **how)
    if request.text is not None:
        return open_text(request.text, checkpoint, detokenise=request.detokenise, **how)
    assert request.task is not None
    task, path = request.task[0], Path(request.task[1])
    tokenizer = require_tokenizer(checkpoint)
    length = request.seq_length or checkpoint.recipe.data.seq_length
    check_max_positions(length, checkpoint)
    if task == "lambada":
        return LastWordTask(read_passages(path, tokenizer)[: request.samples])
    sampling = Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        seed=checkpoint.recipe.run.seed if request.seed is None else request.seed,
    )
    gaps = read_examples(path, tokenizer, max_tokens=length + 1)[: request.samples]
    return InfillTask(gaps, sampling)


def _run_lambada(
    ready: PreparedEval,
    pairs: list[ContextContinuation],
    network: ArmdModel,
    groups: ProcessGroupCollection,
) -> LambadaResult:
    request, recipe = ready.request, ready.opened.checkpoint.recipe
    with _progress(len(pairs), "passages", groups) as advance:
        return score_last_words(
            network,
            pairs,
            micro_batch=request.micro_batch or recipe.train.micro_batch,
            max_tokens=(request.seq_length or recipe.data.seq_length) + 1,
            groups=groups,
            on_batch=advance,
        )


def _run_infill(
    ready: PreparedEval, task: InfillTask, network: ArmdModel, groups: ProcessGroupCollection
) -> InfillResult:
    request, recipe = ready.request, ready.opened.checkpoint.recipe
    with _progress(len(task.gaps), "passages", groups) as advance:
        return run_infill(
            network,
            task.gaps,
            require_tokenizer(ready.opened.checkpoint),
            order=ready.order,
            sampling=task.sampling,
            micro_batch=request.micro_batch or recipe.train.micro_batch,
            groups=groups,
            on_batch=advance,
        )


@contextmanager
def _progress(
    count: int, unit: str, groups: ProcessGroupCollection
) -> Iterator[Callable[[int], None]]:
    """What counts a rank's share of the work as done; the first rank shows it."""
    if dist.get_rank() != 0:
        yield lambda amount: None
        return
    with ProgressBar("evaluating", count / groups.dp.size(), unit=unit) as track:
        yield track.advance


def _run_likelihood(
    ready: PreparedEval, source: Source, network: ArmdModel, groups: ProcessGroupCollection
) -> tuple[Likelihood, list[Scores]]:
    """The likelihood, and this rank's scores where they are to be dumped."""
    request, recipe, order = ready.request, ready.opened.checkpoint.recipe, ready.order
    samples = min(request.samples or source.windows.num_windows, source.windows.num_windows)
    seed = recipe.run.seed if request.seed is None else request.seed
    kept: list[Scores] = []
    with _progress(samples * request.orders_per_sample, "windows", groups) as advance:

        def watch(scores: Scores) -> None:
            advance(len(scores.tokens))
            kept.extend([] if request.dump is None else [scores])

        totals = [
            score_all_windows(
                network,
                source.windows,
                order,
                samples=samples,
                seed=seed + draw,
                micro_batch=request.micro_batch or recipe.train.micro_batch,
                groups=groups,
                watch=watch,
            )
            for draw in range(request.orders_per_sample)
        ]
    all_scored = samples == source.windows.num_windows
    found = summarize(
        order,
        torch.stack(totals),
        bytes_per_token=source.bytes_per_token,
        words=source.words if all_scored else None,
    )
    return found, kept
