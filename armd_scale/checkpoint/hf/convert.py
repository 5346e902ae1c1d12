"""One conversion, from what was asked for to the figures that say whether it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.parity import check_parity, describe, to_json
from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import CheckpointError
from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups


@dataclass(frozen=True, kw_only=True)
class ParityCheck:
    """How a conversion is compared with what it was made from."""

    mode: Literal["logits", "layers", "none"] = "logits"
    """Whole models in memory, a layer at a time, or not at all."""
    text: Path | None = None
    """Text to compare on; None: a short one of our own."""
    json: Path | None = None
    """File for the figures."""


def convert_and_check(
    wanted: ConversionRequest, check: ParityCheck, environment: DistributedEnv
) -> bool:
    """Converts on all processes of the job, then compares on the first.

    Returns:
        Whether the two models agree, as far as they were compared; the same on all processes.

    Raises:
        ArmdError: the folder cannot be converted, or a file cannot be read or written.
    """
    text = None if check.text is None else _read(check.text)
    if check.json is not None and not check.json.absolute().parent.is_dir():
        raise CheckpointError(
            f"--json must name a file in a folder that exists, got {check.json}: make it first"
        )
    with process_groups(environment, ParallelConfig()) as groups:
        convert(wanted, groups=groups)
        get_logger(__name__).info("wrote %s", wanted.output)
        holds = [True]
        if environment.is_rank0 and check.mode != "none":
            holds = [_compare(wanted, check, text, groups=groups)]
        dist.broadcast_object_list(holds, src=0)
    return holds[0]


def _compare(
    wanted: ConversionRequest,
    check: ParityCheck,
    text: str | None,
    *,
    groups: ProcessGroupCollection,
) -> bool:
    checkpoint = open_checkpoint(wanted.output)
    parity = check_parity(
        checkpoint, wanted.hf, groups=groups, text=text, by_layer=check.mode == "layers"
    )
    print(describe(parity))
    if check.json is not None:
        check.json.write_text(to_json(parity) + "\n")
    return parity.passed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"--text must name a file of UTF-8 text, and {path} cannot be read ({error}): "
            "give another one or leave it out"
        ) from None
