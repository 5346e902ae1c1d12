"""Splitting streams into chunks."""

import io

from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.preprocess.chunking import split_stream


@given(
    text=st.text(alphabet="ab \né漢🙂", max_size=400),
    limit=st.integers(8, 60),
    first=st.integers(0, 10),
)
def test_chunk_borders_depend_on_nearby_bytes_only(text: str, limit: int, first: int):
    data = text.encode()
    whole = [piece for _, piece, _ in split_stream(io.BytesIO(data), limit)]
    assert b"".join(whole) == data
    assert all(len(piece) <= 2 * limit and piece.decode() is not None for piece in whole)
    start = first * limit
    if 0 < start < len(data):
        before = [p for _, p, _ in split_stream(io.BytesIO(data), limit, stop=start)]
        after = [p for _, p, _ in split_stream(io.BytesIO(data), limit, start=start)]
        assert [p for p in before + after if p] == [p for p in whole if p]
