"""tools/bench.py as a command."""

import json
from pathlib import Path

import pytest

from armd_scale.bench.cli import BENCHMARKS
from tests.support.cli import run, tiny_recipe, write_recipe, write_text

pytestmark = pytest.mark.slow


def test_memory_prints_a_table_and_writes_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    done = run("tools/bench.py", "memory", "--ranks", 1, "--json", file, folder=tmp_path)
    assert done.status == 0, done.errors
    rows = json.loads(file.read_text())
    assert [row["zero_stage"] for row in rows] == [0, 1, 2, 3]
    lines = done.output.splitlines()
    assert lines[0] == f"| {' | '.join(rows[0])} |"
    assert len(lines) == 6


def test_the_number_of_ranks_must_be_positive(tmp_path: Path) -> None:
    done = run("tools/bench.py", "memory", "--ranks", "0", folder=tmp_path)
    assert done.status == 2
    assert "argument --ranks: must be a whole number >= 1 (got '0')" in done.errors


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_has_an_example(tmp_path: Path, name: str) -> None:
    done = run("tools/bench.py", name, "--help", folder=tmp_path)
    assert done.status == 0
    words = " ".join(done.output.split())
    assert f"Example: python tools/bench.py {name} --" in words


@pytest.mark.parametrize("path", ["no/such.json", "."])
def test_a_json_file_that_cannot_be_written_is_refused_before_the_benchmark(
    tmp_path: Path, path: str
) -> None:
    # With a thousand ranks, which could not start here: the refusal comes first.
    file = tmp_path / path
    arguments = ("memory", "--ranks", 1000, "--json", file)
    done = run("tools/bench.py", *arguments, folder=tmp_path)
    assert f"--json must name a file that can be written (got {file}: " in done.sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("step", "--model-size", "huge"), "argument --model-size: invalid choice: 'huge'"),
        (("checkpoint", "--folder", "nowhere"), "must be an existing folder (got 'nowhere')"),
        (("loading", "--recipe", "nowhere.yaml"), "must be an existing file (got 'nowhere.yaml')"),
        (("rounds", "--checkpoint", "x", "--streams", "1", "0"), "argument --streams: must be"),
    ],
)
def test_an_invalid_option_is_named(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("tools/bench.py", *arguments, folder=tmp_path)
    assert done.status == 2
    assert words in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (("step", "--shape", "small"), "--model-size"),
        (("scaling", "--grows", "layers"), "--vary"),
        (("matmul", "--runs", "3"), "--repeats"),
        (("rounds", "--checkpoint", "x", "--after", "64"), "--context"),
    ],
)
def test_a_former_option_is_refused_with_its_new_name(
    tmp_path: Path, arguments: tuple[str, ...], new: str
) -> None:
    done = run("tools/bench.py", *arguments, folder=tmp_path)
    assert done.status == 2
    assert f"has been renamed: use {new}" in done.sentence


def test_the_loader_is_measured_at_the_recipes_micro_batch(tmp_path: Path) -> None:
    recipe = write_recipe(tiny_recipe(tmp_path, write_text(tmp_path / "text")), tmp_path / "r.yaml")
    file = tmp_path / "loading.json"
    arguments = ("--recipe", recipe, "--seconds", 1, "--repeats", 1, "--json", file)
    done = run("tools/bench.py", "loading", *arguments, folder=tmp_path)
    assert done.status == 0, done.errors
    (row,) = json.loads(file.read_text())
    assert row["micro-batch"] == 2
    assert row["loader targets/s"] == pytest.approx(row["loader batches/s"] * 2 * 16, abs=1)
    assert row["ratio"] > 0
