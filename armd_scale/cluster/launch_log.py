"""What a run was started with: a line for each start, for whoever reads its folder a year later."""

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

MODULES = ("LOADEDMODULES", "VIRTUAL_ENV", "CONDA_DEFAULT_ENV")
PREFIXES = ("SLURM_JOB", "SLURM_STEP", "SLURM_RESTART", "SLURM_CLUSTER", "NCCL_", "GLOO_", "CUDA_")


def record_launch(folder: Path, environment: DistributedEnv) -> None:
    """Adds a line to `starts.jsonl`: time, nodes, command, versions, variables (collective)."""
    hosts = [""] * environment.world_size
    dist.all_gather_object(hosts, environment.host)
    if not environment.is_rank0:
        return
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "hosts": hosts,
        "command": sys.argv,
        "python": platform.python_version(),
        "variables": {
            key: value
            for key, value in sorted(os.environ.items())
            if key in MODULES or key.startswith(PREFIXES)
        },
        "packages": {
            package.name: package.version for package in importlib.metadata.distributions()
        },
    }
    try:
        with (folder / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(start) + "\n")
    except OSError as error:  # a record is not worth the run
        get_logger(__name__).warning("%s/starts.jsonl cannot be written: %s", folder, error)
