"""Export a native checkpoint to a Hugging Face folder: an ARMD, or the plain AR model in it.

An interchange folder is a folder of the source architecture that also has the tensors of the query
initialization, and an `armd` section in config.json. Without that section the same folder is a
plain AR model.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.hf.config import (
    ARMD,
    ARMD_FIELDS,
    CONFIG,
    differences,
    hf_config_from_model,
    model_config_from_hf,
    read_config,
)
from armd_scale.checkpoint.hf.families import FAMILIES, armd_tensors, family_tensors
from armd_scale.checkpoint.hf.importer import SOURCE_FILES, refuse_existing
from armd_scale.checkpoint.hf.packing import (
    PackedTensor,
    Repacker,
    model_tensors,
    piece_shapes,
)
from armd_scale.checkpoint.hf.parity import is_ar_exact
from armd_scale.checkpoint.hf.source import build_meta_model
from armd_scale.checkpoint.hf.spellings import for_both_versions, with_both_spellings
from armd_scale.checkpoint.hf.tensors import SHARD_BYTES, write_tensors
from armd_scale.checkpoint.load import Checkpoint, require_tensors_of_layers
from armd_scale.checkpoint.save import WEIGHTS
from armd_scale.checkpoint.streaming_io import StreamedWeights
from armd_scale.config.resolve import ResolvedModel, resolve_max_positions
from armd_scale.data.special_tokens import TOKENIZER_CONFIG
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import CheckpointError
from armd_scale.files import atomic_directory
from armd_scale.json_files import read_json_object
from armd_scale.log import ProgressBar

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}
GENERATION_CONFIG = SOURCE_FILES[1]
_CARD_TAG = "tags: [armd_scale]"
"""Line of the model card by which an export is recognized."""


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    groups: ProcessGroupCollection,
    as_ar: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the folder, which appears complete or not at all, with one tensor in memory at a time.

    Args:
        checkpoint: from `open_checkpoint`.
        output: the folder to create.
        groups: process groups of a layout without tensor parallelism.
        as_ar: write a plain AR folder: without the tensors and the config section of an ARMD.
        overwrite: replace a Hugging Face folder at `output`.
        shard_bytes: maximum size of a file of weights.

    Raises:
        CheckpointError: no supported family computes this network, `as_ar` is requested and the
            network is not an AR model left to right, or the folder cannot be written.
    """
    refuse_existing(output, is_ours=_is_export, kind="an export of armd_scale", overwrite=overwrite)
    require_tensors_of_layers(checkpoint)
    weights = StreamedWeights(checkpoint.folder / WEIGHTS)
    # config.json needs a maximum length even if the network has no limit: that of training.
    max_positions = resolve_max_positions(checkpoint.recipe)
    model = dataclasses.replace(checkpoint.recipe.model, max_positions=max_positions)
    if as_ar and not is_ar_exact(model, weights.read):
        raise CheckpointError(
            f"--as-ar requires a checkpoint whose left-to-right path is a plain AR model, such as "
            f"one with query=anchor (got query={model.query} in {checkpoint.folder}): leave out "
            "--as-ar, or train with model.query=anchor"
        )
    config = _config(checkpoint, model)
    # Both sides list the same pieces under other names and in other packings; the weights go from
    # one to the other piece by piece.
    sources = model_tensors(build_meta_model(model, groups))
    _check_stored(checkpoint, sources, weights)
    source_pieces = piece_shapes(sources)
    targets = family_tensors(
        FAMILIES[config["model_type"]],
        source_pieces,
        layers=model.layers,
        head_dim=model.head_dim,
    )
    if not as_ar:
        targets += armd_tensors(source_pieces)
        config[ARMD] = {key: getattr(model, field) for key, field in ARMD_FIELDS.items()}
    with atomic_directory(output, error_class=CheckpointError) as folder:
        # The weights first: their type goes into config.json.
        dtype = _write_weights(folder, targets, sources, weights, shard_bytes)
        config = with_both_spellings(config, dtype=_DTYPE_NAMES[dtype])
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _copy_small_files(checkpoint, folder)
        (folder / "README.md").write_text(_model_card(checkpoint, config, as_ar=as_ar))


def _check_stored(
    checkpoint: Checkpoint, expected: list[PackedTensor], weights: StreamedWeights
) -> None:
    """Check that the checkpoint has the tensors of its recipe, in their shapes."""
    for packed in expected:
        stored = weights.tensors.get(packed.name)
        if stored is None or tuple(stored.shape) != packed.shape:
            found = "none" if stored is None else tuple(stored.shape)
            raise CheckpointError(
                f"the tensor {packed.name} must have the shape {packed.shape}, which follows from "
                f"the recipe (got {found} in {checkpoint.folder}): use another checkpoint"
            )


def _config(checkpoint: Checkpoint, model: ResolvedModel) -> dict[str, Any]:
    """The source's config.json if it still describes the network, else a new one.

    The source's own file is preferred because it has keys that we do not interpret.
    """
    source = checkpoint.source_folder
    if source is not None:
        config = {key: value for key, value in read_config(source).items() if key != ARMD}
        described = model_config_from_hf(config, source=source, max_positions=model.max_positions)
        if not differences(described, model):
            return config
    assert model.max_positions is not None
    config = hf_config_from_model(model, max_positions=model.max_positions)
    folder = checkpoint.tokenizer_folder
    tokenizer = None if folder is None else load_tokenizer(folder)
    # Without these keys transformers would use the family's default ids, of another vocabulary.
    for name in ("bos", "eos", "pad"):
        config[f"{name}_token_id"] = None
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eod}
    return config


def _write_weights(
    folder: Path,
    targets: list[PackedTensor],
    sources: list[PackedTensor],
    weights: StreamedWeights,
    shard_bytes: int,
) -> torch.dtype:
    """Write the target tensors, and return the type of the first one."""
    repacker = Repacker(sources, weights.read)
    target_of = {packed.name: packed for packed in targets}
    meta: dict[str, Tensor] = {}
    for packed in targets:
        # A fused tensor may combine tensors of several types: the widest one loses nothing.
        dtypes = [weights.tensors[name].dtype for name in repacker.source_names(packed)]
        dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
        meta[packed.name] = torch.empty(packed.shape, dtype=dtype, device="meta")
    total = sum(tensor.nbytes for tensor in meta.values()) / 1e6
    with ProgressBar("exporting", round(total), unit="MB") as progress:

        def read(name: str) -> Tensor:
            tensor = repacker.build(target_of[name]).to(meta[name].dtype)
            progress.advance(tensor.nbytes / 1e6)
            return tensor

        write_tensors(folder, meta, read=read, shard_bytes=shard_bytes)
    return next(iter(meta.values())).dtype


def _copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the tokenizer's files and the source's generation config."""
    tokenizer = checkpoint.tokenizer_folder
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        path = folder / TOKENIZER_CONFIG
        if path.is_file():
            read = read_json_object(path, error_class=CheckpointError)
            path.write_text(json.dumps(for_both_versions(read), indent=2) + "\n", encoding="utf-8")
    source = checkpoint.source_folder
    generation = None if source is None else source / GENERATION_CONFIG
    if generation is not None and generation.is_file():
        shutil.copyfile(generation, folder / GENERATION_CONFIG)
    else:
        # What save_pretrained writes for a model without generation settings of its own.
        (folder / GENERATION_CONFIG).write_text('{\n  "_from_model_config": true\n}\n')


def _model_card(checkpoint: Checkpoint, config: dict[str, Any], *, as_ar: bool) -> str:
    """The model card (README.md of the folder)."""
    name, architecture = checkpoint.recipe.run.name, config["architectures"][0]
    step = checkpoint.state.get("step", 0)
    if as_ar:
        text = (
            f"The auto-regressive model inside an ARMD after {step} training steps: a plain "
            f"`{architecture}` with the same logits as the ARMD has left to right.\n\n"
            "    from transformers import AutoModelForCausalLM\n"
            "    model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
        )
    else:
        settings = "\n".join(f"* `{key}`: {value}" for key, value in config[ARMD].items())
        text = (
            f"An ARMD (auto-regressive masked diffusion, arXiv 2601.16971) after {step} training "
            f"steps. Its weights are those of a `{architecture}`. The section `armd` of "
            "config.json says how the two-stream network uses them; tensors named `armd.*` "
            f"initialize its query stream:\n\n{settings}\n\n"
            "    python tools/convert_ar_to_armd.py --hf FOLDER --output CHECKPOINT\n"
            "    python tools/evaluate.py --hf FOLDER --data PREFIX --order strided:4\n"
        )
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{_CARD_TAG}\n---\n\n"
        f"# {name}\n\n{text}"
    )


def _is_export(folder: Path) -> bool:
    """Whether the model card of a folder says that this module wrote it.

    A config.json alone does not: every Hugging Face folder has one, also the source of the weights.
    """
    try:
        return _CARD_TAG in (folder / "README.md").read_text(encoding="utf-8")[:1000].splitlines()
    except (OSError, ValueError):
        return False
