"""DeepSpeed's configuration and process-wide switches."""

import logging
from typing import Any

import deepspeed
from deepspeed.utils import logger
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.derived import REDUCE_BUCKET_SIZE
from armd_scale.config.schema import OptimConfig


def configure_deepspeed() -> None:
    """Set DeepSpeed's process-wide switches; must run before `deepspeed.initialize`."""
    logger.setLevel(logging.WARNING)
    # For CPU ranks DeepSpeed would compile a shared-memory reduction at first use, under a lock
    # file. A killed build leaves the lock behind, and every later run waits for it forever. gloo
    # works without that operation.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]


def deepspeed_config(
    optim: OptimConfig, *, precision: str, groups: ProcessGroupCollection, num_parameters: int
) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`.

    Args:
        optim: the recipe's optim section.
        precision: "fp32" or "bf16".
        groups: the process groups of the layout.
        num_parameters: number of parameters on this rank.
    """
    config: dict[str, Any] = {
        # Nominal sizes that only have to be consistent: it is megatron-core's schedule that feeds
        # micro-batches.
        "train_batch_size": groups.dp.size(),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_grad if optim.zero_stage > 0 else 0.0,  # see `step`
        # torch's AdamW on all stages, also with offload: DeepSpeed's own CPU Adam needs a compiler.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": optim.zero_stage,
            # Stage 3 allocates the bucket for good, so it should not exceed a small model.
            "reduce_bucket_size": min(REDUCE_BUCKET_SIZE, num_parameters),
        },
        "bf16": {"enabled": precision == "bf16"},
    }
    if optim.offload == "optimizer":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    return config
