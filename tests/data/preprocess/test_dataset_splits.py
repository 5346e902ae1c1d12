"""Datasets with several splits: one is chosen, or the run asks which."""

from pathlib import Path

import datasets
import pytest

from armd_scale.data.preprocess.sources import find_sources
from armd_scale.errors import CorpusError
from tests.support.corpus import json_lines

SPLITS = {"train": ["train text"], "test": ["test text"]}


def save_dict(folder: Path, splits: dict[str, list[str]]) -> Path:
    rows = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in splits.items()}
    datasets.DatasetDict([*rows.items()]).save_to_disk(folder)
    return folder


def save_clone(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(json_lines([name]))
    return folder


def names(*inputs: Path, split: str = "") -> list[str]:
    sources, _ = find_sources([str(path) for path in inputs], input_split=split)
    return [str(Path(source.path).relative_to(inputs[0])) for source in sources]


def test_a_saved_dict_of_several_splits_asks_which(tmp_path: Path):
    folder = save_dict(tmp_path / "saved", SPLITS)
    with pytest.raises(CorpusError) as refusal:
        find_sources([str(folder)])
    assert str(refusal.value) == (
        f"input {folder} must be one split of a dataset, but holds train, test: choose one by "
        "--input-split train, or read them together by --input-split all"
    )
    arrow = "data-00000-of-00001.arrow"
    assert names(folder, split="test") == [f"test/{arrow}"]
    assert names(folder, split="all") == [f"train/{arrow}", f"test/{arrow}"]
    assert names(folder / "train") == [arrow]
    with pytest.raises(CorpusError, match=r"--input-split must be .*got dev.*train, test or all"):
        find_sources([str(folder)], input_split="dev")


def test_a_saved_dict_of_one_split_is_read(tmp_path: Path):
    folder = save_dict(tmp_path / "saved", {"train": ["text"]})
    assert names(folder) == ["train/data-00000-of-00001.arrow"]


@pytest.mark.parametrize("content", ["[]", "{", '{"splits": []}', '{"splits": ["../x"]}'])
def test_a_damaged_list_of_splits_is_refused(tmp_path: Path, content: str):
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(CorpusError, match=r"dataset_dict.json must list the splits"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize(
    ("files", "split", "chosen"),
    [
        (["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"], "train", 0),
        (["train.jsonl", "dev.jsonl"], "dev", 1),
        (["train.jsonl", "valid.jsonl"], "validation", 1),
        (["en/train/0.jsonl", "en/test/0.jsonl"], "test", 1),
        (["c4-train.00000-of-00002.json", "c4-validation.00000-of-00002.json"], "train", 0),
        (["data/easy-00000-of-00001.jsonl", "data/hard-00000-of-00001.jsonl"], "hard", 1),
    ],
)
def test_files_of_several_splits_ask_which(
    tmp_path: Path, files: list[str], split: str, chosen: int
):
    folder = save_clone(tmp_path, files)
    with pytest.raises(CorpusError, match="must be one split of a dataset, but holds"):
        find_sources([str(folder)])
    assert names(folder, split=split) == [files[chosen]]
    assert find_sources([str(folder)], input_split=split)[1] == {"of other splits": 1}
    assert sorted(names(folder, split="all")) == sorted(files)


def test_files_of_one_split_are_read(tmp_path: Path):
    files = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert names(save_clone(tmp_path, files)) == files


def test_a_split_that_nothing_has_is_refused(tmp_path: Path):
    folder = save_clone(tmp_path, ["a.jsonl"])
    with pytest.raises(CorpusError, match="tell no splits apart: leave the option out"):
        find_sources([str(folder)], input_split="train")
    with pytest.raises(CorpusError, match="no --input is a folder"):
        find_sources([str(folder / "a.jsonl")], input_split="train")
