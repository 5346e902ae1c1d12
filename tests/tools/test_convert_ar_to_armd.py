"""Tests of the commands convert_ar_to_armd.py and export_hf.py, with evaluate.py on the results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from armd_scale.data.windows import TokenWindows
from tests.support.cli import run
from tests.support.hf_folders import VOCAB, make_model, write_folder, write_tokenizer
from tests.support.shards import write_pair

pytestmark = pytest.mark.slow

CONVERT, EXPORT = "tools/convert_ar_to_armd.py", "tools/export_hf.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `hf` (a model with tokenizer), `armd` (converted from it) and shards `text`."""
    place = tmp_path_factory.mktemp("place")
    write_tokenizer(write_folder(place / "hf", "qwen3"))
    rng = np.random.default_rng(3)
    write_pair(place / "text", [rng.integers(0, VOCAB, size=90).tolist() for _ in range(3)])
    options = ("--hf", place / "hf", "--output", place / "armd", "--json", place / "parity.json")
    done = run(CONVERT, *options, folder=place)
    assert done.status == 0, done.errors
    (place / "stdout of convert").write_text(done.output)
    return place


def test_parity_figures_are_printed_and_written(place):
    lines = (place / "stdout of convert").read_text().splitlines()
    assert lines[0].startswith("left-to-right parity with transformers on 64 tokens, in float32")
    assert lines[2].startswith("two streams")
    assert lines[2].endswith("100.00%  ok")
    report = json.loads((place / "parity.json").read_text())
    assert report["holds"]
    assert report["agreements"][0]["max_logit_difference"] <= report["tolerance"] == 1e-4


def evaluate(place: Path, folder: Path, *words: object) -> dict:
    options = ("--data", place / "text", "--seq-length", 30, "--json", folder / "result.json")
    done = run("tools/evaluate.py", *words, *options, folder=folder)
    assert done.status == 0, done.errors
    return json.loads((folder / "result.json").read_text())


def test_source_checkpoint_and_export_have_the_same_likelihood(place, tmp_path):
    windows = TokenWindows(str(place / "text"), 30)
    tokens = torch.stack(
        [torch.from_numpy(windows.window(index)) for index in range(windows.num_windows)]
    )
    with torch.no_grad():
        logits = make_model("qwen3")(input_ids=tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.mT.double(), tokens[:, 1:]).item()

    done = run(EXPORT, "--checkpoint", place / "armd", "--output", tmp_path / "hf", folder=tmp_path)
    assert done.status == 0, done.errors
    sources = [("--checkpoint", place / "armd"), ("--hf", place / "hf"), ("--hf", tmp_path / "hf")]
    for source in sources:
        result = evaluate(place, tmp_path, *source, "--order", "l2r")
        assert result["nll_nats_per_token"] == pytest.approx(expected, abs=1e-5)
    strided = [evaluate(place, tmp_path, *source, "--order", "strided-ar:2") for source in sources]
    assert strided[0] == strided[1] == strided[2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--hf", "nothing"), "a Hugging Face folder must contain a config.json (nothing/config"),
        (("--tp", "4"), "model.kv_heads must be a multiple of parallel.tensor = 4"),
        (
            ("--text", "nothing"),
            "--text must name a UTF-8 text file (nothing cannot be read",
        ),
        (("--json", "no/x.json"), "--json must name a file in an existing folder (got no/x.json)"),
        (("--verify", "none"), "--verify has been renamed: use --check"),
    ],
)
def test_bad_input_ends_in_one_sentence(place, tmp_path, words, sentence):
    options = ("--hf", place / "hf", "--output", tmp_path / "armd", *words)
    done = run(CONVERT, *options, folder=tmp_path)
    assert sentence in done.sentence
    assert {path.name for path in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}


def test_a_full_disk_leaves_no_files(place, tmp_path):
    words = ("--hf", place / "hf", "--output", tmp_path / "armd")
    done = run(CONVERT, *words, folder=tmp_path, file_bytes=6000)
    assert "armd (File too large): check" in done.sentence
    words = ("--checkpoint", place / "armd", "--output", tmp_path / "back")
    done = run(EXPORT, *words, folder=tmp_path, file_bytes=6000)
    assert "back (File too large): check" in done.sentence
    assert {path.name for path in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}


def test_a_model_that_is_not_ar_exact_cannot_be_exported_as_ar(place, tmp_path):
    words = ("--hf", place / "hf", "--output", tmp_path / "armd", "--query", "learned")
    done = run(CONVERT, *words, folder=tmp_path)
    assert done.status == 0, done.errors
    assert "does not keep the two-stream network equal to the AR model" in done.output
    words = ("--checkpoint", tmp_path / "armd", "--output", tmp_path / "hf", "--as-ar")
    done = run(EXPORT, *words, folder=tmp_path)
    assert "--as-ar requires a checkpoint whose left-to-right path is" in done.sentence
    assert not (tmp_path / "hf").exists()
