"""A run replaces files of an earlier result only, and never what it reads."""

import shutil
from pathlib import Path

import pytest

from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ShardError
from tests.support.corpus import SPLIT, MakeOptions

APART = "must not be read and replaced by the same command"
FOREIGN = "but this program did not write it"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("other") / "tokenizer"
    train_sentencepiece(["a very different text, of other words"] * 9, 285).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    "name", ["out.json", "out.bin", "out.idx", "out.tokenizer/a.txt", "out.work/a.txt"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(
    options: MakeOptions, tmp_path: Path, name: str, overwrite: bool
):
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "the corpus"}\n')
    (tmp_path / "data" / "sub").mkdir()
    (tmp_path / "link.txt").symlink_to(path)
    before = contents(tmp_path)
    for given in (path, tmp_path / "data/sub/.." / name, tmp_path / "link.txt"):
        with pytest.raises(ShardError, match=APART):
            preprocess(options("data/out", inputs=(str(given),), overwrite=overwrite))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["out.bin", "out.work/tokenizer.model", "out_train.json"])
def test_the_tokenizer_of_the_command_is_never_replaced(
    options: MakeOptions, corpus: Path, tmp_path: Path, name: str
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(corpus.parent / "tokenizer" / "tokenizer.model", tmp_path / name)
    before = contents(tmp_path)
    split = SPLIT if "train" in name else ()
    with pytest.raises(ShardError, match=APART):
        preprocess(options(tokenizer=str(tmp_path / name), split=split, overwrite=True))
    assert contents(tmp_path) == before


def test_the_tokenizer_of_the_result_may_be_given_and_stays_as_it_is(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    tokenizer = tmp_path / "out.tokenizer"
    shutil.copytree(corpus.parent / "tokenizer", tokenizer)
    (tokenizer / "chat_template.jinja").write_text("mine")
    before = contents(tokenizer)
    preprocess(options(tokenizer=str(tokenizer)))
    preprocess(options(tokenizer=str(tokenizer), append_eod=False, overwrite=True))
    assert contents(tokenizer) == before


@pytest.mark.parametrize(
    "name",
    ["out.json", "out.bin", "out.idx", "out.tokenizer", "out.tokenizer/notes.txt", "out.bin/x.txt"],
)
def test_files_of_others_are_never_replaced(options: MakeOptions, tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ShardError, match=FOREIGN):
        preprocess(options(overwrite=True))
    assert contents(tmp_path) == {name: b"mine"}


def test_a_tokenizer_folder_without_a_manifest_is_never_replaced(
    options: MakeOptions, other_tokenizer: str, tmp_path: Path
):
    shutil.copytree(other_tokenizer, tmp_path / "out.tokenizer")
    before = contents(tmp_path)
    with pytest.raises(ShardError, match=r"out\.tokenizer .*" + FOREIGN):
        preprocess(options(overwrite=True))
    assert contents(tmp_path) == before


def test_a_tokenizer_that_other_shards_need_is_never_replaced(
    options: MakeOptions, other_tokenizer: str, tmp_path: Path
):
    preprocess(options(split=SPLIT))
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ShardError, match=r"must stay the tokenizer of .*out_test\.json, but"):
            preprocess(options(tokenizer=other_tokenizer, overwrite=overwrite))
    assert contents(tmp_path) == before
    preprocess(options())  # with the same tokenizer they may lie side by side
    assert contents(tmp_path).keys() > before.keys()


def test_overwrite_replaces_a_result_and_its_tokenizer(
    options: MakeOptions, other_tokenizer: str, tmp_path: Path
):
    preprocess(options())
    with pytest.raises(ShardError, match="already exists"):
        preprocess(options(tokenizer=other_tokenizer))
    (manifest,) = preprocess(options(tokenizer=other_tokenizer, overwrite=True))
    model = (tmp_path / "out.tokenizer" / "tokenizer.model").read_bytes()
    assert model == (Path(other_tokenizer) / "tokenizer.model").read_bytes()
    assert manifest.vocab_size == 285


def test_overwrite_replaces_shards_of_another_program(options: MakeOptions, tmp_path: Path):
    preprocess(options())
    (tmp_path / "out.json").unlink()
    with pytest.raises(ShardError, match="already exists"):
        preprocess(options())
    preprocess(options(overwrite=True))


def test_merging_replaces_no_shard(options: MakeOptions, other_tokenizer: str, tmp_path: Path):
    preprocess(options(shard=ShardIndex(0, 1)))
    shard = str(tmp_path / "out.shard-0-of-1")
    before = contents(tmp_path)
    with pytest.raises(ShardError, match=APART):
        merge([shard], shard, overwrite=True)
    assert contents(tmp_path) == before
    preprocess(options(tokenizer=other_tokenizer, split=SPLIT))
    (tmp_path / "new.json").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ShardError, match="must stay the tokenizer of"):
        merge([shard], str(tmp_path / "out"), overwrite=True)
    with pytest.raises(ShardError, match=FOREIGN):
        merge([shard], str(tmp_path / "new"), overwrite=True)
    assert contents(tmp_path) == before
