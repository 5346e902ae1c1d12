"""The start of a job: who is missing, signals, and ports that cannot be used."""

import dataclasses
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from armd_scale.errors import TrainingError
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.rendezvous import REPORT_SECONDS, join_store
from tests.support.cli import TRAIN, Command, tiny_recipe, write_recipe, write_text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def member(rank: int, size: int, port: int | None) -> DistributedEnv:
    return DistributedEnv(
        rank=rank,
        world_size=size,
        local_rank=rank,
        device=torch.device("cpu"),
        master_addr="127.0.0.1",
        master_port=port,
    )


def test_a_stop_signal_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    for rank in (0, 1):
        with pytest.raises(SystemExit) as caught:
            join_store(member(rank, 2, free_port()), lambda: signal.SIGTERM)
        assert caught.value.code == 143
    assert (
        caplog.text.count("stopped by signal 15 while waiting for other ranks at 127.0.0.1:") == 2
    )


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TrainingError) as caught:
            join_store(member(0, 2, port))
    assert f"rank 0 must be able to listen on port {port} of 127.0.0.1 (" in str(caught.value)
    assert "set MASTER_PORT to a free port" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_port_is_named() -> None:
    with pytest.raises(TrainingError, match="MASTER_ADDR and MASTER_PORT must be set for a job"):
        join_store(dataclasses.replace(member(1, 2, None)))


@pytest.mark.slow
def test_a_rank_says_who_is_missing_and_obeys_signals(tmp_path: Path) -> None:
    port = free_port()
    file = write_recipe(
        tiny_recipe(tmp_path, write_text(tmp_path / "text"), train__global_batch=8),
        tmp_path / "recipe.yaml",
    )

    def start(rank: int, size: int, port: int) -> tuple[Command, Callable[[], str]]:
        folder = tmp_path / f"{port}-{rank}"
        folder.mkdir()
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
        variables = {**job, "RANK": rank, "LOCAL_RANK": rank}
        command = Command(TRAIN, file, folder=folder, variables=variables)
        return command, lambda: (folder / "stderr.txt").read_text()

    first, first_log = start(0, 4, port)
    third, _ = start(2, 4, port)
    lonely, lonely_log = start(1, 2, free_port())
    first.wait_for(lambda: "waiting" in first_log(), seconds=60)
    assert (
        f"waiting for ranks 1, 3 of 4 at 127.0.0.1:{port} for {REPORT_SECONDS:.0f}" in first_log()
    )
    lonely.wait_for(lambda: "waiting" in lonely_log())
    assert "waiting for rank 0 of 2 at 127.0.0.1:" in lonely_log()
    assert "(Connection refused)" in lonely_log()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    for command, number in zip((first, third, lonely), numbers, strict=True):
        command.send(number)
        done = command.finish(seconds=10)
        assert done.status == 128 + number
        assert f"stopped by signal {number:d} while waiting for other ranks at" in done.errors
        assert "Traceback" not in done.errors
        assert len(done.errors.splitlines()) <= 4, done.errors
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )
