"""Stop signals."""

import os
import signal

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.fault.stop_signal import STOP_SIGNALS, StopRequest, defer_interrupts
from tests.support.spawn import run_on_ranks

CPU = torch.device("cpu")


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_is_recorded(groups: ProcessGroupCollection, signum: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.any_rank(CPU) is None
        send(signum)
        assert stop.any_rank(CPU) == signum
        assert stop.any_rank(CPU) == signum


def test_a_second_ctrl_c_interrupts_immediately(groups: ProcessGroupCollection) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.any_rank(CPU) == signal.SIGINT


def test_a_deferred_interrupt_is_answered_with_a_line(
    groups: ProcessGroupCollection, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest() as stop:
        with defer_interrupts(), defer_interrupts():
            send(signal.SIGINT)
            assert capfd.readouterr().err == ""  # the first one is handled as ever
            send(signal.SIGINT)
            assert "a checkpoint is being saved" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.any_rank(CPU) == signal.SIGINT


def test_a_run_under_nohup_survives_its_terminal(groups: ProcessGroupCollection) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.any_rank(CPU) is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_the_previous_handlers_are_restored() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(signum) for signum in STOP_SIGNALS] != before
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before


def signal_rank_1(groups: ProcessGroupCollection) -> tuple[int | None, int | None]:
    with StopRequest() as stop:
        before = stop.any_rank(CPU)
        if groups.dp.rank() == 1:
            send(signal.SIGTERM)
        return before, stop.any_rank(CPU)


@pytest.mark.slow
def test_all_ranks_see_the_signal_that_one_received() -> None:
    assert run_on_ranks(signal_rank_1, 2) == [(None, 15), (None, 15)]
