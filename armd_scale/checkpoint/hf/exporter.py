"""A checkpoint of ours to a Hugging Face folder: an ARMD to exchange, or the AR model in it.

The interchange folder is that of the source architecture with the query start's tensors beside its
own and an `armd` key in config.json; without the key the same folder is a plain AR model.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
from armd_scale.checkpoint.hf.importer import SOURCE, SOURCE_FILES, refuse_existing
from armd_scale.checkpoint.hf.packing import PackedTensor, Repacker, model_tensors, pieces
from armd_scale.checkpoint.hf.parity import is_ar_exact
from armd_scale.checkpoint.hf.source import build_meta_model
from armd_scale.checkpoint.hf.tensors import SHARD_BYTES, write_tensors
from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.save import WEIGHTS
from armd_scale.checkpoint.store import verify
from armd_scale.checkpoint.streaming_io import StreamedWeights
from armd_scale.config.resolve import ResolvedModel, resolve_max_positions
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import CheckpointError
from armd_scale.log import ProgressBar

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}
GENERATION = SOURCE_FILES[1]


def export(
    checkpoint: Checkpoint,
    output: Path,
    *,
    groups: ProcessGroupCollection,
    as_ar: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the folder; it exists whole or not at all, and memory holds one tensor at a time.

    Args:
        checkpoint: from `open_checkpoint`.
        output: the folder to be.
        groups: of a layout without tensor parallelism.
        as_ar: leave out what an AR model has not.
        overwrite: replace a folder of such a kind.
        shard_bytes: largest file of weights.

    Raises:
        CheckpointError: no family of Hugging Face is this network, an AR model cannot be cut out of
            it, or the folder cannot be written.
    """
    refuse_existing(output, marker=CONFIG, overwrite=overwrite)
    weights = StreamedWeights(checkpoint.folder / WEIGHTS)
    # A config.json names a longest text even where the network has no limit: that of training.
    max_positions = resolve_max_positions(checkpoint.recipe)
    model = dataclasses.replace(checkpoint.recipe.model, max_positions=max_positions)
    if as_ar and not is_ar_exact(model, weights.read):
        raise CheckpointError(
            f"--as-ar needs a checkpoint that is an AR model left to right, and the query start "
            f"of {checkpoint.folder} ({model.query}) makes it none: leave --as-ar out, or train "
            "with model.query=anchor"
        )
    config = _config(checkpoint, model)
    own = model_tensors(build_meta_model(model, groups))
    wanted = pieces(own)
    held = family_tensors(
        FAMILIES[config["model_type"]], wanted, layers=model.layers, head_dim=model.head_dim
    )
    if not as_ar:
        held += armd_tensors(wanted)
        config[ARMD] = {key: getattr(model, field) for key, field in ARMD_FIELDS.items()}
    with _appearing(output) as folder:
        dtype = _write_weights(folder, held, own, weights, shard_bytes)
        for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:
            config[key] = _DTYPE_NAMES[dtype]
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        _copy_small_files(checkpoint, folder)
        (folder / "README.md").write_text(_model_card(checkpoint, config, as_ar=as_ar))


def _config(checkpoint: Checkpoint, model: ResolvedModel) -> dict[str, Any]:
    """The source's config.json while it still describes the network, else one made for it."""
    source = _source_config_dir(checkpoint)
    if source is not None:
        config = {key: value for key, value in read_config(source).items() if key != ARMD}
        described = model_config_from_hf(config, source=source, max_positions=model.max_positions)
        if not differences(described, model):
            return config
    assert model.max_positions is not None
    config = hf_config_from_model(model, max_positions=model.max_positions)
    folder = checkpoint.tokenizer_folder
    tokenizer = None if folder is None else load_tokenizer(folder)
    for name in ("bos", "eos", "pad"):
        config[f"{name}_token_id"] = None
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eod}
    return config


def _source_config_dir(checkpoint: Checkpoint) -> Path | None:
    """What is kept of the folder that the checkpoint, or the one it began from, was made of."""
    begun_from = checkpoint.recipe.model.init_from
    for folder in (checkpoint.folder, *([] if begun_from is None else [Path(begun_from)])):
        if (folder / SOURCE / CONFIG).is_file():
            verify(folder, inside=SOURCE)
            return folder / SOURCE
    return None


def _write_weights(
    folder: Path,
    held: list[PackedTensor],
    own: list[PackedTensor],
    weights: StreamedWeights,
    shard_bytes: int,
) -> torch.dtype:
    """Writes the tensors; returns the type of the first."""
    translation = Repacker(own, weights.read)
    by_name = {packed.name: packed for packed in held}
    described: dict[str, Tensor] = {}
    for packed in held:
        kinds = [weights.tensors[name].dtype for name in translation.names(packed)]
        kind = max(kinds, key=lambda dtype: dtype.itemsize)
        described[packed.name] = torch.empty(packed.shape, dtype=kind, device="meta")
    total = sum(tensor.nbytes for tensor in described.values()) / 1e6
    with ProgressBar("exporting", round(total), unit="MB") as track:

        def read(name: str) -> Tensor:
            made = translation.build(by_name[name]).to(described[name].dtype)
            track.advance(made.nbytes / 1e6)
            return made

        write_tensors(folder, described, read=read, shard_bytes=shard_bytes)
    return next(iter(described.values())).dtype


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder that takes its name once it is whole; whatever fails, nothing is left beside it."""
    partial = output.parent / f".{output.name}.partial"
    replaced = output.parent / f".{output.name}.replaced"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rename(replaced)
        partial.rename(output)
    except OSError as error:
        raise CheckpointError(
            f"the folder must be written to {output}, and that failed "
            f"({error.strerror or error}): free space or mend permissions there"
        ) from error
    finally:
        for left in (partial, replaced):
            shutil.rmtree(left, ignore_errors=True)


def _copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """The tokenizer's files, and the source's settings of generation."""
    tokenizer = checkpoint.tokenizer_folder
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    source = _source_config_dir(checkpoint)
    generation = None if source is None else source / GENERATION
    if generation is not None and generation.is_file():
        shutil.copyfile(generation, folder / GENERATION)
    else:
        (folder / GENERATION).write_text('{\n  "_from_model_config": true\n}\n')


def _model_card(checkpoint: Checkpoint, config: dict[str, Any], *, as_ar: bool) -> str:
    """The model card."""
    name, kind = checkpoint.recipe.run.name, config["architectures"][0]
    step = checkpoint.state.get("step", 0)
    if as_ar:
        text = (
            f"The auto-regressive model inside an ARMD after {step} training steps: a plain "
            f"`{kind}`, with the logits that the ARMD has left to right.\n\n"
            "    from transformers import AutoModelForCausalLM\n"
            "    model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
        )
    else:
        settings = "\n".join(f"* `{key}`: {value}" for key, value in config[ARMD].items())
        text = (
            f"An ARMD (auto-regressive masked diffusion, arXiv 2601.16971) after {step} training "
            f"steps. Its weights are those of a `{kind}`; the key `armd` of config.json says how "
            "the two-stream network runs them, and tensors named `armd.*` start its query stream:"
            f"\n\n{settings}\n\n"
            "    python tools/convert_ar_to_armd.py --hf FOLDER --output CHECKPOINT\n"
            "    python tools/evaluate.py --hf FOLDER --data PREFIX --order strided:4\n"
        )
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\n{text}"
    )
