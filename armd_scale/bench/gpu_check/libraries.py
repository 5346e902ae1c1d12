"""Libraries import, collectives work in a job of one process, and what the CUDA context takes."""

import time
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from armd_scale.bench.gpu_check.results import Recorder
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import DistributedEnv, read_environment
from armd_scale.parallel.process_groups import process_groups

MODULES = ("megatron.core", "deepspeed", "transformers", "triton")
"""`triton` compiles FlexAttention and comes with CUDA builds of torch only."""


def run(recorder: Recorder, *, dry: bool, folder: Path) -> None:
    """Run the section."""
    environment = read_environment()
    on_cuda = environment.device.type == "cuda"
    device_name = torch.cuda.get_device_name() if on_cuda else "CPU"
    recorder.info("device", f"{device_name}, torch {torch.__version__}")
    if on_cuda:
        recorder.info("cuDNN", torch.backends.cudnn.version())
    for name in MODULES:
        if name == "triton" and not on_cuda:
            recorder.skip("import triton")
            continue
        _check_import(recorder, name)
    _check_collectives(recorder, environment)
    if on_cuda:
        # Of the whole device: memory of other processes on it counts too.
        free, total = torch.cuda.mem_get_info()
        recorder.info("memory of context and communicators", f"{(total - free) / 2**30:.2f} GiB")
    else:
        recorder.skip("memory of context and communicators")


def _check_import(recorder: Recorder, name: str) -> None:
    try:
        module = import_module(name)
    except ImportError as error:
        recorder.check(False, f"import {name}", error)
    else:
        recorder.check(True, f"import {name}", getattr(module, "__version__", "no version"))


def _check_collectives(recorder: Recorder, environment: DistributedEnv) -> None:
    """Run every kind of collective that the package uses, in the types that it uses."""
    start = time.perf_counter()
    with process_groups(environment, ParallelConfig()) as groups:
        # Losses are summed in float64, flags in int32: NCCL has no bool.
        numbers = torch.ones(4, device=environment.device, dtype=torch.float64)
        dist.all_reduce(numbers, group=groups.dp)
        flags = numbers.bool().to(torch.int32)
        dist.all_reduce(flags, group=groups.pp)
        gathered = [None]
        dist.all_gather_object(gathered, {"a": 1})
        broadcast = ["x"]
        dist.broadcast_object_list(broadcast)
    ok = numbers.tolist() == [1.0] * 4 and gathered == [{"a": 1}] and broadcast == ["x"]
    elapsed = f"{time.perf_counter() - start:.1f} s"
    recorder.check(ok, f"collectives by {environment.backend}: numbers and objects", elapsed)
