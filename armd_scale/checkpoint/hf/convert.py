"""The convert command: convert a Hugging Face folder, then compare the result with its source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.parity import check_parity, describe, to_json
from armd_scale.checkpoint.load import Checkpoint, open_checkpoint
from armd_scale.checkpoint.save import RECIPE, TOKENIZER
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import resolve
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import CheckpointError
from armd_scale.files import (
    atomic_write_text,
    read_error_reason,
    read_text,
    require_parent_dir,
)
from armd_scale.log import get_logger
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.parallel.process_groups import process_groups


@dataclass(frozen=True, kw_only=True)
class ParityCheck:
    """How a conversion is compared with its source."""

    mode: Literal["logits", "layers", "none"] = "logits"
    """Both models whole in memory, one layer at a time, or no comparison."""
    text: Path | None = None
    """File with the text to compare on; None: a short built-in text."""
    json: Path | None = None
    """Output file for the figures."""


def convert_and_check(
    request: ConversionRequest, check: ParityCheck, environment: DistributedEnv
) -> bool:
    """Convert on all ranks, then compare the two models on rank 0.

    Args:
        request: what to convert.
        check: how to compare.
        environment: this process's place in the job.

    Returns:
        Whether the two models agree (True without a comparison); the same on all ranks.

    Raises:
        ArmdError: the folder cannot be converted, or a file cannot be read or written.
    """
    # Options are checked first: a conversion of a large model takes minutes.
    text = None if check.text is None else _read_text(check.text)
    require_parent_dir(check.json, "--json", error_class=CheckpointError)
    with process_groups(environment, ParallelConfig()) as groups:
        convert(request, groups=groups)
        if environment.is_rank0:
            _log_result(request.output)
        passed = [True]
        if environment.is_rank0 and check.mode != "none":
            passed = [_compare(request, check, text, groups=groups)]
        dist.broadcast_object_list(passed, src=0)
    return passed[0]


def _log_result(output: Path) -> None:
    """Say what was written, how its texts start and end, and what can be done with it."""
    logger = get_logger(__name__)
    logger.info("wrote %s", output)
    # Not by `open_checkpoint`, which reads the weights again to verify them.
    recipe = resolve(load_recipe(output / RECIPE))
    tokenizer = Checkpoint(output, recipe, state={"step": 0}).load_tokenizer()
    if tokenizer is None:
        return
    start = "".join(map(tokenizer.spell, tokenizer.prefix_ids)) or "no special token"
    ends = " or ".join(map(tokenizer.spell, tokenizer.eos_ids)) or "no token"
    logger.info("texts start with %s and end at %s", start, ends)
    logger.info("generate:   python tools/generate.py --checkpoint %s --prompt TEXT", output)
    logger.info(
        "fine-tune:  python tools/preprocess.py --input FILES --tokenizer %s --output data/text, "
        "then python -m armd_scale.train %s data.train=data/text data.seq_length=N",
        output / TOKENIZER,
        output / RECIPE,
    )


def _compare(
    request: ConversionRequest,
    check: ParityCheck,
    text: str | None,
    *,
    groups: ProcessGroupCollection,
) -> bool:
    """Compare, print the figures and write the JSON file."""
    checkpoint = open_checkpoint(request.output)
    report = check_parity(
        checkpoint, request.hf, groups=groups, text=text, by_layer=check.mode == "layers"
    )
    print(describe(report))
    if check.json is not None:
        atomic_write_text(check.json, to_json(report) + "\n", error_class=CheckpointError)
    return report.passed


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"--text must name a UTF-8 text file ({path} cannot be read: "
            f"{read_error_reason(error)}): give another one or leave it out"
        ) from None
