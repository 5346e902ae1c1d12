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
from armd_scale.errors import ArmdError
from armd_scale.eval.last_word import LastWords, foretell_last_words, read_passages
from armd_scale.eval.likelihood import Likelihood, Scores, summarise, window_totals
from armd_scale.eval.results import require_folder, write_dump, write_json
from armd_scale.eval.source import Source, open_data, open_text, tokenizer_of
from armd_scale.log import Track
from armd_scale.model.armd import ArmdModel
from armd_scale.order.policies import LeftToRight, Order, parse_spec
from armd_scale.parallel.environment import Environment
from armd_scale.parallel.groups import process_groups


@dataclass(frozen=True, kw_only=True)
class Request:
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
    """`lambada` and its file of passages, in place of data."""
    order: str
    """SPEC of the order."""
    orders_per_sample: int = 1
    """Draws of each window's order, with seeds that follow one another."""
    stride: int | None = None
    """Tokens from window to window, for left-to-right order; None: windows do not overlap."""
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


def evaluate_checkpoint(request: Request, environment: Environment) -> Likelihood | LastWords:
    """Evaluates on all processes of the job, each holding the whole network; the first one writes.

    Raises:
        ArmdError: an order that does not exist, a checkpoint or data that cannot be used or do not
            fit each other, a file that cannot be written.
    """
    ready = prepare(request)
    with process_groups(environment, ParallelConfig()) as groups:
        found = measure(ready, groups, environment.device)
    if request.json is not None and environment.is_main:
        write_json(request.json, found)
    return found


Load = Callable[[ProcessGroupCollection, torch.dtype], ArmdModel]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A request that can be met."""

    request: Request
    order: Order
    checkpoint: Checkpoint
    load: Load
    source: Source | None
    """Windows to score; None for a task."""


def _open(
    request: Request,
) -> tuple[Checkpoint, Load]:
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


def prepare(request: Request) -> Ready:
    """Opens everything but the network; errors as of `evaluate_checkpoint`."""
    order = parse_spec(request.order)
    require_folder(request.json, "--json")
    require_folder(request.dump, "--dump")
    _require_sense(request, order)
    checkpoint, load = _open(request)
    source = _open_source(request, checkpoint)
    return Ready(request=request, order=order, checkpoint=checkpoint, load=load, source=source)


def measure(
    ready: Ready, groups: ProcessGroupCollection, device: torch.device
) -> Likelihood | LastWords:
    """Loads the network and scores; every process of the groups must call this."""
    request, checkpoint = ready.request, ready.checkpoint
    precision = checkpoint.recipe.train.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = ready.load(groups, dtype).to(device)
    if ready.source is None:
        return _last_words(request, checkpoint, network, groups)
    found, scores = _scored(
        request, checkpoint, network, ready.source, order=ready.order, groups=groups
    )
    if request.dump is not None:
        write_dump(request.dump, scores, groups=groups)
    return found


def _require_sense(request: Request, order: Order) -> None:
    """Refuses options that contradict one another."""
    length = request.seq_length
    given = [x for x in (request.data, request.text, request.task) if x is not None]
    overlaps = request.stride is not None and request.stride != length
    wrong = {
        "one of --data, --text and --task must be given": len(given) != 1,
        "--stride needs --order l2r": overlaps and order != LeftToRight(),
        "--stride must be at most --seq-length": None not in (request.stride, length)
        and (request.stride or 0) > (length or 0),
        "--dump holds one order of each window, so leave out --orders-per-sample": (
            request.dump is not None and request.orders_per_sample > 1
        ),
        "--detokenise is for --text": request.detokenise != "none" and request.text is None,
        "--task must be lambada FILE": request.task is not None and request.task[0] != "lambada",
        "--task needs --order l2r, without --dump, --stride or --orders-per-sample": (
            request.task is not None
            and (order != LeftToRight() or request.dump is not None or overlaps)
        ),
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise ArmdError(f"{sentence}: change the options, --help has an example")


def _open_source(request: Request, checkpoint: Checkpoint) -> Source | None:
    """The windows to score; None for a task."""
    how = {"seq_length": request.seq_length, "stride": request.stride}
    if request.data is not None:
        return open_data(request.data, checkpoint, **how)
    if request.text is not None:
        return open_text(request.text, checkpoint, detokenise=request.detokenise, **how)
    return None


def _last_words(
    request: Request,
    checkpoint: Checkpoint,
    network: ArmdModel,
    groups: ProcessGroupCollection,
) -> LastWords:
    assert request.task is not None
    recipe = checkpoint.recipe
    return foretell_last_words(
        network,
        read_passages(Path(request.task[1]), tokenizer_of(checkpoint))[: request.samples],
        micro_batch=request.micro_batch or recipe.train.micro_batch,
        max_tokens=(request.seq_length or recipe.data.seq_length) + 1,
        groups=groups,
    )


def _scored(
    request: Request,
    checkpoint: Checkpoint,
    network: ArmdModel,
    source: Source,
    *,
    order: Order,
    groups: ProcessGroupCollection,
) -> tuple[Likelihood, list[Scores]]:
    """The likelihood, and this rank's scores where they are to be dumped."""
    recipe = checkpoint.recipe
    samples = min(request.samples or source.windows.num_windows, source.windows.num_windows)
    seed = recipe.run.seed if request.seed is None else request.seed
    kept: list[Scores] = []
    is_main = dist.get_rank() == 0
    total = samples * request.orders_per_sample / groups.dp.size()
    track = Track("evaluating", total, unit="windows")
    with track if is_main else nullcontext():

        def watch(scores: Scores) -> None:
            if is_main:
                track.advance(len(scores.tokens))
            kept.extend([] if request.dump is None else [scores])

        totals = [
            window_totals(
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
    found = summarise(
        order,
        torch.stack(totals),
        bytes_per_token=source.bytes_per_token,
        words=source.words if all_scored else None,
    )
    return found, kept
