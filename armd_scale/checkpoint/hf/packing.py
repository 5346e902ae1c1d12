"""Which tensors lie in which, here and elsewhere.

Models store the same matrices packed differently: keys beside values, all three projections in one,
transposed. A piece is the largest tensor that nobody cuts, such as a layer's key projection. Each
side then is a table of packed tensors, each of some pieces in a layout; every layout is a
bijection, so converting is: unpack here, pack there, and the way back gives every bit again.
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
        name: of the tensor.
        pieces: shape of each piece, in the order in which they lie.
        layout: `rows`: one below the other; `columns`: that, transposed (GPT-2); `heads`: by head,
            each head's part of every piece in turn; `padded`: one piece, then rows of zeros.
        size: rows of a head under `heads`, all rows under `padded`.
    """

    name: str
    pieces: Mapping[str, Shape]
    layout: Layout = "rows"
    size: int = 0

    @property
    def shape(self) -> Shape:
        """Shape of the whole."""
        meta = [torch.empty(shape, device="meta") for shape in self.pieces.values()]
        return tuple(self.pack(meta).shape)

    def pack(self, pieces: Sequence[Tensor]) -> Tensor:
        """The whole from its pieces."""
        if self.layout == "heads":
            by_head = [piece.unflatten(0, (-1, self.size)) for piece in pieces]
            return torch.stack(by_head, dim=1).flatten(0, 2)
        if self.layout == "padded":
            (piece,) = pieces
            missing = piece.new_zeros(self.size - len(piece), *piece.shape[1:])
            return torch.cat((piece, missing)) if len(missing) else piece
        whole = torch.cat(tuple(pieces)) if len(pieces) > 1 else pieces[0]
        return whole.t() if self.layout == "columns" else whole

    def unpack(self, whole: Tensor) -> dict[str, Tensor]:
        """The pieces of the whole, as views of it."""
        rows = [shape[0] for shape in self.pieces.values()]
        if self.layout == "heads":
            by_head = whole.unflatten(0, (-1, len(rows), self.size)).unbind(1)
            parts = [part.flatten(0, 1) for part in by_head]
        elif self.layout == "padded":
            parts = [whole[: rows[0]]]
        else:
            parts = (whole.t() if self.layout == "columns" else whole).split(rows)
        return dict(zip(self.pieces, parts, strict=True))


def model_tensors(network: ArmdModel) -> list[PackedTensor]:
    """The tensors of a checkpoint's weights, as `layout.write_sections` names them.

    Args:
        network: the whole network; its parameters may be on the meta device.
    """
    tensors = []
    for name, parameter in network.parameters_by_name().items():
        split, shape = tensor_partition(parameter, network.groups.tp), tuple(parameter.shape)
        if split.stride > 1:  # stored half by half
            half = (shape[0] // split.stride, *shape[1:])
            for number, part in enumerate(("gate", "up")):
                piece = name.replace("linear_fc1", f"linear_{part}")
                tensors.append(PackedTensor(f"{name}.{number}", {piece: half}))
        elif ".linear_kv." in name:
            half = (shape[0] // 2, *shape[1:])
            pieces = {name.replace("linear_kv", f"linear_{part}"): half for part in "kv"}
            tensors.append(PackedTensor(name, pieces, "heads", network.model.head_dim))
        elif name in _PADDED:
            piece = {name: (network.vocab_size, *shape[1:])}
            tensors.append(PackedTensor(name, piece, "padded", shape[0]))
        else:
            piece = f"{name}.weight" if name == "position_embedding" else name
            tensors.append(PackedTensor(name, {piece: shape}))
    return tensors


def pieces(tensors: Sequence[PackedTensor]) -> dict[str, Shape]:
    """All pieces of some tensors with their shapes."""
    return {name: shape for packed in tensors for name, shape in packed.pieces.items()}


class Repacker:
    """Makes tensors of one side from those of the other.

    Args:
        sources: the tensors that there are.
        read: gives one of them by name.
    """

    def __init__(self, sources: Sequence[PackedTensor], read: Callable[[str], Tensor]) -> None:
        self._holder = {piece: packed for packed in sources for piece in packed.pieces}
        self._read = read

    def names(self, packed: PackedTensor) -> list[str]:
        """The tensors that hold a tensor's pieces."""
        return list(dict.fromkeys(self._holder[piece].name for piece in packed.pieces))

    def build(self, packed: PackedTensor) -> Tensor:
        """A tensor of the other side; each tensor that it takes is read once."""
        pieces: dict[str, Tensor] = {}
        for piece in packed.pieces:
            if piece not in pieces:
                holder = self._holder[piece]
                pieces |= holder.unpack(self._read(holder.name))
        return packed.pack([pieces[piece] for piece in packed.pieces])
