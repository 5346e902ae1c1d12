"""Append launch metadata (hosts, command, versions, environment) to launches.jsonl."""

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch.distributed as dist

from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv

# Environment variables to record. Not all of them: the environment may contain access tokens.
RECORDED_VARIABLES = ("LOADEDMODULES", "VIRTUAL_ENV", "CONDA_DEFAULT_ENV")
RECORDED_PREFIXES = (
    "SLURM_JOB",
    "SLURM_STEP",
    "SLURM_RESTART",
    "SLURM_CLUSTER",
    "NCCL_",
    "GLOO_",
    "CUDA_",
)


def record_launch(folder: Path, environment: DistributedEnv) -> None:
    """Append a line to `launches.jsonl` in the run's folder; a collective of all ranks.

    The line holds the time, the host of each rank, the command, the Python version, the versions of
    all packages, and selected environment variables.
    """
    hosts = [""] * environment.world_size
    dist.all_gather_object(hosts, environment.host)
    if not environment.is_rank0:
        return
    launch = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hosts": hosts,
        "command": sys.argv,
        "python": platform.python_version(),
        "variables": {
            key: value
            for key, value in sorted(os.environ.items())
            if key in RECORDED_VARIABLES or key.startswith(RECORDED_PREFIXES)
        },
        "packages": {
            package.name: package.version for package in importlib.metadata.distributions()
        },
    }
    path = folder / "launches.jsonl"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(launch) + "\n")
    except OSError as error:  # not a reason to end the run
        get_logger(__name__).warning("cannot write %s (%s)", path, error)
