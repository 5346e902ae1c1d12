"""Metrics of training steps: what their rates are rates of."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.resolve import resolve
from armd_scale.metrics.events import EventLog
from armd_scale.parallel.environment import read_environment
from armd_scale.train.callbacks.progress import ProgressLogger, slowest_rank
from armd_scale.train.context import TrainingContext
from armd_scale.train.state import TrainState
from armd_scale.train.step import StepResult
from armd_scale.train.trainer import Trainer
from tests.support.cli import VOCAB, tiny_recipe, write_text

BATCH, TOKENS = 4, 64


class Lines(list[dict[str, Any]]):
    """A metrics writer that keeps its lines."""

    def write(self, values: Mapping[str, Any]) -> None:
        self.append(dict(values))

    def close(self) -> None:
        pass


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def logger(
    lines: Lines, groups: ProcessGroupCollection, tmp_path: Path
) -> Iterator[ProgressLogger]:
    """Logs every second step."""
    recipe = resolve(tiny_recipe(tmp_path, "text", log__every_steps=2), vocab_size=VOCAB)
    events = EventLog(tmp_path)
    context = TrainingContext(recipe, read_environment(), groups, events=events)
    logger = ProgressLogger(context, [lines])
    yield logger
    logger.close()
    events.close()


def take_step(logger: ProgressLogger, step: int, seconds: float, **values: Any) -> None:
    state = TrainState(step=step, consumed_samples=BATCH * step, consumed_tokens=TOKENS * step)
    result = StepResult(
        loss=2.0, grad_norm=1.0, tokens=TOKENS, kl=None, seconds=seconds,
        local_seconds=seconds / 4, **values,
    )  # fmt: skip
    logger.on_step_end(state, result)


def test_rates_are_of_the_steps_since_the_last_line(logger: ProgressLogger, lines: Lines) -> None:
    for step, seconds in enumerate((0.1, 0.3, 2.0, 4.0), start=1):
        take_step(logger, step, seconds)
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["step_seconds"] for line in lines] == pytest.approx([0.2, 3.0])
    assert [line["tokens_per_second"] for line in lines] == pytest.approx([320, 64 / 3])
    assert [line["local_seconds_max"] for line in lines] == pytest.approx([0.05, 0.75])
    assert [line["tokens"] for line in lines] == [128, 256]
    # With one two-stream layer a step costs the same FLOPs with one stream and with two.
    assert [line["order"] for line in lines] == ["l2r", "progressive:1"]
    for key in ("mfu", "hfu"):
        flops_per_step = [line[key] * line["step_seconds"] for line in lines]
        assert flops_per_step[1] == pytest.approx(flops_per_step[0])
    assert all(0 < line["mfu"] <= line["hfu"] < 1 for line in lines)
    assert all(0 < line["memory_gib"] < 64 for line in lines)


def test_a_skipped_step_is_named_and_counts_in_the_next_rate(
    logger: ProgressLogger, lines: Lines, tmp_path: Path
) -> None:
    take_step(logger, 1, 0.1)
    take_step(logger, 2, 0.3, skip_reason="loss is nan")
    assert lines == [{"step": 2, "skipped": "loss is nan", "sample_range": [4, 7]}]
    for step in (3, 4):
        take_step(logger, step, 0.1)
    assert lines[1]["step_seconds"] == pytest.approx(0.15)
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    del event["time"]
    assert event == {
        "event": "skipped_step", "step": 2, "reason": "loss is nan", "sample_range": [4, 7],
    }  # fmt: skip


@dataclass
class Sleeper:
    """A callback that takes longer than a step, as an evaluation or a save does."""

    seconds: float

    def on_step_end(self, state: TrainState, result: StepResult) -> None:
        time.sleep(self.seconds)

    def on_train_end(self, state: TrainState) -> None:
        pass

    def close(self) -> None:
        pass


def test_rates_exclude_the_time_of_other_callbacks(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    sleeper = Sleeper(0.6)
    recipe = tiny_recipe(tmp_path, write_text(tmp_path / "text"), train__steps=3)
    with Trainer.from_recipe(recipe, groups=groups, callbacks=[sleeper]) as trainer:
        trainer.fit()
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if "loss" in line]
    assert min(line["step_seconds"] for line in steps[1:]) < sleeper.seconds
    assert max(line["tokens_per_second"] for line in steps[1:]) > TOKENS / sleeper.seconds


def test_the_slowest_rank_of_one_is_that_one(groups: ProcessGroupCollection) -> None:
    assert slowest_rank(0.5, torch.device("cpu")) == {
        "local_seconds_mean": 0.5, "local_seconds_max": 0.5, "slowest_rank": 0,
    }  # fmt: skip
