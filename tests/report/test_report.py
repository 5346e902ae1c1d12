"""The report: real runs in, a page that a browser draws out; and folders that hold too little."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from armd_scale.errors import TrainingError
from armd_scale.report.goodput import goodput_of
from armd_scale.report.page import downsample, order_spans, render
from armd_scale.report.run_folder import Event, Run, differences, read_run
from armd_scale.report.write import write_report
from tests.support.cli import run, tiny_recipe, train, write_text

CHROMIUM = shutil.which("chromium")
TOOL = Path(__file__).parents[2] / "tools" / "report.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real runs; the first one was resumed, and has a sample of generated text."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "text")
    made = []
    for name, rate in (("slow", 1e-3), ("fast", 1e-2)):
        place = folder / name
        place.mkdir()
        recipe = tiny_recipe(place, text, run__name=name, eval__every_steps=4, eval__samples=2)
        recipe = replace(recipe, optim=replace(recipe.optim, lr=rate, min_lr=rate / 10))
        if name == "slow":
            train(recipe, place, "train.steps=6")
        train(recipe, place)
        made.append(Path(recipe.run.folder))
    (made[0] / "samples.txt").write_text("once <upon> a time")
    return made


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("page") / "both.html")


def browse(page: Path, *flags: str) -> str:
    """What headless Chromium prints; it runs in a folder of its own, as root without a sandbox."""
    home = page.parent / "home"
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={home}", "--window-size=1280,1600", "--virtual-time-budget=2000",
            *flags, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@needs_browser
def test_a_browser_draws_every_curve(page: Path) -> None:
    drawn = browse(page, "--dump-dom")
    charts = re.split('<div class="chart(?: wide)?">', drawn)[1:]
    assert len(charts) == 8
    # Two runs, raw and smoothed; evaluations of both; the rest once or twice.
    assert [chart.count('class="curve') > 1 for chart in charts] == [True] * 8
    assert 'aria-label="orders of slow"' in drawn
    assert "NaN" not in "".join(charts)


@needs_browser
def test_a_picture_shows_curves_in_the_colours_of_their_runs(page: Path) -> None:
    picture = page.with_suffix(".png")
    browse(page, f"--screenshot={picture}")
    with Image.open(picture) as image:
        seen = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    # Blue and vermilion, as page.css has them: lines of many pixels, legends aside.
    assert seen.get((0x00, 0x67, 0xB1), 0) > 500
    assert seen.get((0xC8, 0x50, 0x0A), 0) > 500


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in text
    assert "{{" not in text
    assert "once &lt;upon&gt; a time" in text


def test_the_page_tells_of_resumes_differences_and_figures(page: Path, runs: list[Path]) -> None:
    text = page.read_text()
    assert "resumed from" in text
    assert "<td>optim.lr</td><td>0.001</td><td>0.01</td>" in text
    assert "<td>data.seq_length</td>" in text.split("<summary>All")[1]
    assert "<td>data.seq_length</td>" not in text.split("<summary>All")[0]
    lines = map(json.loads, (runs[0] / "metrics.jsonl").read_text().splitlines())
    *_, last = (line for line in lines if "nll_nats_per_token" in line)
    assert f"{last['nll_nats_per_token']:.4f}" in text or "best NLL" in text


def test_the_tool_writes_into_the_run_and_refuses_what_is_no_run(
    runs: list[Path], tmp_path: Path
) -> None:
    done = run("tools/report.py", runs[1], folder=tmp_path)
    assert done.status == 0, done.errors
    assert done.output.strip() == str(runs[1] / "report.html")
    assert (runs[1] / "report.html").read_text().startswith("<!doctype html>")
    sentence = run("tools/report.py", tmp_path / "nowhere", folder=tmp_path).sentence
    assert "nowhere is none" in sentence
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds none" in run("tools/report.py", empty, folder=tmp_path).sentence
    assert list(empty.iterdir()) == []


def test_a_page_that_cannot_be_written_is_a_sentence(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot write .*choose another path"):
        write_report(runs, tmp_path / "missing" / "page.html")


BROKEN = {
    "nothing logged": ("", "metrics.jsonl holds no training step yet."),
    "a torn line": ('{"step": 1, "loss": 2.0}\n{"step": 2, "lo', "no JSON objects with a step: 1."),
    "not a number": ('{"step": 1, "loss": NaN, "grad_norm": Infinity}\n', "There is no log.txt"),
    "bare values": ('3\n[1]\n{"loss": 1}\n', "no JSON objects with a step: 3."),
    "an evaluation alone": ('{"step": 1, "eval_order": "l2r"}\n', "no training step yet."),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metrics_are_told_and_not_fatal(name: str, tmp_path: Path) -> None:
    text, remark = BROKEN[name]
    (tmp_path / "metrics.jsonl").write_text(text)
    page = render([read_run(tmp_path)])
    assert remark in page
    data = page.split('id="data">')[1].split("</script>")[0]
    json.loads(data, parse_constant=pytest.fail)


@needs_browser
def test_a_run_without_a_step_is_drawn_as_such(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    drawn = browse(write_report([tmp_path]), "--dump-dom")
    assert drawn.count("Not logged.") >= 8
    assert "No step was logged." in drawn


def test_a_recipe_that_cannot_be_read_is_a_remark(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {name: x, wrong: 1}")
    assert any("The recipe cannot be read" in remark for remark in read_run(tmp_path).warnings)


def test_long_runs_are_thinned_and_keep_their_spikes() -> None:
    lines = [{"step": step, "loss": 1.0 + 1e-6 * step} for step in range(50_000)]
    lines[12_345]["loss"] = 9.0
    lines[23_456]["loss"] = None
    kept = downsample(lines, most=500)
    assert len(kept) <= 502
    assert lines[12_345] in kept
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert [line["step"] for line in kept] == sorted({line["step"] for line in kept})
    assert downsample(lines[:500], most=500) == lines[:500]


def test_orders_are_told_in_spans_of_one_policy() -> None:
    orders = ["l2r", "progressive:1", "progressive:4", "mixture(0.5*l2r+0.5*random)"]
    lines = [{"step": 2 * number + 2, "order": order} for number, order in enumerate(orders)]
    assert order_spans(lines) == [
        {"policy": "l2r", "start": 0, "stop": 2, "first": "l2r", "last": "l2r"},
        {"policy": "progressive", "start": 2, "stop": 6, "first": orders[1], "last": orders[2]},
        {"policy": "mixture", "start": 6, "stop": 8, "first": orders[3], "last": orders[3]},
    ]


def test_goodput_splits_the_time_of_the_log() -> None:
    start = datetime(2026, 1, 1)
    at = [start + timedelta(seconds=seconds) for seconds in (0, 10, 100, 160, 170, 200)]
    run = Run(
        folder=Path("run"),
        name="run",
        steps=[{"step": 10, "step_seconds": 5.0}, {"step": 20, "step_seconds": 6.0}],
        evaluations=[{"step": 10, "evaluation_seconds": 4.0}],
        other_lines=[{"step": 20, "checkpoint_seconds": 6.0}],
        events=[Event(at[0], "start", ""), Event(at[2], "stop", ""), Event(at[3], "start", "")],
        times=at,
    )
    spent = goodput_of(run)
    assert spent is not None
    found = (spent.steps, spent.checkpoints, spent.evaluations, spent.downtime, spent.other)
    assert found == (110.0, 6.0, 4.0, 60.0, 20.0)
    assert spent.total == 200.0
    run.times = run.times[:1]
    assert goodput_of(run) is None


def test_differences_are_of_keys_that_any_recipe_has() -> None:
    one, two = (
        Run(folder=Path("x"), name="x", recipe=recipe) for recipe in ({"a": 1, "b": 2}, {"a": 1})
    )
    assert differences([one, two]) == {"b": [2, None]}


def test_help_shows_an_example() -> None:
    done = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True)
    assert "runs/demo" in done.stdout
