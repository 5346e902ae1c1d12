"""What of a folder is corpus, and what only lies beside it."""

import json
from pathlib import Path

import pytest

from armd_scale.data.preprocess.sources import find_sources
from armd_scale.errors import CorpusError
from tests.support.corpus import json_lines, read


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


CLONES = {
    "a card": {"README.md": "---\nlicense: mit\n---\n# Card"},
    "metadata": {"dataset_infos.json": '{\n "default": {}\n}', "README.md": "# Card"},
    "attributes": {".gitattributes": "*.parquet filter=lfs diff=lfs\n", "README.md": "# Card"},
}


@pytest.mark.parametrize("kind", CLONES)
def test_of_a_cloned_dataset_only_the_data_is_corpus(tmp_path: Path, kind: str):
    write(
        tmp_path,
        {
            **CLONES[kind],
            "LICENSE.md": "All rights reserved.",
            "load.py": "import datasets",
            "stats.csv": "a,b\n1,2\n",
            "data/train-00000-of-00001.jsonl": json_lines(["the only document"]).decode(),
            ".git/config.txt": "private",
            ".ipynb_checkpoints/a-checkpoint.jsonl": json_lines(["a copy"]).decode(),
        },
    )
    assert read(tmp_path) == (["the only document"], [])
    ignored = find_sources([str(tmp_path)])[1]
    about = {"README.md": 1, "LICENSE.md": 1, ".py": 1, ".csv": 1}
    hidden = {".git": 1, ".ipynb_checkpoints": 1}
    assert {name: ignored.get(name) for name in about | hidden} == about | hidden
    assert sum(ignored.values()) == 6 + (kind != "a card")
    # What is named is read as ever.
    assert read(tmp_path / "LICENSE.md")[0] == ["All rights reserved."]
    assert read(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.jsonl")[0] == ["a copy"]
    assert read(tmp_path / ".git")[0] == ["private"]


def test_of_a_folder_of_programs_all_text_is_corpus(tmp_path: Path):
    write(
        tmp_path,
        {
            "README.md": "about",
            "a.py": "code",
            "test/train.py": "more",
            "test/fixture.json": '{"text": "x"}',
            ".gitattributes": "*.png filter=lfs\n",
            ".hidden.py": "hidden",
        },
    )
    assert read(tmp_path) == (["about", "code", "x", "more"], [])
    assert find_sources([str(tmp_path)])[1] == {".gitattributes": 1, ".hidden.py": 1}


def test_a_readme_above_data_is_not_corpus_and_one_elsewhere_is(tmp_path: Path):
    files = {"README.md": "about", "x/a.jsonl": '{"text": "a"}', "y/README.md": "text"}
    assert read(write(tmp_path, files))[0] == ["a", "text"]


def test_a_link_to_a_folder_is_counted(tmp_path: Path):
    write(tmp_path, {"in/a.txt": "a", "other/b.txt": "b"})
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    assert find_sources([str(tmp_path / "in")])[1] == {"linked": 1}


def test_a_folder_in_which_nothing_is_corpus_is_refused(tmp_path: Path):
    write(tmp_path, {**CLONES["a card"], "load.py": "import datasets", ".git/a.txt": "x"})
    with pytest.raises(CorpusError, match=r"but contains none of them and only others \(.*1 .git"):
        find_sources([str(tmp_path)])


def test_dataset_metadata_is_never_corpus(tmp_path: Path):
    info = json.dumps({"text": "looks like a document"})
    write(tmp_path, {"dataset_info.json": info, "croissant.json": info, "a.jsonl": '{"text": "a"}'})
    assert read(tmp_path) == (["a"], [])


def test_a_card_concerns_only_the_folder_that_it_is_in(tmp_path: Path):
    """And a page with front matter is no card: there is no data beside it."""
    files = {
        "main.py": "code",
        "docs/a.md": "docs",
        "site/README.md": "---\ntitle: a site\n---\n",
        "site/page.md": "page",
        "site/requirements.txt": "numpy",
        "vendor/data/README.md": "---\nlicense: mit\n---\n",
        "vendor/data/a.jsonl": '{"text": "line"}',
        "vendor/data/load.py": "loader",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    texts, _ = read(tmp_path)
    assert {"code", "docs", "page", "line"} <= set(texts)
    assert "loader" not in texts
