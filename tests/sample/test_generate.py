"""tools/generate.py, from a checkpoint to text, and what it refuses."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import save_checkpoint
from armd_scale.data.tokenize import load_tokenizer, train_sentencepiece
from armd_scale.errors import run_command
from armd_scale.sample import Sampling, generate
from tests.config.examples import SMALL, bend
from tests.support.networks import GPT2, build

TOOL = Path(__file__).parents[2] / "tools" / "generate.py"


@pytest.fixture(scope="module")
def checkpoint(groups, tmp_path_factory):
    """A run folder with one checkpoint, of a model with 24 positions."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = train_sentencepiece(["def main():\n    return 0\n" * 20], 280)
    tokenizer.save(run / "tokenizer")
    model = dataclasses.replace(GPT2, vocab_size=tokenizer.vocab_size, max_positions=24)
    save_checkpoint(
        run / "checkpoints",
        step=3,
        network=build(model, groups, max_positions=24),
        recipe=bend(SMALL, {"model": model, "data.seq_length": 23}),
        state={"step": 3},
        optimizer={},
        tokenizer=run / "tokenizer",
        groups=groups,
    )
    return run


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=100
    )


def test_a_prompt_is_continued_as_the_package_does(checkpoint, groups, tmp_path):
    file = tmp_path / "out.json"
    done = run_tool(
        *("--checkpoint", checkpoint, "--prompt", "def main", "--tokens", 10, "--streams", 2),
        *("--temperature", 0.8, "--top-p", 0.9, "--top-k", 50, "--seed", 4, "--num-samples", 2),
        *("--json", file),
    )
    assert done.returncode == 0, done.stderr
    opened = open_checkpoint(checkpoint)
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    (prompt,) = tokenizer.encode_batch(["def main"])
    expected = generate(
        load_network(opened, groups=groups),
        [np.concatenate(([tokenizer.eod], prompt))] * 2,
        num_tokens=10,
        streams=2,
        sampling=Sampling(temperature=0.8, top_p=0.9, top_k=50, seed=4),
    )
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record, sample in zip(records, expected.samples, strict=True):
        assert record["tokens"] == sample.tokens[sample.generated].tolist()
        assert record["text"] == tokenizer.decode(sample.tokens[1:].tolist())
        assert record["text"] in done.stdout
        assert record["rounds"] == 6
        assert record["seconds"] > 0
        assert record["tokens_per_second"] == pytest.approx(20 / record["seconds"])
        assert 0 < record["entropy_bits"] <= np.log2(10)
    assert "6 rounds" in done.stdout
    assert "tokens/s" in done.stdout


def test_a_text_longer_than_the_model_is_refused_in_one_sentence(checkpoint, tmp_path):
    file = tmp_path / "out.json"
    done = run_tool("--checkpoint", checkpoint, "--tokens", 30, "--json", file)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: a text may hold at most 24 tokens")
    assert "got 31 with its prompt: ask for at least 7 fewer" in last
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "no/such/run"], "no/such/run must be a checkpoint"),
        (["--streams", "9", "--tokens", "8"], "between 1 and the 8 tokens to generate, got 9"),
        (["--tokens", "0"], "number of tokens must be at least 1, got 0"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or more, got -1.0"),
        (["--top-p", "0"], "top-p must be above 0 and at most 1, got 0.0"),
        (["--top-k", "0"], "top-k must be at least 1, got 0"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    checkpoint, arguments, message, monkeypatch, capsys
):
    spec = importlib.util.spec_from_file_location("generate_tool", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--checkpoint", str(checkpoint), *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(tool.main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
