"""Arguments from the harness: parsed, or refused in one sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch

from armd_scale.errors import ArmdError
from armd_scale.eval.harness.arguments import HarnessArguments, read_arguments, with_device
from armd_scale.parallel.environment import DistributedEnv


def test_arguments_are_converted_from_the_types_that_the_harness_guesses():
    arguments = {"checkpoint": 7, "streams": 4, "batch_size": "16", "device": "cpu"}
    assert read_arguments(arguments) == HarnessArguments(
        checkpoint="7", streams=4, micro_batch=16, device=torch.device("cpu")
    )
    arguments = {"hf": "models/gpt2", "add_bos_token": True, "prefix_token_id": 0, "batch_size": 1}
    assert read_arguments(arguments) == HarnessArguments(
        hf=Path("models/gpt2"), add_bos_token=True, prefix_token_id=0, micro_batch=1
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_size": "auto"}, None),
        ({"batch_size": "auto:4", "max_batch_size": 8}, 8),
        ({}, None),
    ],
)
def test_an_automatic_batch_size_is_that_of_training_or_the_upper_bound(arguments, expected):
    assert read_arguments({"checkpoint": "run", **arguments}).micro_batch == expected


@pytest.mark.parametrize(
    ("own", "world_size", "requested", "expected"),
    [
        ("cpu", 1, None, "cpu"),
        ("cpu", 1, "cuda:0", "cpu"),  # the harness passes this if the user gives no device
        ("cuda:3", 4, "cuda:0", "cuda:3"),
        ("cuda:0", 1, "cuda", "cuda:0"),
        ("cuda:0", 1, "cuda:1", "cuda:1"),
        ("cuda:0", 1, "cpu", "cpu"),
    ],
)
def test_the_requested_device_is_used_unless_it_is_the_default(
    own, world_size, requested, expected
):
    environment = DistributedEnv(
        rank=0, world_size=world_size, local_rank=0, device=torch.device(own)
    )
    device = requested and torch.device(requested)
    result = with_device(environment, device)
    assert result == dataclasses.replace(environment, device=torch.device(expected))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, r"must have either checkpoint or hf \(got neither\)"),
        ({"checkpoint": "run", "hf": "x"}, r"must have either checkpoint or hf \(got both\)"),
        ({"checkpoint": "run", "stream": 2}, r"\(got 'stream', the nearest is streams\)"),
        ({"pretrained": "x"}, "must have keys among checkpoint, hf, .* .got 'pretrained'.: write"),
        ({"checkpoint": "run", "streams": 0}, "streams must be an integer >= 1 .got '0'."),
        ({"checkpoint": "run", "max_length": "x"}, "max_length must be an integer >= 2 .got 'x'."),
        ({"checkpoint": "run", "batch_size": "some"}, "--batch_size must be an integer >= 1"),
        (
            {"checkpoint": "run", "batch_size": "auto", "max_batch_size": 0},
            "--max_batch_size must be an integer >= 1 .got '0'.",
        ),
        ({"checkpoint": "run", "add_bos_token": 3}, "add_bos_token must be True or False"),
        ({"checkpoint": "run", "device": "gpu"}, "--device must be a device such as cpu"),
    ],
)
def test_invalid_arguments_are_refused(arguments, sentence):
    with pytest.raises(ArmdError, match=sentence):
        read_arguments(arguments)
