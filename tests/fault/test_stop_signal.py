"""Requests to stop."""

import os
import signal

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.fault.stop_signal import STOP_SIGNALS, StopRequest
from tests.support.spawn import run_on_ranks

CPU = torch.device("cpu")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered(groups: ProcessGroupCollection, number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.any_rank(CPU) is None
        send(number)
        assert stop.any_rank(CPU) == number
        assert stop.any_rank(CPU) == number


def test_a_second_ctrl_c_ends_at_once(groups: ProcessGroupCollection) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.any_rank(CPU) == signal.SIGINT


def test_the_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def stop_the_second(groups: ProcessGroupCollection) -> tuple[int | None, int | None]:
    with StopRequest() as stop:
        before = stop.any_rank(CPU)
        if groups.dp.rank() == 1:
            send(signal.SIGTERM)
        return before, stop.any_rank(CPU)


def test_all_processes_agree_on_what_one_of_them_got() -> None:
    assert run_on_ranks(stop_the_second, 2) == [(None, 15), (None, 15)]
