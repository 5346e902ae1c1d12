"""The page: what it shows, and that a browser draws it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from armd_scale.report.page import downsample, order_spans
from armd_scale.report.write import write_report

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def page(run_folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run_folders, tmp_path_factory.mktemp("page") / "both.html")


def browse(page: Path, *flags: str) -> str:
    """Open the page in headless Chromium and return what it prints."""
    assert CHROMIUM is not None
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
@pytest.mark.slow(minutes=0.5)
def test_a_browser_draws_every_curve(page: Path) -> None:
    dom = browse(page, "--dump-dom")
    charts = re.split('<div class="chart(?: wide)?">', dom)[1:]
    assert len(charts) == 8
    # Two runs, raw and smoothed, evaluations of both: more than one curve in every chart.
    assert [chart.count('class="curve') > 1 for chart in charts] == [True] * 8
    assert 'aria-label="orders of slow"' in dom
    assert "NaN" not in "".join(charts)


@needs_browser
@pytest.mark.slow(minutes=0.5)
def test_a_screenshot_shows_curves_in_the_colors_of_their_runs(page: Path) -> None:
    screenshot = page.with_suffix(".png")
    browse(page, f"--screenshot={screenshot}")
    with Image.open(screenshot) as image:
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    pixels = {color: count for count, color in colors}
    # The first two colors of page.css; lines have many more pixels than the legend.
    assert pixels.get((0x00, 0x67, 0xB1), 0) > 500
    assert pixels.get((0xC8, 0x50, 0x0A), 0) > 500


@pytest.mark.slow(minutes=0.5)
def test_the_page_needs_no_other_file(page: Path) -> None:
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in text
    assert "{{" not in text
    assert "once &lt;upon&gt; a time" in text


@pytest.mark.slow(minutes=0.5)
def test_the_page_shows_resumes_differences_and_metrics(
    page: Path, run_folders: list[Path]
) -> None:
    text = page.read_text()
    assert "<td>resume</td><td>6</td>" in text
    assert "evaluations" in text.split("Where time went")[1].split("</p>")[0]
    assert "<td>optim.lr</td><td>0.001</td><td>0.01</td>" in text
    assert "<td>data.seq_length</td>" in text.split("<summary>All")[1]
    assert "<td>data.seq_length</td>" not in text.split("<summary>All")[0]
    lines = map(json.loads, (run_folders[0] / "metrics.jsonl").read_text().splitlines())
    *_, last = (line for line in lines if "nll_nats_per_token" in line)
    assert f"{last['nll_nats_per_token']:.4f}" in text or "best NLL" in text


@needs_browser
def test_a_run_without_steps_says_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    dom = browse(write_report([tmp_path]), "--dump-dom")
    assert dom.count("Not logged.") >= 8
    assert "No step was logged." in dom


def test_downsampling_keeps_spikes() -> None:
    lines = [{"step": step, "loss": 1.0 + 1e-6 * step} for step in range(50_000)]
    lines[12_345]["loss"] = 9.0
    lines[23_456]["loss"] = None
    kept = downsample(lines, max_points=500)
    assert len(kept) <= 502
    assert lines[12_345] in kept
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert [line["step"] for line in kept] == sorted({line["step"] for line in kept})
    assert downsample(lines[:500], max_points=500) == lines[:500]


def test_orders_are_grouped_into_spans_of_one_policy() -> None:
    orders = ["l2r", "progressive:1", "progressive:4", "mixture(0.5*l2r+0.5*random)"]
    lines = [{"step": 2 * index + 2, "order": order} for index, order in enumerate(orders)]
    assert order_spans(lines) == [
        {"policy": "l2r", "start": 0, "stop": 2, "first": "l2r", "last": "l2r"},
        {"policy": "progressive", "start": 2, "stop": 6, "first": orders[1], "last": orders[2]},
        {"policy": "mixture", "start": 6, "stop": 8, "first": orders[3], "last": orders[3]},
    ]
