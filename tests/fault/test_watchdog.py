"""Jobs of real processes, one of which hangs or lags behind."""

import json
import signal
import time
from pathlib import Path

from armd_scale.fault.peer_monitor import EXIT_PEER_LOST
from armd_scale.fault.watchdog import Watchdog
from tests.support.cli import TRAIN, launch, tiny_recipe, write_recipe, write_text

HANG_SECONDS = 5.0


def test_what_is_done_is_told_with_its_age() -> None:
    watchdog = Watchdog()
    assert (watchdog.heartbeat().phase_index, watchdog.heartbeat().phase) == (0, "starting")
    watchdog.set_phase("saving", 4)
    time.sleep(0.1)
    beat = watchdog.heartbeat()
    assert (beat.phase_index, beat.phase) == (1, "saving in step 4")
    assert 0.1 <= beat.seconds < 5


def test_stacks_go_to_the_run_s_folder(tmp_path: Path) -> None:
    Watchdog(tmp_path, rank=3).dump_stacks()
    assert "test_stacks_go_to" in (tmp_path / "stacks" / "rank_3.txt").read_text()


def test_a_rank_that_is_stopped_ends_the_job_and_one_that_lags_is_in_the_metrics(
    tmp_path: Path,
) -> None:
    recipe = tiny_recipe(
        tmp_path, write_text(tmp_path / "pair"), train__steps=100_000, log__every_steps=5,
        train__hang_seconds=HANG_SECONDS, checkpoint__every_steps=10,
    )  # fmt: skip
    folder = Path(recipe.run.folder)
    ranks = launch(TRAIN, write_recipe(recipe, tmp_path / "recipe.yaml"), size=2, folder=tmp_path)
    ranks[0].wait_for(lambda: (folder / "metrics.jsonl").exists(), seconds=120)

    def lines() -> list[dict]:
        return [
            json.loads(line)
            for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]
            if '"loss"' in line
        ]

    ranks[0].wait_for(lambda: len(lines()) > 2)
    before = len(lines())
    while len(lines()) < before + 4:  # runs for a third of the time
        ranks[1].send(signal.SIGSTOP)
        time.sleep(0.04)
        ranks[1].send(signal.SIGCONT)
        time.sleep(0.02)
    lagging = [line for line in lines() if line["slowest_rank"] == 1]
    assert any(line["own_seconds_max"] > 1.3 * line["own_seconds_mean"] for line in lagging)

    ranks[1].send(signal.SIGSTOP)
    stopped = time.monotonic()
    done = ranks[0].finish(seconds=60)
    assert time.monotonic() - stopped < HANG_SECONDS + 10
    assert done.status == EXIT_PEER_LOST
    ranks[1].send(signal.SIGKILL)
    log = (folder / "log.txt").read_text()
    assert "and rank 1 (process" in log
    assert "longer than train.hang_timeout_seconds allows" in log
    assert "train_step" in (folder / "stacks" / "rank_0.txt").read_text()
