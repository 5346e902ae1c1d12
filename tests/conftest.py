"""Fixtures that any test may ask for."""

import signal
import threading
from collections.abc import Iterator

import jaxtyping
import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, the longest before the others, so that no worker is left with one."""
    items.sort(key=_expected_minutes, reverse=True)


def _expected_minutes(item: pytest.Item) -> float:
    """The minutes of a test's file, as its marker `slow` says; 0 without the marker."""
    marker = item.get_closest_marker("slow")
    return 0 if marker is None else marker.kwargs.get("minutes", 1)


@pytest.fixture(autouse=True)
def restore_ctrl_c() -> Iterator[None]:
    """Ctrl-C as before each test: the end of a command ignores it for the rest of the process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) is not handler:
        signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def groups() -> Iterator[ProcessGroupCollection]:
    """The process groups of a job of one process."""
    with process_groups(read_environment(), ParallelConfig()) as made:
        yield made


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """No checks of annotated shapes, which make a small forward pass three times as slow.

    For tests of many cases that compare values; other tests of the same functions check shapes.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
