"""A Hugging Face folder to a checkpoint of ours, tensor by tensor.

The checkpoint appears by one rename. Memory holds a few tensors at a time, whatever the size of the
model; several processes share the tensors.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed.checkpoint.api import CheckpointException

from armd_scale.checkpoint.hf.source import DTYPES, ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.checkpoint.save import OPTIMIZER, RECIPE, STATE, TOKENIZER, WEIGHTS
from armd_scale.checkpoint.store import MANIFEST, commit, create_partial
from armd_scale.checkpoint.streaming_io import write_streamed
from armd_scale.config.load import dump_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    Recipe,
    RunConfig,
    TrainConfig,
)
from armd_scale.errors import CheckpointError
from armd_scale.log import ProgressBar, get_logger
from armd_scale.order.policies import LeftToRight

SOURCE = "source"
SOURCE_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
DEFAULT_SEQ_LENGTH = 1024


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """What to convert, and how."""

    hf: Path
    """The folder."""
    output: Path
    """The checkpoint to be."""
    settings: ArmdSettings
    parallel: ParallelConfig
    """Layout that the model is meant for; the checkpoint loads under any."""
    dtype: str = "keep"
    """Of the weights: fp32, bf16, fp16, or the folder's own."""
    overwrite: bool = False


def convert(request: ConversionRequest, *, groups: ProcessGroupCollection) -> None:
    """Writes the checkpoint; all processes take part, and it exists whole or not at all.

    Raises:
        CheckpointError: the folder cannot be converted, or the checkpoint cannot be written.
        RecipeError: the model cannot be laid out as asked for.
    """
    refuse_existing(request.output, marker=MANIFEST, overwrite=request.overwrite)
    source = HfCheckpoint(request.hf, request.settings)
    recipe = recipe_for(source, request.output, parallel=request.parallel, dtype=request.dtype)
    rules.check(recipe)
    weights, dtype = HfWeights(source, groups), DTYPES.get(request.dtype)
    tensors = weights.tensors(dtype)
    total = sum(tensor.nbytes for tensor in tensors.values()) / dist.get_world_size() / 1e6
    with _appearing(request.output) as folder:
        if dist.get_rank() == 0:
            _write_small_files(folder, recipe, request.hf)
        dist.barrier()
        with ProgressBar("converting", round(total), unit="MB") as track:

            def make(name: str) -> torch.Tensor:
                made = weights.make(name, dtype=dtype)
                track.advance(made.nbytes / 1e6)
                return made

            write_streamed(tensors, folder / WEIGHTS, get_tensor=make)


def recipe_for(
    source: HfCheckpoint, name: Path, *, parallel: ParallelConfig, dtype: str = "keep"
) -> ResolvedRecipe:
    """A recipe with the folder's model and modest defaults for everything else."""
    assert source.model.max_positions is not None
    kept = DTYPES.get(dtype, source.dtype)
    recipe = Recipe(
        run=RunConfig(name=name.name, folder=str(name), seed=source.settings.seed),
        data=DataConfig(
            train="unset", seq_length=min(source.model.max_positions - 1, DEFAULT_SEQ_LENGTH)
        ),
        order=LeftToRight(),
        model=source.model,
        parallel=parallel,
        optim=OptimConfig(lr=1e-5, min_lr=1e-6, warmup_steps=100, schedule="cosine"),
        train=TrainConfig(
            steps=1000,
            micro_batch=1,
            global_batch=64,
            # fp16's numbers are none of bf16's.
            precision="bf16" if kept is torch.bfloat16 else "fp32",
        ),
        checkpoint=CheckpointConfig(every_steps=500),
        eval=EvalConfig(every_steps=0, orders=("l2r",), samples=64),
        log=LogConfig(every_steps=10),
    )
    return resolve(recipe)


def refuse_existing(output: Path, *, marker: str, overwrite: bool) -> None:
    """Refuses to write over anything but, where asked to, a folder that holds the marker.

    Raises:
        CheckpointError: there is something that must stay.
    """
    if not output.exists():
        return
    if not overwrite:
        raise CheckpointError(
            f"--output must name a folder that does not exist yet, and {output} does: choose "
            "another name or add --overwrite"
        )
    if not (output / marker).is_file():
        raise CheckpointError(
            f"--overwrite must name a folder that holds a {marker}, and {output} does not: choose "
            "another name"
        )


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to write a checkpoint into, which takes its name once it is whole.

    Whatever fails, nothing is left beside it.
    """
    is_main = dist.get_rank() == 0
    place = output.parent / f".{output.name}.partial"
    try:
        if is_main:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            create_partial(place, 0)
        dist.barrier()
        partial = place / ".step_00000000.partial"
        yield partial
        dist.barrier()
        if is_main:
            made = commit(partial, keep=1)
            if output.exists():
                output.rename(place / "replaced")
            made.rename(output)
        dist.barrier()
    except (OSError, CheckpointException) as error:
        raise CheckpointError(
            f"the checkpoint must be written to {output}, and that failed ({_reason(error)}): "
            "free space or mend permissions there"
        ) from error
    finally:
        if is_main:
            shutil.rmtree(place, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """Why writing failed; of a full disk torch says only where in its archive it stopped."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return "a file could not be written whole" if "inline_container" in reason else reason


def _write_small_files(folder: Path, recipe: Recipe, hf: Path) -> None:
    (folder / RECIPE).write_text(dump_recipe(recipe))
    (folder / STATE).write_text(json.dumps({"step": 0}, indent=1))
    for name in (WEIGHTS, OPTIMIZER):
        (folder / name).mkdir()
    _copy(hf, SOURCE_FILES, folder / SOURCE)
    if any((hf / name).is_file() for name in TOKENIZER_FILES[:2]):
        _copy(hf, TOKENIZER_FILES, folder / TOKENIZER)
    else:
        get_logger(__name__).warning(
            "%s holds neither tokenizer.json nor tokenizer.model, so the checkpoint will know no "
            "tokenizer",
            hf,
        )


def _copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    target.mkdir()
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
