"""Windows: where they begin, what they hold, which documents are inside."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armd_scale.data.windows import TokenWindows, open_windows
from armd_scale.errors import ShardError
from tests.support.shards import write_pair


def counted(lengths: tuple[int, ...]) -> list[list[int]]:
    """Documents whose tokens, one after another, are 0, 1, 2, ..."""
    ends = np.cumsum(lengths).tolist()
    return [list(range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


def test_windows_share_their_border_token(tmp_path: Path) -> None:
    windows = TokenWindows(write_pair(tmp_path / "a", counted((7, 20, 3))), 4)
    assert windows.num_windows == 7
    for w in range(7):
        assert windows.window(w).tolist() == list(range(4 * w, 4 * w + 5))
        assert windows.lengths(w) == (5,)


def test_windows_fill_the_stream_to_its_last_token(tmp_path: Path) -> None:
    windows = TokenWindows(write_pair(tmp_path / "a", counted((9,))), 4)
    assert windows.num_windows == 2
    assert windows.window(1).tolist() == [4, 5, 6, 7, 8]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), seq_length=st.integers(1, 12))
def test_documents_are_found_inside_windows(
    tmp_path: Path, lengths: list[int], seq_length: int
) -> None:
    if sum(lengths) <= seq_length:
        lengths = [*lengths, seq_length + 1]
    prefix = write_pair(tmp_path / "a", counted(tuple(lengths)))
    windows = TokenWindows(prefix, seq_length, packing="documents")
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for w in range(windows.num_windows):
        inside = owner[windows.window(w)]
        pieces = np.unique(inside, return_counts=True)[1]
        assert windows.lengths(w) == tuple(pieces.tolist())


def test_a_source_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", counted((3, 5)))
    with pytest.raises(ShardError) as caught:
        TokenWindows(prefix, 8)
    assert str(caught.value) == (
        f"{prefix} must hold at least data.seq_length + 1 = 9 tokens, got 8: "
        "shorten data.seq_length or preprocess more text"
    )


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nothing"):
        TokenWindows(str(tmp_path / "nothing"), 8)


def test_unknown_tokens_are_named_when_read(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", counted((30,)))
    windows = TokenWindows(prefix, 4, vocab_size=11)
    assert windows.window(1).tolist() == [4, 5, 6, 7, 8]
    with pytest.raises(ShardError) as caught:
        windows.window(2)
    assert "the model's vocabulary of 11, got 11 as token 11:" in str(caught.value)


def test_a_pickled_copy_reads_the_same(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", counted((7, 20, 3)))
    windows = TokenWindows(prefix, 6, packing="documents", vocab_size=20)
    copy = pickle.loads(pickle.dumps(windows))
    assert copy.num_windows == windows.num_windows == 4
    assert [copy.lengths(w) for w in range(4)] == [windows.lengths(w) for w in range(4)]
    np.testing.assert_array_equal(copy.window(1), windows.window(1))
    with pytest.raises(ShardError, match="vocabulary of 20"):
        copy.window(3)


def test_several_datasets_are_one_source_in_their_order(tmp_path: Path) -> None:
    parts = [
        write_pair(tmp_path / "a", [list(range(9))]),
        write_pair(tmp_path / "short", [[99, 99]]),  # no window, at a place where it could disturb
        write_pair(tmp_path / "b", [list(range(20, 25))]),
    ]
    windows = open_windows(parts, 4, packing="documents", vocab_size=100)
    assert windows.num_windows == 3
    opening = [windows.window(index).tolist()[0] for index in range(3)]
    assert opening == [0, 4, 20]
    assert [windows.lengths(index) for index in range(3)] == [(5,)] * 3
    assert windows.first_target(2) == 1
    copy = pickle.loads(pickle.dumps(windows))
    assert copy.window(2).tolist() == [20, 21, 22, 23, 24]


def test_datasets_that_are_all_too_short_are_refused(tmp_path: Path) -> None:
    parts = [write_pair(tmp_path / name, [[1, 2]]) for name in "ab"]
    with pytest.raises(ShardError, match=r"= 5 tokens, and all 2 have fewer: shorten data\.seq_"):
        open_windows(parts, 4)


def test_an_empty_dataset_among_several_is_left_out(tmp_path: Path) -> None:
    """As that of a part of a corpus without text is."""
    full = write_pair(tmp_path / "full", [[1, 2, 3, 4, 5, 6]])
    empty = write_pair(tmp_path / "empty", [[]])
    windows = open_windows([empty, full], 4)
    assert windows.num_windows == 1
    assert windows.window(0).tolist() == [1, 2, 3, 4, 5]
