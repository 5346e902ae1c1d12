"""Process groups: created once from the layout, then passed as arguments, never looked up.

megatron-core creates them; its `ProcessGroupCollection` (tp, pp, dp, ...) is what modules take. A
job of one process has the same groups as a large one, each of size 1, so there is one code path.
"""

import atexit
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from torch._C._distributed_c10d import HashStore

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import DistributedEnv, read_environment
from armd_scale.parallel.rendezvous import join_store

# Only the last resort: `fault` notices dead ranks within seconds, and hung ones by its own timeout.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_SHARED_LOOP = "gloo_one_loop"


@contextmanager
def process_groups(
    environment: DistributedEnv,
    parallel: ParallelConfig,
    *,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> Iterator[ProcessGroupCollection]:
    """Join the job, yield the groups of its layout, and leave the job at the end.

    Args:
        environment: this process within the job.
        parallel: the layout. The data parallel size is the world size divided by the tensor,
            pipeline and context parallel sizes.
        stop_signal: returns the number of a stop signal that was received, or None; obeyed while
            other processes are missing.

    Raises:
        TrainingError: the job cannot be joined.
        SystemExit: after a stop signal.
    """
    if _is_single_process_job_running(environment):
        # `current_process_groups` has joined already. All layouts of one process are the same.
        yield ProcessGroupCollection.use_mpu_process_groups()
        return
    with init_distributed(environment, stop_signal), model_parallel_groups(parallel) as groups:
        yield groups


def current_process_groups(device: torch.device) -> ProcessGroupCollection:
    """Return the process groups of this process, for library calls without any setup.

    If no groups exist, the process joins its job, without tensor or pipeline parallelism, and
    stays in it until it exits. Under a launcher all ranks must call this.

    Args:
        device: chooses the backend of new groups (NCCL or gloo).
    """
    if not parallel_state.model_parallel_is_initialized():
        environment = dataclasses.replace(read_environment(), device=device)
        stack = ExitStack()
        stack.enter_context(process_groups(environment, ParallelConfig()))
        atexit.register(stack.close)
    return ProcessGroupCollection.use_mpu_process_groups()


def _is_single_process_job_running(environment: DistributedEnv) -> bool:
    return (
        environment.world_size == 1
        and dist.is_initialized()
        and dist.get_world_size() == 1
        and parallel_state.model_parallel_is_initialized()
    )


@contextmanager
def init_distributed(
    environment: DistributedEnv, stop_signal: Callable[[], int | None] = lambda: None
) -> Iterator[None]:
    """Start torch.distributed for the block; arguments and errors as of `process_groups`."""
    if environment.device.type == "cuda":
        torch.cuda.set_device(environment.device)
    is_single_process = environment.world_size == 1
    dist.init_process_group(
        _register_gloo_shared_loop() if environment.backend == "gloo" else environment.backend,
        rank=environment.rank,
        world_size=environment.world_size,
        # A single process needs no rendezvous, hence no free port: its store is a dictionary.
        store=HashStore() if is_single_process else join_store(environment, stop_signal),
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel_groups(parallel: ParallelConfig) -> Iterator[ProcessGroupCollection]:
    """Create the groups of a layout for the block; torch.distributed must be running."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=(
            parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None
        ),
        context_parallel_size=parallel.context,
        create_gloo_process_groups=False,  # megatron-core's extra CPU groups, which nothing uses
    )
    try:
        yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        parallel_state.destroy_model_parallel()


@cache
def _register_gloo_shared_loop() -> str:
    """Register gloo with one network thread per process as a backend, and return its name.

    By default every gloo group has a network thread of its own that wakes up 100 times a second,
    and a layout has dozens of groups. With four processes on two cores these threads took half of
    the CPU time. Groups that share a gloo device share its thread.
    """
    device = dist.ProcessGroupGloo.create_default_device()

    def make_group(settings: Any, _: Any) -> dist.ProcessGroupGloo:
        options = dist.ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
        options._devices, options._timeout = [device], settings.timeout
        return dist.ProcessGroupGloo(
            settings.store, settings.group_rank, settings.group_size, options
        )

    dist.Backend.register_backend(_SHARED_LOOP, make_group, extended_api=True, devices=["cpu"])
    return _SHARED_LOOP
