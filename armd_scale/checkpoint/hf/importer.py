"""Convert a Hugging Face folder to a native checkpoint, tensor by tensor.

The checkpoint appears by one rename. Memory holds a few tensors at a time, whatever the size of the
model; several ranks share the tensors.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.placeholder import placeholder_recipe
from armd_scale.checkpoint.hf.source import DTYPES, ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.save import OPTIMIZER, RECIPE, SOURCE, STATE, TOKENIZER, WEIGHTS
from armd_scale.checkpoint.store import read_manifest, write_manifest
from armd_scale.checkpoint.streaming_io import write_streamed
from armd_scale.checkpoint.tensor_files import FileRecord
from armd_scale.config.load import HERE, dump_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import ParallelConfig, Recipe, RunConfig
from armd_scale.errors import CheckpointError
from armd_scale.files import atomic_directory, partial_path, reraise_write_errors, write_error
from armd_scale.log import ProgressBar, get_logger

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


@dataclass(frozen=True, kw_only=True)
class ConversionRequest:
    """What to convert, and how."""

    hf: Path
    """The Hugging Face folder."""
    output: Path
    """The checkpoint to create."""
    settings: ArmdSettings
    parallel: ParallelConfig
    """Layout to check the model against and to write into the recipe; the checkpoint loads under
    any layout."""
    dtype: str = "keep"
    """Type of the weights: fp32, bf16, fp16, or `keep` for the types in the folder."""
    overwrite: bool = False
    """Whether to replace a checkpoint at `output`."""


def convert(request: ConversionRequest, *, groups: ProcessGroupCollection) -> None:
    """Write the checkpoint, which appears complete or not at all (collective).

    Args:
        request: what to convert.
        groups: process groups of a layout without tensor parallelism; all ranks share the work.

    Raises:
        CheckpointError: the folder cannot be converted, or the checkpoint cannot be written.
        RecipeError: the model does not fit the requested layout.
    """
    refuse_existing(
        request.output,
        is_ours=_is_checkpoint,
        kind="a checkpoint of armd_scale",
        overwrite=request.overwrite,
    )
    source = HfCheckpoint(request.hf, request.settings)
    recipe = recipe_for(source, request.output, parallel=request.parallel, dtype=request.dtype)
    # What trains this recipe as it is, or extends it, starts from the converted weights.
    recipe = replace(recipe, model=replace(recipe.model, init_from=HERE))
    rules.check(recipe)  # refuses an impossible --tp or --pp before anything is written
    # Refuses one with more ids than the model.
    Checkpoint(request.hf, recipe, state={}).load_tokenizer()
    weights, dtype = HfWeights(source, groups), DTYPES.get(request.dtype)
    tensors = weights.tensors(dtype)
    # For the progress bar: this rank's share in MB.
    total = sum(tensor.nbytes for tensor in tensors.values()) / dist.get_world_size() / 1e6
    with _checkpoint_folder(request.output) as (folder, hashed):
        if dist.get_rank() == 0:
            _write_small_files(folder, recipe, request.hf)
        dist.barrier()
        with ProgressBar("converting", round(total), unit="MB") as progress:

            def get_tensor(name: str) -> torch.Tensor:
                tensor = weights.build(name, dtype=dtype)
                progress.advance(tensor.nbytes / 1e6)
                return tensor

            written = write_streamed(
                tensors,
                folder / WEIGHTS,
                get_tensor=get_tensor,
                to_user_error=lambda error: write_error(
                    request.output, error, error_class=CheckpointError
                ),
            )
        hashed |= {f"{WEIGHTS}/{name}": record for name, record in written.items()}


def recipe_for(
    source: HfCheckpoint, output: Path, *, parallel: ParallelConfig, dtype: str = "keep"
) -> ResolvedRecipe:
    """Return a recipe with the model of a folder, and conservative defaults for all else.

    Args:
        source: the folder.
        output: the checkpoint; its last part is the name of a run of the recipe.
        parallel: layout.
        dtype: as of `ConversionRequest`.
    """
    assert source.model.max_positions is not None
    recipe = placeholder_recipe(
        source.model,
        run=RunConfig(name=output.name, folder=f"runs/{output.name}", seed=source.settings.seed),
        parallel=parallel,
        is_half=DTYPES.get(dtype, source.dtype) is torch.bfloat16,
    )
    return resolve(recipe)


def refuse_existing(
    output: Path, *, is_ours: Callable[[Path], bool], kind: str, overwrite: bool
) -> None:
    """Refuse to overwrite anything but a folder of the expected kind, and that only on request.

    Args:
        output: the folder to create.
        is_ours: tells whether a folder was made by the same command.
        kind: what such a folder is, for the message.
        overwrite: whether the user asked to replace it.

    Raises:
        CheckpointError: there is something at `output` that must not be replaced.
    """
    if not output.exists():
        return
    if not overwrite:
        raise CheckpointError(
            f"--output must name a folder that does not exist yet ({output} exists): choose "
            "another name or add --overwrite"
        )
    if not is_ours(output):
        raise CheckpointError(
            f"--overwrite must name {kind} ({output} is not one): choose another name"
        )


def _is_checkpoint(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


@contextmanager
def _checkpoint_folder(output: Path) -> Iterator[tuple[Path, dict[str, FileRecord]]]:
    """Yield a folder to write a checkpoint into; on success it becomes `output` (collective).

    Also yields a mapping, for size and hash of files that were hashed while they were written.
    Rank 0 creates the folder, and removes it if anything fails; all ranks write into it.
    """
    is_main = dist.get_rank() == 0
    partial = partial_path(output)
    hashed: dict[str, FileRecord] = {}
    with ExitStack() as stack:
        stack.enter_context(reraise_write_errors(output, error_class=CheckpointError))
        if is_main:
            stack.enter_context(atomic_directory(output, error_class=CheckpointError))
        dist.barrier()
        yield partial, hashed
        dist.barrier()  # all files are written before rank 0 hashes them
        if is_main:
            write_manifest(partial, step=0, hashed=hashed)
    dist.barrier()


def _write_small_files(folder: Path, recipe: Recipe, hf: Path) -> None:
    """Write everything but the weights, including the source's config.json for later exports."""
    (folder / RECIPE).write_text(dump_recipe(recipe))
    (folder / STATE).write_text(json.dumps({"step": 0}, indent=1))
    for name in (WEIGHTS, OPTIMIZER):
        (folder / name).mkdir()
    _copy(hf, SOURCE_FILES, folder / SOURCE)
    # `load_tokenizer` needs one of the first two files: the others alone are no use to it.
    if any((hf / name).is_file() for name in TOKENIZER_FILES[:2]):
        _copy(hf, TOKENIZER_FILES, folder / TOKENIZER)
    else:
        get_logger(__name__).warning(
            "%s contains neither tokenizer.json nor tokenizer.model: the checkpoint will have no "
            "tokenizer",
            hf,
        )


def _copy(source: Path, names: tuple[str, ...], target: Path) -> None:
    """Copy those of the named files that exist."""
    target.mkdir()
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
