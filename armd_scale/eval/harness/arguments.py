"""Parse and check the arguments that lm-evaluation-harness passes to the model."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from armd_scale.errors import ArmdError
from armd_scale.parallel.environment import DistributedEnv
from armd_scale.paths import expand_path


@dataclass(frozen=True, kw_only=True)
class HarnessArguments:
    """Keys of `--model_args`, and the harness's own `--batch_size` and `--device`."""

    checkpoint: str | None = None
    """A checkpoint or a run folder."""
    hf: Path | None = None
    """A Hugging Face folder of an ARMD or AR model, instead of a checkpoint."""
    streams: int = 1
    """Segments generated in parallel."""
    max_length: int | None = None
    """Longest context to predict from, in tokens; None: as many as the model has positions, or
    without such a limit as in training."""
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    """How texts start; see `TextEncoder`."""
    micro_batch: int | None = None
    """Texts per forward pass; None: as in training."""
    device: torch.device | None = None
    """Where to run; None: on the GPU if there is one."""


_MIN_VALUES = {"streams": 1, "max_length": 2, "prefix_token_id": 0}


def with_device(environment: DistributedEnv, device: torch.device | None) -> DistributedEnv:
    """Return the environment with the requested device, as the harness's own models choose it.

    The harness passes cuda:0 if its user gives no device, so a request for CUDA is not always the
    user's: without a GPU it means the CPU, and with several processes the launcher's choice holds.
    """
    if device is None:
        return environment
    keeps_own = device.type == "cuda" and (
        environment.device.type == "cpu" or environment.world_size > 1 or device.index is None
    )
    return environment if keeps_own else dataclasses.replace(environment, device=device)


def read_arguments(arguments: Mapping[str, Any]) -> HarnessArguments:
    """Check the arguments as the harness has parsed them: numbers, booleans and strings.

    Raises:
        ArmdError: an unknown key (the message suggests the nearest known one) or an invalid value.
    """
    # The harness passes its own defaults as None, and batch sizes for models that accept them.
    values = {key: value for key, value in arguments.items() if value is not None}
    batch_size, max_batch_size = values.pop("batch_size", None), values.pop("max_batch_size", None)
    _check_keys(values)
    for key, minimum in _MIN_VALUES.items():
        if key in values:
            _require_int(key, values[key], minimum)
    if not isinstance(values.get("add_bos_token", True), bool):
        raise ArmdError(
            f"add_bos_token must be True or False (got '{values['add_bos_token']}'): leave it out "
            "to start texts as the tokenizer does"
        )
    converted = {key: convert(values[key]) for key, convert in _CONVERTERS.items() if key in values}
    return HarnessArguments(
        **{**values, **converted, "micro_batch": _micro_batch(batch_size, max_batch_size)}
    )


def _check_keys(values: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(HarnessArguments) if field.name != "micro_batch"]
    for key in values.keys() - set(known):
        nearest = difflib.get_close_matches(key, known, n=1)
        raise ArmdError(
            f"--model_args must have keys among {', '.join(known)} (got '{key}'"
            + (f", the nearest is {nearest[0]}" if nearest else "")
            + "): write, for example, checkpoint=runs/demo,streams=4"
        )
    if ("checkpoint" in values) == ("hf" in values):
        raise ArmdError(
            "--model_args must have either checkpoint or hf (got "
            f"{'both' if 'hf' in values else 'neither'}): write checkpoint=runs/demo or hf=FOLDER"
        )


def _micro_batch(batch_size: int | str | None, max_batch_size: int | None) -> int | None:
    """Texts per forward pass; `auto` means as in training, or the harness's upper bound if given.

    The harness would search for the largest size that fits in memory. `auto:4` repeats the search.
    """
    if batch_size is None or str(batch_size).startswith("auto"):
        if max_batch_size is None:
            return None
        return _require_int("--max_batch_size", max_batch_size, 1)
    if isinstance(batch_size, str) and batch_size.isdecimal():
        batch_size = int(batch_size)
    return _require_int("--batch_size", batch_size, 1)


def _require_int(name: str, value: object, minimum: int) -> int:
    # bool is a subclass of int: True would pass as 1.
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ArmdError(
            f"{name} must be an integer >= {minimum} (got '{value}'): change it or leave it out"
        )
    return value


def _path(key: str, value: object) -> Path:
    try:
        return Path(expand_path(str(value)))
    except ValueError as error:
        raise ArmdError(f"{key} of --model_args {error}") from None


def _device(name: object) -> torch.device:
    try:
        return torch.device(str(name))
    except RuntimeError as error:
        raise ArmdError(
            f"--device must be a device such as cpu or cuda:0 (got '{name}'): leave it out to use "
            "the GPU if there is one"
        ) from error


# The harness guesses types: a checkpoint named 7 arrives as an int.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "checkpoint": lambda checkpoint: str(_path("checkpoint", checkpoint)),
    "hf": lambda folder: _path("hf", folder),
    "device": _device,
}
