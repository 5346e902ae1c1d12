"""Read a Hugging Face folder as an ARMD: check it against its own config, load tensors lazily.

Under left-to-right order with singleton blocks and `query: anchor` the network computes what the AR
model in the folder computes. Tensors that an AR model lacks (gap embeddings, prefix table, query
embedding) are initialized as for training.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.hf.config import (
    ARMD,
    ARMD_FIELDS,
    CONFIG,
    model_config_from_hf,
    read_config,
)
from armd_scale.checkpoint.hf.families import (
    ARMD_TENSORS,
    FAMILIES,
    PREFIX_POSITIONS,
    Family,
    armd_tensors,
    family_tensors,
)
from armd_scale.checkpoint.hf.packing import (
    PackedTensor,
    Repacker,
    load_into,
    model_tensors,
    piece_shapes,
)
from armd_scale.checkpoint.hf.placeholder import placeholder_recipe
from armd_scale.checkpoint.hf.tensors import HfTensors
from armd_scale.config.resolve import ResolvedModel, resolve_model
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import ModelConfig, ParallelConfig, QueryKind, RunConfig
from armd_scale.errors import CheckpointError, RecipeError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_parameter
from armd_scale.parallel.pipeline.partition import PipelineStage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ArmdSettings:
    """What an AR model leaves open; None: as an ARMD folder says, else our default."""

    query: QueryKind | None = None
    two_stream_layers: int | None = None
    upper_visibility: Literal["block", "self"] | None = None
    max_positions: int | None = None
    """Maximum text length in tokens."""
    seed: int = 1234
    """Seed for the tensors that the folder does not contain."""


class HfCheckpoint:
    """A Hugging Face folder whose config is interpreted and whose tensors are listed.

    Args:
        path: the folder, written by save_pretrained or tools/export_hf.py.
        settings: what the folder leaves open.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is not supported.
    """

    def __init__(self, path: Path, settings: ArmdSettings) -> None:
        self.path, self.settings = path, settings
        self.config = read_config(path)
        self.files = HfTensors(path)
        self.family = self._family()
        self.model = self._model()
        self.dtype = Counter(t.dtype for t in self.files.tensors.values()).most_common(1)[0][0]
        """The type of most tensors."""

    def _family(self) -> Family:
        """The family of the folder, with the prefix of tensor names that the folder uses."""
        family = FAMILIES[self.config["model_type"]]
        # Folders saved from the base class (GPT2Model, not GPT2LMHeadModel) have no prefix.
        has_prefix = any(name.startswith(family.base) for name in self.files.tensors)
        return family if has_prefix else dataclasses.replace(family, base="")

    def _model(self) -> ResolvedModel:
        """The model section of config.json, with the settings applied."""
        armd: dict[str, Any] = dict(self.config.get(ARMD, {}))
        if armd and sorted(armd) != sorted(ARMD_FIELDS):
            raise CheckpointError(
                f"{self.path / CONFIG} must have the keys {', '.join(ARMD_FIELDS)} under {ARMD} "
                f"(got {', '.join(armd)}): export the folder again"
            )
        # getattr needs a default: not every field of the `armd` section (such as max_anchor_gap)
        # is a setting.
        overrides = {
            field: getattr(self.settings, field)
            for field in ARMD_FIELDS.values()
            if getattr(self.settings, field, None) is not None
        }
        if armd and overrides.get("query", armd["query"]) != armd["query"]:
            raise CheckpointError(
                f"--query must be {armd['query']}, which the ARMD in {self.path} was trained "
                f"with (got {overrides['query']}): leave it out"
            )
        model = model_config_from_hf(
            self.config, source=self.path, max_positions=self._max_positions(is_armd=bool(armd))
        )
        model = dataclasses.replace(model, **overrides)
        self._check_model(model)
        return resolve_model(model)

    def _check_model(self, model: ModelConfig) -> None:
        """Apply the rules of a recipe, on which everything that is built from the model relies."""
        path = self.path / CONFIG
        run = RunConfig(name=self.path.name or "model", folder=str(self.path))
        recipe = placeholder_recipe(model, run=run, parallel=ParallelConfig(), is_half=False)
        try:
            rules.check(recipe)
        except RecipeError as error:
            raise CheckpointError(f"{path} must describe a valid model, and {error}") from error
        # A layer has several; without the check all layers would be built, before one is missed.
        if model.layers > len(self.files.tensors):
            raise CheckpointError(
                f"{path} must describe the model in the folder, and says {model.layers} layers for "
                f"{len(self.files.tensors)} tensors: put the files of one model together"
            )

    def _max_positions(self, *, is_armd: bool) -> int | None:
        # The prefix table of an ARMD has a row for each position; its rows may differ in number
        # from the positions of the AR model that config.json describes.
        table = self.files.tensors.get(ARMD_TENSORS[PREFIX_POSITIONS])
        if is_armd and table is not None and self.settings.max_positions is None:
            return table.shape[0]
        return self.settings.max_positions


class HfWeights:
    """The tensors of our network, each built from those of a folder when it is requested.

    The constructor checks that the folder contains all tensors, in the shapes that follow from its
    config, and no others.

    Args:
        folder: the folder.
        groups: process groups of a layout without tensor parallelism.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or does not belong to the model.
    """

    def __init__(self, folder: HfCheckpoint, groups: ProcessGroupCollection) -> None:
        self._folder, self._groups = folder, groups
        model = folder.model
        targets = model_tensors(build_meta_model(model, groups))
        target_pieces = piece_shapes(targets)
        sources = family_tensors(
            folder.family, target_pieces, layers=model.layers, head_dim=model.head_dim
        )
        if ARMD in folder.config:
            sources += armd_tensors(target_pieces)
        _check_tensors(folder, sources)
        self._repacker = Repacker(sources, folder.files.read)
        # A target with a piece that no source contains is new in the ARMD, and is initialized.
        source_pieces = piece_shapes(sources).keys()
        self._targets = {packed.name: packed for packed in targets}
        self._initialized = {
            packed.name for packed in targets if not packed.pieces.keys() <= source_pieces
        }

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return shape and type of our tensors by name, on the meta device.

        Args:
            dtype: type for all tensors; None: the types in the folder.
        """
        return {
            name: torch.empty(packed.shape, dtype=dtype or self._dtype_of(packed), device="meta")
            for name, packed in self._targets.items()
        }

    def build(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """Build one of our tensors; `dtype` as of `tensors`."""
        packed = self._targets[name]
        if name not in self._initialized:
            return self._repacker.build(packed).to(dtype or self._dtype_of(packed))
        # Drawn in float32 from seed and name, so that the folder's type does not matter.
        initial = torch.empty(packed.shape, dtype=torch.float32)
        init_parameter(initial, name, model=self._folder.model, seed=self._folder.settings.seed)
        return initial.to(dtype or self._folder.dtype)

    def load(self, dtype: torch.dtype) -> ArmdModel:
        """Build the whole network on the CPU, in evaluation mode."""
        network = build_empty_model(self._folder.model, self._groups, dtype=dtype)
        load_into(network, self.build)
        return network.eval()

    def _dtype_of(self, packed: PackedTensor) -> torch.dtype:
        if packed.name in self._initialized:
            return self._folder.dtype
        names = self._repacker.source_names(packed)
        dtypes = [self._folder.files.tensors[name].dtype for name in names]
        return max(dtypes, key=lambda dtype: dtype.itemsize)


def _check_tensors(folder: HfCheckpoint, expected: list[PackedTensor]) -> None:
    """Check that the folder contains these tensors, in these shapes, and no others."""
    stored = folder.files.tensors
    for packed in expected:
        if packed.name not in stored:
            advice = "copy the folder again"
            if packed.name == f"{folder.family.head}.weight":
                advice += ", or set tie_word_embeddings to true there if the head is the embedding"
            raise CheckpointError(
                f"{folder.path} must contain the tensor {packed.name}, which follows from its "
                f"{CONFIG}, and does not: {advice}"
            )
        shape, tensor = packed.shape, stored[packed.name]
        location = f"{packed.name} in {folder.files.file_of(packed.name)}"
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"the tensor {location} must have the shape {shape}, which follows from {CONFIG} "
                f"(got {tuple(tensor.shape)}): put the files of one model together"
            )
        if tensor.dtype not in (*DTYPES.values(), torch.float64):
            raise CheckpointError(
                f"the tensor {location} must have a floating-point type of 16, 32 or 64 bits, and "
                "does not: convert the folder from which the weights were quantized"
            )
    _check_other_tensors(folder, stored.keys() - {packed.name for packed in expected})


def _check_other_tensors(folder: HfCheckpoint, names: set[str]) -> None:
    """Check that the remaining tensors are known buffers, or a tied head equal to the embedding."""
    head = f"{folder.family.head}.weight"
    ignored = folder.family.buffers
    if ARMD not in folder.config:
        # Without the `armd` section an exported ARMD is a plain AR model: skip its ARMD tensors.
        ignored += r"|armd\..*"
    for name in sorted(names):
        if re.fullmatch(ignored, name):
            continue
        path = folder.files.file_of(name)
        if name != head or not folder.model.tie_embeddings:
            raise CheckpointError(
                f"{path} must contain only tensors of the model in its {CONFIG}, and contains "
                f"{name}: put the files of one model together, or remove it"
            )
        read = folder.files.read
        if not torch.equal(read(name), read(f"{folder.family.embedding}.weight")):
            raise CheckpointError(
                f"{name} in {path} must equal the embedding, because {CONFIG} ties them "
                "(tie_word_embeddings), and does not: set that key to false"
            )


def build_meta_model(model: ResolvedModel, groups: ProcessGroupCollection) -> ArmdModel:
    """Build the whole network on the meta device: names and shapes without values."""
    with torch.device("meta"):
        return build_empty_model(model, groups, dtype=torch.float32)


def build_empty_model(
    model: ResolvedModel,
    groups: ProcessGroupCollection,
    *,
    dtype: torch.dtype,
    stage: PipelineStage | None = None,
) -> ArmdModel:
    """Build the network, or a pipeline stage of it, with uninitialized weights.

    Args:
        model: a resolved model section.
        groups: process groups of a layout without tensor parallelism.
        dtype: type of the weights.
        stage: the part to build; None: the whole network.
    """
    config = transformer_config(model, ParallelConfig(), dtype=dtype)
    # megatron-core would otherwise allocate on the GPU, or draw initial values there.
    config = dataclasses.replace(config, use_cpu_initialization=True)
    return ArmdModel(model, config, groups=groups, stage=stage)
