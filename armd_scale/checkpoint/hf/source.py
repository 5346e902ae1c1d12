"""A Hugging Face folder opened as an ARMD: checked against its own config, and read lazily.

Under left-to-right singleton blocks and the `anchor` query start the network is the folder's AR
model; what an AR model lacks (the gap table, a prefix table, a query vector) starts as in training.
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
    Family,
    armd_tensors,
    family_tensors,
)
from armd_scale.checkpoint.hf.packing import PackedTensor, Repacker, model_tensors, pieces
from armd_scale.checkpoint.hf.tensors import HfTensors
from armd_scale.config.resolve import ResolvedModel, resolve_model
from armd_scale.config.schema import ParallelConfig, QueryKind
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_parameter
from armd_scale.parallel.pipeline.partition import PipelineStage
from armd_scale.parallel.tensor.partition import tensor_partition

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ArmdSettings:
    """What an AR model leaves open; None: as the folder says, else our default."""

    query: QueryKind | None = None
    two_stream_layers: int | None = None
    upper_visibility: Literal["block", "self"] | None = None
    max_positions: int | None = None
    """Longest text to serve."""
    seed: int = 1234
    """Of tensors that the folder does not hold."""


class HfCheckpoint:
    """A folder, its config understood and its tensors listed.

    Args:
        path: of the folder, as save_pretrained or tools/export_hf.py wrote it.
        settings: what the folder leaves open.

    Raises:
        CheckpointError: a file is missing or damaged, or the model is none of ours.
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
        """The folder's family; its base class alone saves names without the prefix."""
        family = FAMILIES[self.config["model_type"]]
        prefixed = any(name.startswith(family.base) for name in self.files.tensors)
        return family if prefixed else dataclasses.replace(family, base="")

    def _model(self) -> ResolvedModel:
        kept: dict[str, Any] = dict(self.config.get(ARMD, {}))
        if kept and sorted(kept) != sorted(ARMD_FIELDS):
            raise CheckpointError(
                f"{self.path / CONFIG} must have the keys {', '.join(ARMD_FIELDS)} under {ARMD}, "
                f"got {', '.join(kept)}: export the folder again"
            )
        given = {
            field: getattr(self.settings, field)
            for field in ARMD_FIELDS.values()
            if hasattr(self.settings, field)
        }
        given = {key: value for key, value in given.items() if value is not None}
        if kept and given.get("query", kept["query"]) != kept["query"]:
            raise CheckpointError(
                f"--query must be {kept['query']}, which the ARMD in {self.path} was trained "
                f"with, got {given['query']}: leave it out"
            )
        asked = self.settings.max_positions
        table = self.files.tensors.get(ARMD_TENSORS["query_start.prefix.position_embedding"])
        if kept and table is not None and asked is None:
            asked = table.shape[0]
        model = model_config_from_hf(self.config, source=self.path, max_positions=asked)
        return resolve_model(dataclasses.replace(model, **given))


class HfWeights:
    """The tensors of our network, made from those of a folder, each when it is asked for.

    All of the folder's tensors are known to be there, in the shapes that its config asks for.

    Args:
        folder: that holds them.
        groups: of a layout without tensor parallelism.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or left over.
    """

    def __init__(self, folder: HfCheckpoint, groups: ProcessGroupCollection) -> None:
        self._folder, self._groups = folder, groups
        model, own = folder.model, model_tensors(build_meta_model(folder.model, groups))
        wanted = pieces(own)
        source_tensors = family_tensors(
            folder.family, wanted, layers=model.layers, head_dim=model.head_dim
        )
        if ARMD in folder.config:
            source_tensors += armd_tensors(wanted)
        _check(folder, source_tensors)
        self._from_folder = Repacker(source_tensors, folder.files.read)
        held_pieces = pieces(source_tensors).keys()
        self._target_tensors = {packed.name: packed for packed in own}
        self._initialized = {
            packed.name for packed in own if not packed.pieces.keys() <= held_pieces
        }

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Shape and type of our tensors, on the meta device; in the folder's types by default."""
        described = {}
        for name, packed in self._target_tensors.items():
            kept = dtype or self._dtype_of(packed)
            described[name] = torch.empty(packed.shape, dtype=kept, device="meta")
        return described

    def make(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """One of our tensors, in the folder's type by default."""
        packed = self._target_tensors[name]
        if name not in self._initialized:
            return self._from_folder.build(packed).to(dtype or self._dtype_of(packed))
        drawn = torch.empty(packed.shape, dtype=torch.float32)
        init_parameter(drawn, name, model=self._folder.model, seed=self._folder.settings.seed)
        return drawn.to(dtype or self._folder.dtype)

    @torch.no_grad()
    def load(self, dtype: torch.dtype) -> ArmdModel:
        """The whole network, for evaluation and decoding."""
        network = build_empty_model(self._folder.model, self._groups, dtype=dtype)
        for name, parameter in network.parameters_by_name().items():
            stride = tensor_partition(parameter, network.groups.tp).stride
            names = [name] if stride == 1 else [f"{name}.{half}" for half in range(stride)]
            for half, stored in zip(parameter.chunk(stride), names, strict=True):
                half.copy_(self.make(stored))
        return network.eval()

    def _dtype_of(self, packed: PackedTensor) -> torch.dtype:
        if packed.name in self._initialized:
            return self._folder.dtype
        names = self._from_folder.names(packed)
        kinds = [self._folder.files.tensors[name].dtype for name in names]
        return max(kinds, key=lambda dtype: dtype.itemsize)


def _check(folder: HfCheckpoint, held: list[PackedTensor]) -> None:
    """The folder holds these tensors, in these shapes, and no others."""
    found = folder.files.tensors
    for packed in held:
        if packed.name not in found:
            raise CheckpointError(
                f"{folder.path} must hold the tensor {packed.name} of its {CONFIG}, and does "
                "not: copy the folder again"
            )
        shape, tensor = packed.shape, found[packed.name]
        where = f"{packed.name} in {folder.files.file_of(packed.name)}"
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"the tensor {where} must have the shape {shape} that {CONFIG} asks for, got "
                f"{tuple(tensor.shape)}: put the files of one model together"
            )
        if tensor.dtype not in (*DTYPES.values(), torch.float64):
            raise CheckpointError(
                f"the tensor {where} must hold numbers of 16, 32 or 64 bits, and does not: "
                "convert the folder that the weights were quantised from"
            )
    _check_others(folder, found.keys() - {packed.name for packed in held})


def _check_others(folder: HfCheckpoint, names: set[str]) -> None:
    """What no tensor of ours comes from is a buffer, or a head that is tied and says so."""
    head = f"{folder.family.head}.weight"
    ignored = (
        folder.family.buffers if ARMD in folder.config else rf"{folder.family.buffers}|armd\..*"
    )
    for name in sorted(names):
        if re.fullmatch(ignored, name):
            continue
        path = folder.files.file_of(name)
        if name != head or not folder.model.tie_embeddings:
            raise CheckpointError(
                f"{path} must hold the tensors of its {CONFIG} and no others, and holds "
                f"{name}: put the files of one model together, or remove it"
            )
        read = folder.files.read
        (embedding,) = (m for m, ours in folder.family.modules.items() if ours == "embedding")
        if not torch.equal(read(name), read(f"{folder.family.base}{embedding}.weight")):
            raise CheckpointError(
                f"{name} in {path} must equal the embedding, because {CONFIG} ties them "
                "(tie_word_embeddings), and does not: set that key to false"
            )


def build_meta_model(model: ResolvedModel, groups: ProcessGroupCollection) -> ArmdModel:
    """The whole network without its numbers."""
    with torch.device("meta"):
        return build_empty_model(model, groups, dtype=torch.float32)


def build_empty_model(
    model: ResolvedModel,
    groups: ProcessGroupCollection,
    *,
    dtype: torch.dtype,
    stage: PipelineStage | None = None,
) -> ArmdModel:
    """The network, or a stage of it, with numbers yet to be filled in.

    Args:
        model: a resolved model section.
        groups: of a layout without tensor parallelism.
        dtype: of the weights.
        stage: which part; the whole by default.
    """
    config = transformer_config(model, ParallelConfig(), dtype=dtype)
    config = dataclasses.replace(config, use_cpu_initialization=True)
    return ArmdModel(model, config, groups=groups, stage=stage)
