"""What lm-evaluation-harness is told of a model of ours, checked before anything is opened."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from armd_scale.errors import ArmdError
from armd_scale.parallel.environment import DistributedEnv

_NUMBERS = {"streams": 1, "max_length": 2, "prefix_token_id": 0}


@dataclass(frozen=True, kw_only=True)
class HarnessArguments:
    """Keys of `--model_args`, and the harness's own `--batch_size` and `--device`."""

    checkpoint: str | None = None
    """A checkpoint, or a run's folder."""
    hf: Path | None = None
    """A Hugging Face folder, of an ARMD or an AR model; in place of a checkpoint."""
    streams: int = 1
    """Segments generated side by side."""
    max_length: int | None = None
    """Longest text to predict from, in tokens; None: as in training."""
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    """How texts begin; see `beginning`."""
    micro_batch: int | None = None
    """Texts of one forward pass; None: as in training."""
    device: torch.device | None = None
    """Where to run; None: on the GPU where there is one."""


def with_device(here: DistributedEnv, asked: torch.device | None) -> DistributedEnv:
    """A process's place on the device that was asked for, as the harness's own models take it.

    The harness says cuda:0 where nobody said anything. That is the CPU where there is no GPU, and
    the launcher's choice where there are several processes.
    """
    if asked is None:
        return here
    is_open = asked.type == "cuda" and (
        here.device.type == "cpu" or here.world_size > 1 or asked.index is None
    )
    return here if is_open else dataclasses.replace(here, device=asked)


def read_arguments(given: Mapping[str, Any]) -> HarnessArguments:
    """The arguments as the harness parsed them: numbers, booleans and words.

    Raises:
        ArmdError: an unknown key (the nearest known one is offered), or a value that is none.
    """
    values = {key: value for key, value in given.items() if value is not None}
    size, largest = values.pop("batch_size", None), values.pop("max_batch_size", None)
    known = [field.name for field in fields(HarnessArguments) if field.name != "micro_batch"]
    for key in values.keys() - set(known):
        near = difflib.get_close_matches(key, known, n=1)
        raise ArmdError(
            f"--model_args must have keys among {', '.join(known)}, got '{key}'"
            + (f" (the nearest is {near[0]})" if near else "")
            + ": write checkpoint=runs/demo,streams=4"
        )
    if ("checkpoint" in values) == ("hf" in values):
        raise ArmdError(
            "--model_args must name a checkpoint or a Hugging Face folder, got "
            f"{'both' if 'hf' in values else 'neither'}: write checkpoint=runs/demo or hf=FOLDER"
        )
    for key, least in _NUMBERS.items():
        if key in values:
            _require_number(key, values[key], least)
    if not isinstance(values.get("add_bos_token", True), bool):
        raise ArmdError(
            f"add_bos_token must be True or False, got '{values['add_bos_token']}': leave it out "
            "to begin texts as the tokenizer does"
        )
    return HarnessArguments(
        **{
            **values,
            **{key: kind(values[key]) for key, kind in _KINDS.items() if key in values},
            "micro_batch": _micro_batch(size, largest),
        }
    )


def _micro_batch(size: int | str | None, largest: int | None) -> int | None:
    """Texts of one forward pass; `auto` is as in training, or the harness's own upper bound."""
    if size is None or str(size).startswith("auto"):
        return None if largest is None else _require_number("--max_batch_size", largest, 1)
    if isinstance(size, str) and size.isdecimal():
        size = int(size)
    return _require_number("--batch_size", size, 1)


def _device(name: object) -> torch.device:
    try:
        return torch.device(str(name))
    except RuntimeError as error:
        raise ArmdError(
            f"--device must be a device such as cpu or cuda:0, got '{name}': leave it out to take "
            "the GPU where there is one"
        ) from error


def _require_number(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArmdError(
            f"{name} must be a whole number of at least {least}, got '{value}': change it or "
            "leave it out"
        )
    return value


_KINDS = {"checkpoint": str, "hf": lambda folder: Path(str(folder)), "device": _device}
