"""Weights of a checkpoint written and read one tensor at a time, however large the model is.

The files are those of `layout`: what is written here loads under any layout, and what any layout
wrote is read here whole.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.serialization import get_default_save_common_strategy
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

SECTION = "weights"


def write_streamed(
    tensors: Mapping[str, Tensor], folder: Path, *, get_tensor: Callable[[str], Tensor]
) -> None:
    """Writes the weights into `folder`, which must be empty; the ranks share the tensors.

    Args:
        tensors: of the whole network by name, on the meta device: shapes and types.
        folder: for the files.
        make: gives one tensor by name, of the announced shape and type; called once for each, by
            the rank that writes it.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    # Largest first, so that the ranks' shares differ by little.
    names = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    mine = {f"{SECTION}.{name}": tensors[name] for name in names[rank::size]}
    # A file that holds several tensors would hold them all in memory until it is finished.
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    planner = _LazyPlanner(lambda key: get_tensor(key.removeprefix(f"{SECTION}.")))
    save(mine, storage_writer=writer, planner=planner)
    get_default_save_common_strategy().save_common({}, str(folder))
    if rank == 0:
        save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _LazyPlanner(DefaultSavePlanner):
    """Plans with tensors on the meta device, and asks for each as its turn comes."""

    def __init__(self, make: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._make = make

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor of an item."""
        assert write_item.tensor_data is not None
        made = self._make(write_item.index.fqn).contiguous()
        assert made.shape == write_item.tensor_data.size, write_item.index.fqn
        assert made.dtype == write_item.tensor_data.properties.dtype, write_item.index.fqn
        return made


class StreamedWeights:
    """The weights in a folder, by name.

    Args:
        folder: the weights' folder in a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        self.tensors = {
            key.removeprefix(f"{SECTION}."): torch.empty(
                tensor.size, dtype=tensor.properties.dtype, device="meta"
            )
            for key, tensor in stored.items()
            if isinstance(tensor, TensorStorageMetadata) and key.startswith(f"{SECTION}.")
        }
        """Shape and type of each, on the meta device."""

    def read(self, name: str) -> Tensor:
        """One tensor, whole."""
        tensor = torch.empty_like(self.tensors[name], device="cpu")
        with warnings.catch_warnings():  # that it reads by itself is what is wanted
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load({f"{SECTION}.{name}": tensor}, checkpoint_id=self._folder, no_dist=True)
        return tensor
