"""The evaluate command: open the model and the data, score, write the result."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.pretrained import ModelFolder, open_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import CheckpointError
from armd_scale.eval.data import (
    EvalText,
    check_max_positions,
    open_eval_shards,
    open_eval_text_file,
    require_tokenizer,
)
from armd_scale.eval.likelihood import Likelihood, Scores, score_all_windows, summarize
from armd_scale.eval.memory import require_memory_to_score
from armd_scale.eval.output import write_dump, write_result
from armd_scale.eval.request import EvalRequest, check_options
from armd_scale.eval.tasks.base import EvalResult, Task, TaskOptions, run_task
from armd_scale.eval.tasks.registry import TASKS
from armd_scale.files import require_parent_dir
from armd_scale.generation import Sampling
from armd_scale.log import ProgressBar
from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.policies import OrderPolicy
from armd_scale.order.spec import parse_spec
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups


@dataclass(frozen=True, kw_only=True)
class PreparedEval:
    """A valid request with its data in memory; only the weights are still to be loaded."""

    request: EvalRequest
    order: OrderPolicy
    model: ModelFolder
    examples: EvalText | Task
    """Windows to score, or the examples of a task."""
    micro_batch: int
    """Windows or examples per forward pass."""
    seed: int


def evaluate_checkpoint(request: EvalRequest, environment: DistributedEnv) -> EvalResult:
    """Evaluate on all processes of the job; the first one writes the files.

    Every process loads the whole network, and the processes share the windows or examples.

    Raises:
        ArmdError: an invalid order or combination of options, a checkpoint or data that cannot be
            used or do not fit each other, predictions that are not finite, too little memory, or a
            file that cannot be written.
    """
    prepared = prepare(request)
    # No tensor or pipeline parallelism: all ranks are data parallel, which splits the work evenly
    # and needs no communication in the forward pass.
    with process_groups(environment, ParallelConfig()) as groups:
        result = run_prepared(prepared, groups, environment.device)
    _require_finite(result, prepared.model.description)
    if request.json is not None and environment.is_rank0:
        write_result(request.json, result)
    return result


def prepare(request: EvalRequest) -> PreparedEval:
    """Check the request and read everything but the weights; errors as of `evaluate_checkpoint`."""
    # Cheap checks first: a mistake in the options should not cost the time to read a checkpoint or
    # to tokenize a corpus.
    order = parse_spec(request.order)
    require_parent_dir(request.json, "--json")
    require_parent_dir(request.dump, "--dump")
    check_options(request, order)
    path = request.hf or request.checkpoint
    assert path is not None
    model = open_model(path)
    recipe = model.checkpoint.recipe
    seed = recipe.run.seed if request.seed is None else request.seed
    return PreparedEval(
        request=request,
        order=order,
        model=model,
        examples=_open_examples(request, order, seed, model.checkpoint),
        micro_batch=request.micro_batch or recipe.train.micro_batch,
        seed=seed,
    )


def run_prepared(
    prepared: PreparedEval, groups: ProcessGroupCollection, device: torch.device
) -> EvalResult:
    """Load the network and score; every process of the groups must call this."""
    network = prepared.model.load_network(groups=groups, device=device)
    if not isinstance(prepared.examples, EvalText):
        task = prepared.examples
        with _progress(len(task), "examples", groups) as advance:
            return run_task(
                task, network, micro_batch=prepared.micro_batch, groups=groups, on_batch=advance
            )
    result, scores = _score_text(prepared, prepared.examples, network, groups)
    if prepared.request.dump is not None:
        write_dump(prepared.request.dump, scores, groups=groups)
    return result


def _require_finite(result: EvalResult, model: str) -> None:
    """Refuse figures of a model whose predictions are not finite.

    A perplexity, the exponential of a finite figure, may be infinite.
    """
    for name, value in asdict(result).items():
        if not isinstance(value, float) or math.isfinite(value):
            continue
        if math.isnan(value) or not name.startswith("perplexity"):
            raise CheckpointError(
                f"the predictions of a model must be finite, and {name} of {model} is {value}: its "
                "weights are damaged or its training diverged, so use an earlier checkpoint"
            )


def _open_examples(
    request: EvalRequest, order: OrderPolicy, seed: int, checkpoint: Checkpoint
) -> EvalText | Task:
    lengths = {"seq_length": request.seq_length, "stride": request.stride}
    if request.data is not None:
        return open_eval_shards(request.data, checkpoint, **lengths)
    if request.text is not None:
        return open_eval_text_file(
            request.text, checkpoint, detokenizer=request.detokenizer, **lengths
        )
    assert request.task is not None
    name, path = request.task
    seq_length = request.seq_length or checkpoint.recipe.data.seq_length
    check_max_positions(seq_length, checkpoint)
    temperature = 1.0 if request.temperature is None else request.temperature
    options = TaskOptions(
        order=order,
        sampling=Sampling(temperature=temperature, seed=seed),
        max_tokens=seq_length + 1,
        max_examples=request.samples,
    )
    return TASKS[name].read(Path(path), require_tokenizer(checkpoint), options)


def _score_text(
    prepared: PreparedEval, text: EvalText, network: ArmdModel, groups: ProcessGroupCollection
) -> tuple[Likelihood, list[Scores]]:
    """Compute the likelihood; also return this rank's scores if they are to be dumped."""
    request, windows = prepared.request, text.windows
    num_windows = min(request.samples or windows.num_windows, windows.num_windows)
    require_memory_to_score(
        network,
        prepared.order,
        seq_length=len(windows.window(0)) - 1,
        micro_batch=min(prepared.micro_batch, num_windows),
        num_results=num_windows * request.orders_per_sample,
    )
    kept_scores: list[Scores] = []
    with _progress(num_windows * request.orders_per_sample, "windows", groups) as advance:

        def on_scores(scores: Scores) -> None:
            advance(len(scores.tokens))
            # Kept only if needed: the scores of a large corpus may not fit in memory.
            if request.dump is not None:
                kept_scores.append(scores)

        totals = [
            score_all_windows(
                network,
                windows,
                prepared.order,
                samples=num_windows,
                seed=prepared.seed + draw,
                micro_batch=prepared.micro_batch,
                groups=groups,
                on_scores=on_scores,
            )
            # Draw 0 has the seed of an evaluation with one draw, so more draws refine its figures.
            for draw in range(request.orders_per_sample)
        ]
    likelihood = summarize(
        prepared.order,
        torch.stack(totals),
        bytes_per_token=text.bytes_per_token,
        # The number of words is known for the whole text only.
        num_words=text.num_words if num_windows == windows.num_windows else None,
    )
    return likelihood, kept_scores


@contextmanager
def _progress(
    count: int, unit: str, groups: ProcessGroupCollection
) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the progress bar, which only the first rank shows."""
    if dist.get_rank() != 0:
        yield lambda amount: None
        return
    # The bar of one rank stands for all: it covers this rank's share of the work.
    with ProgressBar("evaluating", count / groups.dp.size(), unit=unit) as progress:
        yield progress.advance
