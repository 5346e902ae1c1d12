"""What the harness passes on, read or refused in one sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch

from armd_scale.errors import ArmdError
from armd_scale.eval.harness.arguments import HarnessArguments, read_arguments, with_device
from armd_scale.parallel.environment import DistributedEnv


def test_arguments_as_the_harness_parses_them():
    given = {"checkpoint": 7, "streams": 4, "batch_size": "16", "device": "cpu"}
    assert read_arguments(given) == HarnessArguments(
        checkpoint="7", streams=4, micro_batch=16, device=torch.device("cpu")
    )
    given = {"hf": "models/gpt2", "add_bos_token": True, "prefix_token_id": 0, "batch_size": 1}
    assert read_arguments(given) == HarnessArguments(
        hf=Path("models/gpt2"), add_bos_token=True, prefix_token_id=0, micro_batch=1
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"batch_size": "auto"}, None),
        ({"batch_size": "auto:4", "max_batch_size": 8}, 8),
        ({}, None),
    ],
)
def test_a_batch_size_that_is_left_open_is_that_of_training(given, expected):
    assert read_arguments({"checkpoint": "run", **given}).micro_batch == expected


@pytest.mark.parametrize(
    ("has", "processes", "asked", "expected"),
    [
        ("cpu", 1, None, "cpu"),
        ("cpu", 1, "cuda:0", "cpu"),  # which the harness says where its user said nothing
        ("cuda:3", 4, "cuda:0", "cuda:3"),
        ("cuda:0", 1, "cuda", "cuda:0"),
        ("cuda:0", 1, "cuda:1", "cuda:1"),
        ("cuda:0", 1, "cpu", "cpu"),
    ],
)
def test_where_a_model_lives(has, processes, asked, expected):
    here = DistributedEnv(rank=0, world_size=processes, local_rank=0, device=torch.device(has))
    device = asked and torch.device(asked)
    assert with_device(here, device) == dataclasses.replace(here, device=torch.device(expected))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "must name a checkpoint or a Hugging Face folder, got neither"),
        ({"checkpoint": "run", "hf": "x"}, "must name a checkpoint or .* got both"),
        ({"checkpoint": "run", "stream": 2}, r"got 'stream' \(the nearest is streams\)"),
        ({"pretrained": "x"}, "must have keys among checkpoint, hf, .* got 'pretrained'"),
        ({"checkpoint": "run", "streams": 0}, "streams must be a whole number of at least 1"),
        ({"checkpoint": "run", "max_length": "x"}, "max_length must be a whole .* got 'x'"),
        ({"checkpoint": "run", "batch_size": "some"}, "--batch_size must be a whole number"),
        (
            {"checkpoint": "run", "batch_size": "auto", "max_batch_size": 0},
            "--max_batch_size must be a whole number of at least 1, got '0'",
        ),
        ({"checkpoint": "run", "add_bos_token": 3}, "add_bos_token must be True or False"),
        ({"checkpoint": "run", "device": "gpu"}, "--device must be a device such as cpu"),
    ],
)
def test_what_is_refused(given, sentence):
    with pytest.raises(ArmdError, match=sentence):
        read_arguments(given)
