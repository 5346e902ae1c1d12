"""tools/bench.py as a command."""

import json
from pathlib import Path

import pytest

from armd_scale.bench.cli import BENCHES
from tests.support.cli import run, tiny_recipe, write_recipe, write_text


def test_memory_prints_a_table_and_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    done = run("tools/bench.py", "memory", "--ranks", 1, "--json", file, folder=tmp_path)
    assert done.status == 0, done.errors
    rows = json.loads(file.read_text())
    assert [row["zero_stage"] for row in rows] == [0, 1, 2, 3]
    lines = done.output.splitlines()
    assert lines[0] == f"| {' | '.join(rows[0])} |"
    assert len(lines) == 6


def test_ranks_are_counted(tmp_path: Path) -> None:
    done = run("tools/bench.py", "memory", "--ranks", "0", folder=tmp_path)
    assert done.status == 2
    assert "argument --ranks: must be a whole number of at least 1, got '0'" in done.errors


@pytest.mark.parametrize("bench", BENCHES)
def test_help_has_an_example(tmp_path: Path, bench: str) -> None:
    done = run("tools/bench.py", bench, "--help", folder=tmp_path)
    assert done.status == 0
    words = " ".join(done.output.split())
    assert f"Example: python tools/bench.py {bench} --" in words


@pytest.mark.parametrize("place", ["no/such.json", "."])
def test_figures_without_a_place_are_refused_before_anything_is_measured(
    tmp_path: Path, place: str
) -> None:
    # Ranks that could never be started: the refusal comes first.
    file = tmp_path / place
    arguments = ("memory", "--ranks", 10**6, "--json", file)
    done = run("tools/bench.py", *arguments, folder=tmp_path)
    assert f"--json must name a file that can be written, and {file} cannot (" in done.sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("step", "--shape", "huge"), "argument --shape: invalid choice: 'huge'"),
        (("checkpoint", "--folder", "nowhere"), "must be a folder that exists, got 'nowhere'"),
        (("loading", "--recipe", "nowhere.yaml"), "must be a file that exists, got 'nowhere.yaml'"),
        (("rounds", "--checkpoint", "x", "--streams", "1", "0"), "argument --streams: must be"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("tools/bench.py", *arguments, folder=tmp_path)
    assert done.status == 2
    assert words in done.errors
    assert "Traceback" not in done.errors


def test_a_recipes_loader_is_measured_at_its_micro_batch(tmp_path: Path) -> None:
    recipe = write_recipe(tiny_recipe(tmp_path, write_text(tmp_path / "text")), tmp_path / "r.yaml")
    file = tmp_path / "loading.json"
    arguments = ("--recipe", recipe, "--seconds", 1, "--runs", 1, "--json", file)
    done = run("tools/bench.py", "loading", *arguments, folder=tmp_path)
    assert done.status == 0, done.errors
    (row,) = json.loads(file.read_text())
    assert row["micro-batch"] == 2
    assert row["loader targets/s"] == pytest.approx(row["loader batches/s"] * 2 * 16, abs=1)
    assert row["ratio"] > 0
