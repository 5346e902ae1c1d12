"""tools/generate.py: from a checkpoint or a Hugging Face folder to text, and its errors."""

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.data.text_encoder import TextEncoder
from armd_scale.data.tokenizer import read_tokenizer_files
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import run_command
from armd_scale.eval.data import require_tokenizer
from armd_scale.generation import Sampling, Strategy, generate_tokens
from tests.support.cli import ROOT, launch, run
from tests.support.networks import GPT2, build
from tests.support.recipes import SMALL, bend

pytestmark = pytest.mark.slow

TOOL = "tools/generate.py"


@pytest.fixture(scope="module")
def checkpoint(groups, tmp_path_factory):
    """A run folder with one checkpoint, of a model with 24 positions."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    tokenizer.save(run / "tokenizer")
    model = dataclasses.replace(GPT2, vocab_size=tokenizer.vocab_size, max_positions=24)
    CheckpointSave(
        run / "checkpoints",
        step=3,
        network=build(model, groups, max_positions=24),
        recipe=bend(SMALL, {"model": model, "data.seq_length": 23}),
        state={"step": 3},
        optimizer={},
        tokenizer=read_tokenizer_files(run / "tokenizer", fingerprint=tokenizer.fingerprint),
    ).wait()
    return run


def test_command_generates_what_the_package_does(checkpoint, groups, tmp_path):
    file, page = tmp_path / "out.json", tmp_path / "out.html"
    done = run(
        TOOL,
        *("--checkpoint", checkpoint, "--prompt", "def main", "--tokens", 10, "--streams", 2),
        *("--temperature", 0.8, "--top-p", 0.9, "--top-k", 50, "--seed", 4, "--num-samples", 2),
        *("--json", file, "--replay-html", page),
        folder=tmp_path,
    )
    assert done.status == 0, done.errors
    opened = open_checkpoint(checkpoint)
    tokenizer = require_tokenizer(opened)
    prompt = TextEncoder(tokenizer).encode_prompt("def main")
    expected = generate_tokens(
        load_network(opened, groups=groups),
        [prompt] * 2,
        num_tokens=10,
        strategy=Strategy(streams=2),
        sampling=Sampling(temperature=0.8, top_p=0.9, top_k=50, seed=4),
    )
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record, sample in zip(records, expected.samples, strict=True):
        assert record["tokens"] == sample.tokens[sample.generated].tolist()
        assert record["text"] == tokenizer.decode(sample.tokens[1:].tolist())
        assert record["text"] in done.output
        assert record["rounds"] == 6
        assert record["seconds"] > 0
        assert record["tokens_per_second"] == pytest.approx(20 / record["seconds"])
        assert 0 < record["entropy_bits"] <= np.log2(10)
    assert page.read_text().count('"pieces"') == 2
    assert "6 rounds, 1.67 tokens per round" in done.output
    assert "tokens/s" in done.output


@pytest.mark.parametrize("is_armd", [False, True], ids=["AR folder", "ARMD folder"])
def test_hf_folder_generates_the_source_models_greedy_text(checkpoint, tmp_path, is_armd):
    """An AR model, and the export of a checkpoint; --checkpoint gives the latter's text."""
    file, expected_file = tmp_path / "out.json", tmp_path / "expected.json"
    arguments = ("--prompt", "def main", "--tokens", 10, "--temperature", 0)
    folder = tmp_path / "export"
    exported = run(
        "tools/export_hf.py",
        *("--checkpoint", checkpoint, "--output", folder, *(() if is_armd else ("--as-ar",))),
        folder=tmp_path,
    )
    assert exported.status == 0, exported.errors
    for model, output in ((("--hf", folder), file), (("--checkpoint", checkpoint), expected_file)):
        done = run(TOOL, *model, *arguments, "--json", output, folder=tmp_path)
        assert done.status == 0, done.errors
    record, expected = (json.loads(path.read_text()) for path in (file, expected_file))
    assert record["tokens"] == expected["tokens"]
    assert record["text"] == expected["text"]
    assert record["logprob"] == pytest.approx(expected["logprob"], abs=1e-4)


def test_text_longer_than_the_model_is_refused(checkpoint, tmp_path):
    file = tmp_path / "out.json"
    done = run(TOOL, "--checkpoint", checkpoint, "--tokens", 30, "--json", file, folder=tmp_path)
    assert "a text may contain at most 24 tokens" in done.sentence
    assert "(got 31, prompt included): generate at least 7 fewer" in done.sentence
    assert not file.exists()


def test_infill_fills_holes(checkpoint, tmp_path):
    file = tmp_path / "out.json"
    text = "def {{3}}():\n    {{2}}"
    done = run(
        TOOL,
        *("--checkpoint", checkpoint, "--infill", text, "--speculative", 3, "--json", file),
        folder=tmp_path,
    )
    assert done.status == 0, done.errors
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(record["tokens"]) == 5
    assert record["text"].startswith("def ")
    assert "():\n    " in record["text"]
    assert record["tokens_per_round"] == 5 / record["rounds"]


@pytest.mark.parametrize("options", [(), ("--streams", 4)], ids=["one by one", "four streams"])
def test_tensor_parallel_ranks_generate_what_one_process_does(checkpoint, tmp_path, options):
    arguments = ("--checkpoint", checkpoint, "--prompt", "def main", "--tokens", 12, *options)
    more = ("--temperature", 0.9, "--num-samples", 3, "--seed", 4)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    done = run(TOOL, *arguments, *more, "--json", one, folder=tmp_path)
    assert done.status == 0, done.errors
    ranks = launch(
        TOOL, *arguments, *more, "--tp", 2, "--json", two, size=2, folder=tmp_path / "ranks"
    )
    first, second = (rank.finish() for rank in ranks)
    assert (first.status, second.status) == (0, 0), first.errors + second.errors
    assert second.output == ""
    alone, together = (
        [json.loads(line) for line in file.read_text().splitlines()] for file in (one, two)
    )
    assert len(alone) == len(together) == 3
    for a, b in zip(alone, together, strict=True):
        for name in ("text", "tokens", "block", "round", "rounds", "entropy_bits"):
            assert a[name] == b[name], name
        assert b["logprob"] == pytest.approx(a["logprob"], abs=1e-4)
        assert b["text"] in first.output


def test_number_of_processes_must_equal_tp(checkpoint, tmp_path):
    """Two processes without --tp 2; --tp 2 on one process is among the errors below."""
    arguments = ("--checkpoint", checkpoint, "--tokens", 8, "--json", tmp_path / "never.json")
    for rank in launch(TOOL, *arguments, size=2, folder=tmp_path / "ranks"):
        assert "got --tp 1 on 2" in rank.finish().sentence
    assert not (tmp_path / "never.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "no/such/run"], "no valid checkpoint in no/such/run"),
        (["--streams", "9", "--tokens", "8"], "between 1 and the 8 tokens to generate (got 9)"),
        (["--tokens", "0"], "number of tokens to generate must be at least 1 (got 0)"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or more (got -1.0)"),
        (["--top-p", "0"], "top-p must be above 0 and at most 1 (got 0.0)"),
        (["--top-k", "0"], "top-k must be at least 1 (got 0)"),
        (["--min-p", "2"], "min-p must be between 0 and 1 (got 2.0)"),
        (
            ["--group", "2", "--streams", "2"],
            "can be used (got streams and group)",
        ),
        (["--speculative", "1"], "at least 2 tokens per round (got 1)"),
        (["--dynamic", "best:2"], "dynamic decoding must be one of confidence:k"),
        (
            ["--dynamic", "margin:0"],
            "commits per round must be at least 1 (got 0)",
        ),
        (["--infill", "no hole"], "must contain a hole (got none)"),
        (["--infill", "a {{x}} b"], "double braces (got {{x}})"),
        (["--infill", "a {{2}}", "--prompt", "b"], "(got --prompt and --infill)"),
        (["--tp", "2"], "got --tp 2 on 1): start the command with torchrun --nproc-per-node 2"),
        (
            ["--json", "no/such/out.json"],
            "--json must name a file in an existing folder (got no/",
        ),
        (
            ["--replay-html", "no/such/o.html"],
            "--replay-html must name a file in an existing",
        ),
        (["--lossless", "4"], "--lossless has been renamed: use --speculative"),
        (["--stop-at-end"], "--stop-at-end has been renamed: use --stop-at-eos"),
        (["--html", "out.html"], "--html has been renamed: use --replay-html"),
    ],
)
def test_invalid_options_are_refused_before_loading(
    checkpoint, arguments, message, monkeypatch, capsys
):
    spec = importlib.util.spec_from_file_location("generate_tool", ROOT / TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", [TOOL, "--checkpoint", str(checkpoint), *arguments])
    with pytest.raises(SystemExit) as exit_info:
        run_command(tool.main)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
