"""tools/convert_ar_to_armd.py and export_hf.py, and evaluate.py on what they read and write."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from armd_scale.data.windows import TokenWindows
from tests.support.cli import run
from tests.support.hf_folders import VOCAB, make_model, write_folder, write_tokenizer
from tests.support.shards import write_pair

CONVERT, EXPORT = "tools/convert_ar_to_armd.py", "tools/export_hf.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """`hf`, a model with a tokenizer, `armd`, converted from it, and `text`."""
    place = tmp_path_factory.mktemp("place")
    write_tokenizer(write_folder(place / "hf", "qwen3"))
    rng = np.random.default_rng(3)
    write_pair(place / "text", [rng.integers(0, VOCAB, size=90).tolist() for _ in range(3)])
    words = ("--hf", place / "hf", "--output", place / "armd", "--json", place / "parity.json")
    done = run(CONVERT, *words, folder=place)
    assert done.status == 0, done.errors
    (place / "said.txt").write_text(done.output)
    return place


def test_parity_is_said_and_written(place):
    said = (place / "said.txt").read_text().splitlines()
    assert said[0].startswith("left-to-right parity with transformers on 64 tokens, in float32")
    assert said[2].startswith("two streams")
    assert said[2].endswith("100.00%  ok")
    found = json.loads((place / "parity.json").read_text())
    assert found["holds"]
    assert found["agreements"][0]["max_logit_difference"] <= found["tolerance"] == 1e-4


def evaluated(place: Path, folder: Path, *words: object) -> dict:
    options = ("--data", place / "text", "--seq-length", 30, "--json", folder / "found.json")
    done = run("tools/evaluate.py", *words, *options, folder=folder)
    assert done.status == 0, done.errors
    return json.loads((folder / "found.json").read_text())


def test_folder_checkpoint_and_export_have_one_likelihood(place, tmp_path):
    windows = TokenWindows(str(place / "text"), 30)
    tokens = torch.stack(
        [torch.from_numpy(windows.window(number)) for number in range(windows.num_windows)]
    )
    with torch.no_grad():
        logits = make_model("qwen3")(input_ids=tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.mT.double(), tokens[:, 1:]).item()

    done = run(EXPORT, "--checkpoint", place / "armd", "--output", tmp_path / "hf", folder=tmp_path)
    assert done.status == 0, done.errors
    sources = [("--checkpoint", place / "armd"), ("--hf", place / "hf"), ("--hf", tmp_path / "hf")]
    for source in sources:
        found = evaluated(place, tmp_path, *source, "--order", "l2r")
        assert found["nll_nats_per_token"] == pytest.approx(expected, abs=1e-5)
    strided = [evaluated(place, tmp_path, *source, "--order", "strided-ar:2") for source in sources]
    assert strided[0] == strided[1] == strided[2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--hf", "nothing"), "a Hugging Face folder must hold a config.json, and nothing/config"),
        (("--tp", "4"), "model.kv_heads must be a multiple of parallel.tensor (4), got 2"),
        (
            ("--text", "nothing"),
            "--text must name a file of UTF-8 text, and nothing cannot be read",
        ),
        (("--json", "no/x.json"), "--json must name a file in a folder that exists, got no/x.json"),
    ],
)
def test_bad_input_ends_in_one_sentence(place, tmp_path, words, sentence):
    given = ("--hf", place / "hf", "--output", tmp_path / "armd", *words)
    done = run(CONVERT, *given, folder=tmp_path)
    assert sentence in done.sentence
    assert {path.name for path in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}


def test_a_full_disk_leaves_nothing(place, tmp_path):
    words = ("--hf", place / "hf", "--output", tmp_path / "armd")
    done = run(CONVERT, *words, folder=tmp_path, file_bytes=6000)
    assert "armd, and that failed (a file could not be written whole): free space" in done.sentence
    words = ("--checkpoint", place / "armd", "--output", tmp_path / "back")
    done = run(EXPORT, *words, folder=tmp_path, file_bytes=6000)
    assert "back, and that failed (File too large): free space" in done.sentence
    assert {path.name for path in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}


def test_what_cannot_leave_as_an_ar_model_is_refused(place, tmp_path):
    words = ("--hf", place / "hf", "--output", tmp_path / "armd", "--query", "learned")
    done = run(CONVERT, *words, folder=tmp_path)
    assert done.status == 0, done.errors
    assert "not AR-exact by construction" in done.output
    words = ("--checkpoint", tmp_path / "armd", "--output", tmp_path / "hf", "--as-ar")
    done = run(EXPORT, *words, folder=tmp_path)
    assert "--as-ar needs a checkpoint that is an AR model left to right" in done.sentence
    assert not (tmp_path / "hf").exists()
