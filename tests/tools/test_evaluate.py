"""tools/evaluate.py: what is typed, what comes back, and how it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.eval.likelihood import evaluate
from armd_scale.eval.output import summary
from armd_scale.eval.tasks.infilling import read_examples, run_infill
from armd_scale.generation import Sampling
from armd_scale.order.spec import parse_spec
from tests.support import cli as runs
from tests.support.held_out import recipe_of, write_documents, write_manifest, write_place
from tests.support.networks import LLAMA, build

TOOL = Path(__file__).parents[2] / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def place(groups, tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("place"), groups)


def run(place, *words):
    named = {"--checkpoint": "run", "--data": "valid", "--order": "strided-ar:3"}
    chosen = dict(zip(words[::2], words[1::2], strict=True))
    line = [word for pair in {**named, **chosen}.items() for word in pair]
    return subprocess.run(
        [sys.executable, TOOL, *line],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_figures_and_dump(groups, place):
    done = run(place, "--samples", "5", "--json", "found.json", "--dump", "dump.safetensors")
    assert done.returncode == 0, done.stderr
    found = json.loads((place / "found.json").read_text())
    expected = evaluate(
        build(LLAMA, groups),
        TokenWindows(str(place / "valid"), 16),
        parse_spec("strided-ar:3"),
        samples=5,
        seed=recipe_of().run.seed,
        micro_batch=2,
        groups=groups,
    )
    figures = dataclasses.asdict(expected)
    assert found.pop("order") == figures.pop("order") == "strided-ar:3"
    assert {name for name in found if found[name] is None} == {
        "standard_error_over_orders",
        "perplexity_per_word",
    }
    for name, figure in figures.items():
        assert found[name] == (figure if figure is None else pytest.approx(figure, rel=1e-6)), name
    assert done.stdout.startswith(f"strided-ar:3  {expected.nll_nats_per_token:.4f} nats/token")

    dump = load_file(place / "dump.safetensors")
    assert dump["tokens"].shape == dump["block"].shape == (5, 17)
    assert dump["logprob"].shape == (5, 16)
    assert -dump["logprob"].mean().item() == pytest.approx(found["nll_nats_per_token"], rel=1e-6)
    assert not list(place.glob(".*partial"))


def test_middles_are_filled(groups, tmp_path):
    """As the package fills them, at the length and temperature that are asked for."""
    folder = write_place(tmp_path, groups, vocab_size=280)
    passage = {"before": "the", "middle": " quick", "after": " fox"}
    (folder / "stories.jsonl").write_text((json.dumps(passage) + "\n") * 3)
    done = runs.run(
        "tools/evaluate.py",
        *("--checkpoint", folder / "run", "--task", "infill", folder / "stories.jsonl"),
        *("--order", "strided:2", "--samples", 2, "--temperature", 0),
        *("--json", folder / "found.json"),
        folder=folder,
    )
    assert done.status == 0, done.errors
    opened = open_checkpoint(folder / "run")
    tokenizer = load_tokenizer(opened.tokenizer_folder)
    expected = run_infill(
        load_network(opened, groups=groups),
        read_examples(folder / "stories.jsonl", tokenizer, max_tokens=17)[:2],
        tokenizer,
        order=parse_spec("strided:2"),
        sampling=Sampling(temperature=0.0),
        micro_batch=2,
        groups=groups,
    )
    assert json.loads((folder / "found.json").read_text()) == dataclasses.asdict(expected)
    assert done.output == f"{summary(expected)}\n"
    assert "infill  strided:2  ROUGE-1 0." in done.output
    assert done.output.endswith("  2 passages\n")


def test_data_of_another_tokenizer_ends_in_one_sentence(place, tmp_path):
    prefix = write_documents(tmp_path / "other")
    write_manifest(prefix, tokens=175, text_bytes=700, fingerprint="0123456789abcdef")
    done = run(place, "--data", prefix, "--json", "never.json")
    assert (done.returncode, done.stdout) == (2, "")
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"error: {prefix} must be tokenized with the tokenizer of the")
    assert "Traceback" not in done.stderr
    assert not (place / "never.json").exists()


def test_numbers_of_windows_are_above_zero(place):
    done = run(place, "--samples", "0")
    assert done.returncode == 2
    assert done.stderr.endswith("--samples: must be a whole number of at least 1, got '0'\n")
