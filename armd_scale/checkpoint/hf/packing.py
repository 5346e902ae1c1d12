"""Mapping between our tensors and those of a Hugging Face checkpoint.

Models store the same matrices packed differently: keys beside values, all three projections in one
tensor, transposed. A *piece* is the largest tensor that no format splits, such as the key
projection of a layer. Each side is then a list of packed tensors, each of which holds some pieces
in a layout. Every layout is a bijection, so a conversion unpacks the tensors of one side and packs
those of the other, and the way back restores every bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.tensor.partition import tensor_partition

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = Literal["rows", "columns", "heads", "padded"]

_PADDED = ("embedding.weight", "output_layer.weight")


@dataclass(frozen=True)
class PackedTensor:
    """A stored tensor and the pieces in it.

    Args:
        name: name of the tensor.
        pieces: shape of each piece by name, in storage order.
        layout: `rows`: pieces one below the other; `columns`: the same, transposed (GPT-2);
            `heads`: grouped by head, and for each head its rows of every piece in turn (GPT-NeoX);
            `padded`: one piece, then rows of zeros.
        size: rows of a head in layout `heads`, total rows in layout `padded`.
    """

    name: str
    pieces: Mapping[str, Shape]
    layout: Layout = "rows"
    size: int = 0

    @property
    def shape(self) -> Shape:
        """Shape of the packed tensor."""
        meta = [torch.empty(shape, device="meta") for shape in self.pieces.values()]
        return tuple(self.pack(meta).shape)

    def pack(self, pieces: Sequence[Tensor]) -> Tensor:
        """Build the packed tensor from its pieces, given in storage order."""
        if self.layout == "heads":
            # [heads * d, hidden] -> [heads, d, hidden] for each piece; stacking on dim 1 puts the
            # rows of one head side by side: [heads, pieces, d, hidden].
            by_head = [piece.unflatten(0, (-1, self.size)) for piece in pieces]
            return torch.stack(by_head, dim=1).flatten(0, 2)
        if self.layout == "padded":
            (piece,) = pieces
            padding = piece.new_zeros(self.size - len(piece), *piece.shape[1:])
            return torch.cat((piece, padding)) if len(padding) else piece
        whole = torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]
        return whole.t() if self.layout == "columns" else whole

    def unpack(self, whole: Tensor) -> dict[str, Tensor]:
        """Return the pieces of a packed tensor, as views of it where the layout allows."""
        num_rows = [shape[0] for shape in self.pieces.values()]
        if self.layout == "heads":
            by_head = whole.unflatten(0, (-1, len(num_rows), self.size)).unbind(1)
            parts = [part.flatten(0, 1) for part in by_head]
        elif self.layout == "padded":
            parts = [whole[: num_rows[0]]]
        else:
            parts = (whole.t() if self.layout == "columns" else whole).split(num_rows)
        return dict(zip(self.pieces, parts, strict=True))


def model_tensors(network: ArmdModel) -> list[PackedTensor]:
    """Return the tensors of a native checkpoint's weights, under the names `sharded_io` uses.

    Args:
        network: the whole network; its parameters may be on the meta device.
    """
    tensors = []
    for name, parameter in network.parameters_by_name().items():
        split, shape = tensor_partition(parameter, network.groups.tp), tuple(parameter.shape)
        if split.stride > 1:  # `sharded_io` stores gate and up halves as two tensors
            half_shape = (shape[0] // split.stride, *shape[1:])
            for stored, half in zip(stored_names(name, split.stride), ("gate", "up"), strict=True):
                piece = name.replace("linear_fc1", f"linear_{half}")
                tensors.append(PackedTensor(stored, {piece: half_shape}))
        elif ".linear_kv." in name:
            half_shape = (shape[0] // 2, *shape[1:])
            pieces = {name.replace("linear_kv", f"linear_{half}"): half_shape for half in "kv"}
            tensors.append(PackedTensor(name, pieces, "heads", network.model.head_dim))
        elif name in _PADDED:
            # Our vocabulary is padded to a multiple of 64; the piece has the real number of rows.
            piece = {name: (network.vocab_size, *shape[1:])}
            tensors.append(PackedTensor(name, piece, "padded", shape[0]))
        else:
            piece = f"{name}.weight" if name == "position_embedding" else name
            tensors.append(PackedTensor(name, {piece: shape}))
    return tensors


def stored_names(name: str, stride: int) -> list[str]:
    """Names under which a checkpoint stores a parameter: one for each of its `stride` parts."""
    return [name] if stride == 1 else [f"{name}.{index}" for index in range(stride)]


@torch.no_grad()
def load_into(network: ArmdModel, get_tensor: Callable[[str], Tensor]) -> None:
    """Fill all parameters of a network, or of a stage of it, from stored tensors.

    Args:
        network: without tensor parallelism.
        get_tensor: returns a whole stored tensor by its name in a checkpoint, of any type.
    """
    for name, parameter in network.parameters_by_name().items():
        stride = tensor_partition(parameter, network.groups.tp).stride
        parts = parameter.chunk(stride)  # views: copying into them fills the parameter
        for part, stored in zip(parts, stored_names(name, stride), strict=True):
            part.copy_(get_tensor(stored))


def piece_shapes(tensors: Sequence[PackedTensor]) -> dict[str, Shape]:
    """Return all pieces of some tensors with their shapes."""
    return {name: shape for packed in tensors for name, shape in packed.pieces.items()}


class Repacker:
    """Builds tensors of one side from tensors of the other side.

    Args:
        sources: all tensors that can be read.
        read: reads one of them by name.
    """

    def __init__(self, sources: Sequence[PackedTensor], read: Callable[[str], Tensor]) -> None:
        self._source_of = {piece: packed for packed in sources for piece in packed.pieces}
        self._read = read

    def source_names(self, packed: PackedTensor) -> list[str]:
        """Names of the source tensors that contain the pieces of a target tensor."""
        return list(dict.fromkeys(self._source_of[piece].name for piece in packed.pieces))

    def build(self, packed: PackedTensor) -> Tensor:
        """Build a target tensor; each source tensor that it needs is read once."""
        pieces: dict[str, Tensor] = {}
        for piece in packed.pieces:
            if piece not in pieces:
                source = self._source_of[piece]
                pieces |= source.unpack(self._read(source.name))
        return packed.pack([pieces[piece] for piece in packed.pieces])
