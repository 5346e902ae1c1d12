"""Requests to stop."""

import os
import signal

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.train.signals import STOPPING, StopRequest
from tests.support.ranks import run_on_ranks

CPU = torch.device("cpu")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_remembered(groups: ProcessGroupCollection, number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.agreed(CPU) is None
        send(number)
        assert stop.agreed(CPU) == number
        assert stop.agreed(CPU) == number


def test_a_second_ctrl_c_ends_at_once(groups: ProcessGroupCollection) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.agreed(CPU) == signal.SIGINT


def test_the_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOPPING] != before
    assert [signal.getsignal(number) for number in STOPPING] == before


def stop_the_second(groups: ProcessGroupCollection) -> tuple[int | None, int | None]:
    with StopRequest() as stop:
        before = stop.agreed(CPU)
        if groups.dp.rank() == 1:
            send(signal.SIGTERM)
        return before, stop.agreed(CPU)


def test_all_processes_agree_on_what_one_of_them_got() -> None:
    assert run_on_ranks(stop_the_second, 2) == [(None, 15), (None, 15)]
