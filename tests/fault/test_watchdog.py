"""Watchdog phases, and a training job with a rank that lags and then hangs."""

import json
import signal
import time
from pathlib import Path

import pytest

from armd_scale.fault.peer_monitor import EXIT_PEER_LOST
from armd_scale.fault.watchdog import Watchdog
from tests.support.cli import TRAIN, launch, tiny_recipe, write_recipe, write_text

pytestmark = pytest.mark.slow

HANG_SECONDS = 5.0


def test_a_heartbeat_holds_the_phase_and_its_age() -> None:
    watchdog = Watchdog()
    assert (watchdog.heartbeat().phase_index, watchdog.heartbeat().phase) == (0, "starting")
    watchdog.set_phase("saving", 4)
    time.sleep(0.1)
    heartbeat = watchdog.heartbeat()
    assert (heartbeat.phase_index, heartbeat.phase) == (1, "saving, step 4")
    assert 0.1 <= heartbeat.seconds_in_phase < 5


def test_stacks_are_written_to_the_run_folder(tmp_path: Path) -> None:
    Watchdog(tmp_path, rank=3).dump_stacks()
    assert "test_stacks_are_written" in (tmp_path / "stacks" / "rank_3.txt").read_text()


def test_the_metrics_show_a_rank_that_lags_and_a_stopped_rank_ends_the_job(
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(
        tmp_path, write_text(tmp_path / "pair"), train__steps=100_000, log__every_steps=5,
        train__hang_timeout_seconds=HANG_SECONDS, checkpoint__every_steps=10,
    )  # fmt: skip
    folder = Path(recipe.run.folder)
    ranks = launch(TRAIN, write_recipe(recipe, tmp_path / "recipe.yaml"), size=2, folder=tmp_path)
    ranks[0].wait_for(lambda: (folder / "metrics.jsonl").exists(), seconds=120)

    def metrics() -> list[dict]:
        return [
            json.loads(line)
            for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
            if '"loss"' in line
        ]

    ranks[0].wait_for(lambda: len(metrics()) > 2)
    before = len(metrics())
    while len(metrics()) < before + 4:  # rank 1 runs for a third of the time
        ranks[1].send(signal.SIGSTOP)
        time.sleep(0.04)
        ranks[1].send(signal.SIGCONT)
        time.sleep(0.02)
    lagging = [line for line in metrics() if line["slowest_rank"] == 1]
    assert any(line["local_seconds_max"] > 1.3 * line["local_seconds_mean"] for line in lagging)

    ranks[1].send(signal.SIGSTOP)
    stop_time = time.monotonic()
    result = ranks[0].finish(seconds=60)
    assert time.monotonic() - stop_time < HANG_SECONDS + 10
    assert result.status == EXIT_PEER_LOST
    ranks[1].send(signal.SIGKILL)
    log = (folder / "log.txt").read_text()
    assert "rank 1 (process" in log
    assert "longer than train.hang_timeout_seconds" in log
    assert "train_step" in (folder / "stacks" / "rank_0.txt").read_text()
