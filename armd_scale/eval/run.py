"""One evaluation of a checkpoint, from what was asked for to the files that were."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import Checkpoint, load_network, open_checkpoint
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.dataset import TokenWindows
from armd_scale.eval.held_out import open_held_out
from armd_scale.eval.likelihood import Likelihood, Scores, evaluate
from armd_scale.eval.results import require_folder, write_dump, write_json
from armd_scale.log import Track
from armd_scale.order.policies import Order, parse_spec
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.groups import process_groups


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to evaluate; None leaves the choice to the checkpoint's recipe."""

    checkpoint: str | None = None
    """A checkpoint, or a run's folder."""
    hf: Path | None = None
    """A Hugging Face folder, of an ARMD or an AR model; in place of a checkpoint."""
    data: str
    """Prefix of the .bin/.idx pair."""
    order: str
    """SPEC of the order."""
    samples: int | None = None
    """Windows, from the first; None: all."""
    seq_length: int | None = None
    """N, targets of a window."""
    micro_batch: int | None = None
    """Windows of one forward pass."""
    seed: int | None = None
    """Seed of drawn orders; None: the run's, so that its own evaluations are found again."""
    json: Path | None = None
    """File for the figures."""
    dump: Path | None = None
    """File for every token's log-probability."""


def evaluate_checkpoint(request: Request, environment: Environment) -> Likelihood:
    """Evaluates on all processes of the job, each holding the whole network; the first one writes.

    Raises:
        ArmdError: an order that does not exist, a checkpoint or data that cannot be used or do not
            fit each other, a file that cannot be written.
    """
    order = parse_spec(request.order)
    require_folder(request.json, "--json")
    require_folder(request.dump, "--dump")
    checkpoint, load = _open(request)
    windows = open_held_out(request.data, checkpoint, seq_length=request.seq_length)
    with process_groups(environment, ParallelConfig()) as groups:
        precision = checkpoint.recipe.train.precision
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        network = load(groups, dtype).to(environment.device)
        found, scores = _scored(request, checkpoint, network, windows, order=order, groups=groups)
        if request.dump is not None:
            write_dump(request.dump, scores, groups=groups)
    if request.json is not None and environment.is_main:
        write_json(request.json, found)
    return found


def _open(
    request: Request,
) -> tuple[Checkpoint, Callable[[ProcessGroupCollection, torch.dtype], torch.nn.Module]]:
    """What is to be evaluated, and how its network is loaded."""
    if request.hf is None:
        assert request.checkpoint is not None
        checkpoint = open_checkpoint(request.checkpoint)
        return checkpoint, lambda groups, dtype: load_network(
            checkpoint, groups=groups, dtype=dtype
        )
    # transformers takes seconds to import, and nothing else here needs it.
    from armd_scale.checkpoint.from_hf import recipe_for
    from armd_scale.checkpoint.opened_hf import HfFolder, HfWeights, Settings

    folder = HfFolder(request.hf, Settings())
    recipe = recipe_for(folder, request.hf, parallel=ParallelConfig())
    checkpoint = Checkpoint(folder=request.hf, recipe=recipe, state={})
    return checkpoint, lambda groups, dtype: HfWeights(folder, groups).load(dtype)


def _scored(
    request: Request,
    checkpoint: Checkpoint,
    network: torch.nn.Module,
    windows: TokenWindows,
    *,
    order: Order,
    groups: ProcessGroupCollection,
) -> tuple[Likelihood, list[Scores]]:
    """The likelihood, and this rank's scores where they are to be dumped."""
    recipe = checkpoint.recipe
    samples = min(request.samples or windows.num_windows, windows.num_windows)
    kept: list[Scores] = []
    is_main = dist.get_rank() == 0
    track = Track("evaluating", samples / groups.dp.size(), unit="windows")
    with track if is_main else nullcontext():

        def watch(scores: Scores) -> None:
            if is_main:
                track.advance(len(scores.tokens))
            kept.extend([] if request.dump is None else [scores])

        found = evaluate(
            network,
            windows,
            order,
            samples=samples,
            seed=recipe.run.seed if request.seed is None else request.seed,
            micro_batch=request.micro_batch or recipe.train.micro_batch,
            groups=groups,
            watch=watch,
        )
    return found, kept
