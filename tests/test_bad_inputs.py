"""Bad input ends the real commands in one sentence and exit status 2, and nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from armd_scale.config.load import dump_recipe
from armd_scale.config.schema import Recipe
from armd_scale.data.tokenizer_training import train_sentencepiece
from tests.support.cli import (
    ROOT,
    TRAIN,
    VOCAB,
    contents,
    run,
    tiny_recipe,
    train,
    write_recipe,
    write_text,
)
from tests.support.eval_data import write_manifest

pytestmark = pytest.mark.slow

EVALUATE, GENERATE, PREPROCESS = (
    f"tools/{name}.py" for name in ("evaluate", "generate", "preprocess")
)


class Place:
    """A folder with shards, a recipe and an earlier run of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.text = folder, str(folder / "text")
        write_text(folder / "text")
        self.recipe: Recipe = tiny_recipe(folder, self.text)
        self.file = write_recipe(self.recipe, folder / "recipe.yaml")
        train(self.recipe, folder)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def refuses(self, entry: str, *arguments: object) -> str:
        """The sentence that a command ends with, once it is sure that every file is as before."""
        output = self.folder.parent / f"{self.folder.name}-output"
        output.mkdir(exist_ok=True)
        before = contents(self.folder)
        sentence = run(entry, *arguments, folder=output).sentence
        assert contents(self.folder) == before
        return sentence


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """For tests that leave it as it is."""
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """For tests that damage it."""
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place")


def test_missing_files(trained: Place) -> None:
    none = trained.folder / "none"
    assert f"{none}.yaml" in trained.refuses(TRAIN, f"{none}.yaml")
    new = f"run.folder={trained.folder / 'new'}"
    for changes in ([], ["model.vocab_size=null"], [f"data.valid={none}", "eval.every_steps=2"]):
        if len(changes) < 2:
            changes = [*changes, f"data.train={none}"]
        assert f"{none}.bin does not exist" in trained.refuses(TRAIN, trained.file, new, *changes)
    assert str(none) in trained.refuses(TRAIN, trained.file, new, f"model.init_from={none}")
    assert str(none) in trained.refuses(TRAIN, trained.file, f"checkpoint.resume={none}")
    evaluation = ("--checkpoint", trained.run, "--data", none, "--order", "l2r")
    assert f"{none}.bin" in trained.refuses(EVALUATE, *evaluation)
    assert str(none) in trained.refuses(GENERATE, "--checkpoint", none)
    arguments = ("--tokenizer", "train:sentencepiece:300", "--output", trained.folder / "out")
    assert f"{none} does not exist" in trained.refuses(PREPROCESS, "--input", none, *arguments)


def test_an_empty_corpus(trained: Place, tmp_path: Path) -> None:
    train_sentencepiece(["some text to learn from"] * 9, 280).save(tmp_path / "tokenizer")
    (tmp_path / "empty").mkdir()
    arguments = ("--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "out", "--no-eod")
    message = trained.refuses(PREPROCESS, "--input", tmp_path / "empty", *arguments)
    assert f"{tmp_path / 'empty'} must contain text, JSON lines" in message
    (tmp_path / "empty" / "a.txt").write_text("")
    trained.refuses(PREPROCESS, "--input", tmp_path / "empty", *arguments)
    assert not [path for path in tmp_path.glob("out.*") if path.is_file()]


def test_shards_without_tokens(place: Place) -> None:
    for suffix in (".bin", ".idx"):
        Path(place.text + suffix).write_bytes(b"")
    assert f"{place.text}.idx is not a Megatron index" in place.refuses(TRAIN, place.file)


@pytest.mark.parametrize("at", [0, 9, 20], ids=["magic", "version", "counts"])
def test_a_corrupt_index(place: Place, at: int) -> None:
    path = Path(f"{place.text}.idx")
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    assert str(path) in place.refuses(TRAIN, place.file)
    evaluation = ("--checkpoint", place.run, "--data", place.text, "--order", "l2r")
    assert str(path) in place.refuses(EVALUATE, *evaluation)


def test_truncated_tokens(place: Place) -> None:
    path = Path(f"{place.text}.bin")
    path.write_bytes(path.read_bytes()[:-6])
    message = place.refuses(TRAIN, place.file)
    assert f"{path} is damaged (by its index it must have" in message
    message = place.refuses(PREPROCESS, "--verify", place.text)
    assert str(path) in message


def test_unknown_keys(trained: Place) -> None:
    message = trained.refuses(TRAIN, trained.file, "optim.learning_rte=1")
    assert "optim.learning_rte" in message
    file = trained.folder.parent / "unknown.yaml"
    file.write_text(dump_recipe(trained.recipe).replace("warmup_steps", "warmup_step"))
    message = trained.refuses(TRAIN, file)
    assert f"{file}:" in message
    assert "warmup_steps" in message


def test_wrong_types(trained: Place) -> None:
    message = trained.refuses(TRAIN, trained.file, "train.steps=many")
    assert "train.steps" in message
    assert "many" in message
    file = trained.folder.parent / "wrong.yaml"
    file.write_text(dump_recipe(trained.recipe).replace("layers: 2\n", "layers: [2]\n", 1))
    message = trained.refuses(TRAIN, file)
    assert f"{file}:" in message
    assert "model.layers" in message


def test_a_sequence_longer_than_the_data(trained: Place) -> None:
    new = f"run.folder={trained.folder / 'new'}"
    message = trained.refuses(TRAIN, trained.file, new, "data.seq_length=100000")
    assert f"{trained.text} must hold at least data.seq_length + 1 = 100001 tokens" in message


def test_a_tokenizer_of_another_vocabulary(place: Place) -> None:
    write_manifest(place.text, tokens=0, text_bytes=1, vocab_size=VOCAB + 1)
    message = place.refuses(TRAIN, place.file)
    assert f"model.vocab_size must be >= {VOCAB + 1}, the number of tokens" in message
    assert f"(got {VOCAB})" in message
    message = place.refuses(
        EVALUATE, "--checkpoint", place.run, "--data", place.text, "--order", "l2r"
    )
    assert f"has {VOCAB + 1} tokens" in message


def test_tokens_that_the_model_does_not_know(trained: Place) -> None:
    """Where no manifest tells, the tokens do."""
    new = (f"run.folder={trained.folder.parent / 'small'}", f"model.vocab_size={VOCAB // 2}")
    for workers in (0, 1):
        message = trained.refuses(TRAIN, trained.file, *new, f"data.workers={workers}")
        assert f"must be below the model's vocabulary of {VOCAB // 2}" in message


def test_a_tokenizer_of_as_many_other_tokens(tmp_path: Path) -> None:
    """A run neither resumes with it nor starts from weights that were trained with another."""
    tokenizers = [train_sentencepiece([text] * 9, 280) for text in ("one corpus", "and another")]
    recipe = tiny_recipe(tmp_path, write_text(tmp_path / "text"), model__vocab_size=280)

    def note(number: int) -> None:
        tokenizers[number].save(tmp_path / "tokenizer")
        write_manifest(
            recipe.data.valid or "", tokens=0, text_bytes=1, vocab_size=280,
            fingerprint=tokenizers[number].fingerprint,
        )  # fmt: skip

    note(0)
    train(recipe, tmp_path)
    note(1)
    before = contents(tmp_path / "run")
    for overrides in (
        [],
        [f"run.folder={tmp_path / 'new'}", f"model.init_from={tmp_path / 'run'}"],
    ):
        done = run(TRAIN, tmp_path / "recipe.yaml", *overrides, folder=tmp_path)
        assert "must have the tokenizer of the checkpoint" in done.sentence
    assert contents(tmp_path / "run") == before
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_not_finite(place: Place) -> None:
    """By a typed command, with all that its libraries print."""
    before = contents(place.run / "checkpoints")
    done = subprocess.run(
        [sys.executable, "-m", TRAIN, place.file, "train.steps=50", "optim.lr=1e30",
         "checkpoint.allow_changes=true"],
        capture_output=True, text=True, timeout=100, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: loss and gradient must stay finite and steady (got: "
    )
    assert "Traceback" not in done.stderr
    assert "[rank" not in done.stderr
    assert contents(place.run / "checkpoints") == before


def test_a_folder_that_cannot_be_written(trained: Place) -> None:
    """Root may write anywhere, so a file lies where a folder should."""
    (trained.folder.parent / "there").write_text("a file")
    for folder in ("there", "there/below"):
        path = trained.folder.parent / folder
        message = trained.refuses(TRAIN, trained.file, f"run.folder={path}")
        assert f"run.folder must be writable ({path}: " in message
    assert (trained.folder.parent / "there").read_text() == "a file"
    evaluation = ("--checkpoint", trained.run, "--data", trained.text, "--order", "l2r")
    message = trained.refuses(EVALUATE, *evaluation, "--json", path / "out.json")
    assert str(path) in message


def test_a_file_in_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, write_text(tmp_path / "text"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file")
    done = run(TRAIN, write_recipe(recipe, tmp_path / "recipe.yaml"), folder=tmp_path)
    assert "run.folder must be writable" in done.sentence
    assert (tmp_path / "run" / "checkpoints").read_text() == "a file"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_disk_that_is_full(place: Place) -> None:
    checkpoints = place.run / "checkpoints"
    before = contents(checkpoints)
    done = run(TRAIN, place.file, "train.steps=20", folder=place.folder, file_bytes=20_000)
    assert f"cannot write checkpoints to {checkpoints} (" in done.sentence
    assert "File too large" in done.sentence
    assert {k: v for k, v in contents(checkpoints).items() if not k.startswith(".")} == before
    lines = train(place.recipe, place.folder, "train.steps=20")
    assert [line["step"] for line in lines] == list(range(1, 21))


@pytest.mark.parametrize(
    ("change", "key"), [("model.hidden=32", "model.hidden"), ("model.query=learned", "model.query")]
)
def test_a_checkpoint_of_another_model(trained: Place, change: str, key: str) -> None:
    message = trained.refuses(TRAIN, trained.file, change)
    assert f"the recipe's model must be the model of {trained.run}" in message
    assert f"{key} is" in message


def test_weights_of_another_model(place: Place) -> None:
    new, parent = f"run.folder={place.folder.parent / 'new'}", f"model.init_from={place.run}"
    message = place.refuses(TRAIN, place.file, new, parent, "model.ffn_hidden=48")
    assert "(model.ffn_hidden is 48, in the checkpoint 24): fix the recipe" in message


def hide(place: Place) -> Path:
    """Leaves nothing of the run but a save that was interrupted."""
    *others, newest = sorted((place.run / "checkpoints").iterdir())
    for folder in others:
        folder.rename(place.folder.parent / folder.name)
    return newest.rename(newest.parent / f".{newest.name}.partial")


def test_an_interrupted_save(place: Place) -> None:
    partial = hide(place)
    (partial / "manifest.json").unlink()
    expected = f"{partial} was left by an interrupted save"
    assert expected in place.refuses(TRAIN, place.file, f"checkpoint.resume={partial}")
    evaluation = ("--data", place.text, "--order", "l2r")
    assert expected in place.refuses(EVALUATE, "--checkpoint", partial, *evaluation)
    assert "no valid checkpoint in" in place.refuses(GENERATE, "--checkpoint", place.run)
    assert len(train(place.recipe, place.folder)) == 8  # a fresh start, which the next save cleans
    assert not partial.exists()


def test_damaged_checkpoints(place: Place) -> None:
    first, second = sorted((place.run / "checkpoints").iterdir())
    (second / "state.json").write_text("{}")
    message = place.refuses(TRAIN, place.file, f"checkpoint.resume={second}")
    assert f"{second / 'state.json'} has 2 bytes" in message
    for file in (first / "weights").iterdir():
        os.truncate(file, 10)
    message = place.refuses(TRAIN, place.file)
    assert "no valid checkpoint in" in message
    assert "checkpoint.resume=never" in place.refuses(TRAIN, place.file, "checkpoint.resume=never")


def test_an_order_that_does_not_exist(trained: Place) -> None:
    changes = ("eval.every_steps=2", "eval.orders=[l2r, stridet:2]")
    assert "stridet" in trained.refuses(TRAIN, trained.file, *changes)
