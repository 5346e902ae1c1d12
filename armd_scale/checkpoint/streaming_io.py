"""Read and write the weights of a checkpoint one tensor at a time, however large the model is.

The files are those of `sharded_io`: weights written here load under any layout, and weights written
under any layout are read here as whole tensors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from armd_scale.checkpoint.async_task import BackgroundTask, gather_results
from armd_scale.checkpoint.sharded_io import WriteResults
from armd_scale.checkpoint.tensor_files import (
    DTYPES,
    FileRecord,
    TensorReader,
    merge_records,
    rank_file,
    whole_record,
    write_index,
    write_tensors,
)
from armd_scale.errors import CheckpointError

SECTION = "weights"


def write_streamed(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    get_tensor: Callable[[str], Tensor],
    to_user_error: Callable[[OSError], CheckpointError],
) -> dict[str, FileRecord]:
    """Write the weights into an empty folder; the ranks share the tensors (collective).

    Args:
        tensors: shapes and types of the whole network's tensors, by name, on the meta device.
        folder: the empty folder.
        get_tensor: returns a tensor by name, with the shape and type in `tensors`; called once for
            each tensor, on the rank that writes it.
        to_user_error: converts an OSError into the error for the user.

    Returns:
        On rank 0 the size and SHA-256 of each file by name; elsewhere nothing.

    Raises:
        CheckpointError: a file cannot be written, or `get_tensor` raised this; on every rank.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    # Dealing tensors out from the largest to the smallest gives all ranks nearly equal shares.
    names = sorted(tensors, key=lambda name: -tensors[name].nbytes)
    own_share = {f"{SECTION}.{name}": tensors[name] for name in names[rank::size]}
    # A task, although it is waited for at once: an error on one rank must reach all of them.
    task = BackgroundTask(lambda: _write_share(own_share, folder, get_tensor))
    task.wait()
    results = gather_results(task, to_user_error)
    # On rank 0 alone the results are there; a full disk must still end all ranks.
    records = merge_records(result.records for result in results)
    task = BackgroundTask(lambda: write_index(folder, records) if rank == 0 else None)
    task.wait()
    gather_results(task, to_user_error)
    return {name: record for result in results for name, record in result.files.items()}


def _write_share(
    tensors: Mapping[str, Tensor], folder: Path, get_tensor: Callable[[str], Tensor]
) -> WriteResults:
    if not tensors:
        return WriteResults({}, {})
    file = rank_file(dist.get_rank())
    record = write_tensors(
        folder / file,
        tensors,
        get_tensor=lambda key: get_tensor(key.removeprefix(f"{SECTION}.")),
    )
    records = {key: whole_record(tensor, file) for key, tensor in tensors.items()}
    return WriteResults(records, {file: record})


class StreamedWeights:
    """The weights in a folder, read by name.

    Args:
        folder: the `weights` folder of a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        # Its files stay open, as a model is read tensor by tensor until the end.
        self._reader = TensorReader(folder)
        self.tensors = {
            key.removeprefix(f"{SECTION}."): torch.empty(
                record.shape, dtype=DTYPES[record.dtype], device="meta"
            )
            for key, record in self._reader.records.items()
            if key.startswith(f"{SECTION}.")
        }
        """Shape and type of each tensor, on the meta device."""

    def read(self, name: str) -> Tensor:
        """Read one whole tensor."""
        return self._reader.read(f"{SECTION}.{name}")
