"""Tests of packing: every layout is a bijection, and matches the format that uses it."""

import pytest
import torch

from armd_scale.checkpoint.hf.packing import PackedTensor, Repacker

PIECES = {
    "rows": {"q": (8, 5), "k": (4, 5), "v": (4, 5)},
    "columns": {"q": (8, 5), "k": (8, 5), "v": (8, 5)},
    "heads": {"q": (8, 5), "k": (8, 5), "v": (8, 5)},
    "padded": {"embedding": (7, 5)},
}
SIZES = {"heads": 4, "padded": 12}


def numbered(shapes, start=0):
    return {
        name: 1 + start + 100 * index + torch.arange(shape[0] * shape[1]).view(shape)
        for index, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("layout", PIECES)
def test_unpacking_undoes_packing(layout):
    packed = PackedTensor("x", PIECES[layout], layout, SIZES.get(layout, 0))
    pieces = numbered(PIECES[layout])
    whole = packed.pack(list(pieces.values()))
    assert tuple(whole.shape) == packed.shape
    unpacked = packed.unpack(whole)
    assert unpacked.keys() == pieces.keys()
    assert all(torch.equal(unpacked[name], piece) for name, piece in pieces.items())
    assert torch.equal(packed.pack(list(unpacked.values())), whole)


def test_each_layout_stores_pieces_where_its_format_does():
    q, k, v = numbered(PIECES["heads"]).values()
    whole = PackedTensor("x", PIECES["heads"], "heads", 4).pack([q, k, v])
    assert torch.equal(whole, torch.cat((q[:4], k[:4], v[:4], q[4:], k[4:], v[4:])))
    assert torch.equal(
        PackedTensor("x", PIECES["columns"], "columns").pack([q, k, v])[:, 8:16], k.t()
    )
    padded = PackedTensor("x", PIECES["padded"], "padded", 12).pack([q[:7]])
    assert not padded[7:].any()


def test_a_source_tensor_is_read_once_for_all_its_pieces():
    fused = PackedTensor("fused", PIECES["rows"])
    pieces = numbered(PIECES["rows"])
    read = []

    def reading(name):
        read.append(name)
        return fused.pack(list(pieces.values()))

    repacker = Repacker([fused], reading)
    pair = PackedTensor("kv", {"k": (4, 5), "v": (4, 5)}, "heads", 2)
    assert torch.equal(repacker.build(pair), pair.pack([pieces["k"], pieces["v"]]))
    assert read == ["fused"] == repacker.source_names(pair)
