"""Read and write the weights of a checkpoint one tensor at a time, however large the model is.

The file format is that of `sharded_io`: weights written here load under any layout, and weights
written under any layout are read here as whole tensors.
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
    """Write the weights into an empty folder; the ranks share the tensors (collective).

    Args:
        tensors: shapes and types of the whole network's tensors, by name, on the meta device.
        folder: the empty folder.
        get_tensor: returns a tensor by name, with the shape and type in `tensors`; called once for
            each tensor, on the rank that writes it.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    # Dealing tensors out from the largest to the smallest gives all ranks nearly equal shares.
    names = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    own_share = {f"{SECTION}.{name}": tensors[name] for name in names[rank::size]}
    # With one file per rank, DCP keeps all tensors of the file in memory until it is written.
    writer = FileSystemWriter(folder, single_file_per_rank=False)
    planner = _LazyPlanner(lambda key: get_tensor(key.removeprefix(f"{SECTION}.")))
    save(own_share, storage_writer=writer, planner=planner)
    # `dist_checkpointing.load` also expects megatron-core's common state and its config file.
    get_default_save_common_strategy().save_common({}, str(folder))
    if rank == 0:
        save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _LazyPlanner(DefaultSavePlanner):
    """Plans with meta tensors, and fetches each tensor only when it is written."""

    def __init__(self, get_tensor: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._get_tensor = get_tensor

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """Return the tensor of a write item; DCP calls this just before writing it."""
        assert write_item.tensor_data is not None
        tensor = self._get_tensor(write_item.index.fqn).contiguous()
        assert tensor.shape == write_item.tensor_data.size, write_item.index.fqn
        assert tensor.dtype == write_item.tensor_data.properties.dtype, write_item.index.fqn
        return tensor


class StreamedWeights:
    """The weights in a folder, read by name.

    Args:
        folder: the `weights` folder of a checkpoint.
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
        """Shape and type of each tensor, on the meta device."""

    def read(self, name: str) -> Tensor:
        """Read one whole tensor."""
        tensor = torch.empty_like(self.tensors[name], device="cpu")
        with warnings.catch_warnings():
            # DCP warns that each rank loads on its own; that is intended here.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load({f"{SECTION}.{name}": tensor}, checkpoint_id=self._folder, no_dist=True)
        return tensor
