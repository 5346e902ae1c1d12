"""Names of parameters are those of the whole network, on whichever stage a parameter lives."""

import dataclasses
from collections import Counter

import pytest

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.param_names import EMBEDDING, parameters_by_name
from armd_scale.model.spec import transformer_config
from armd_scale.parallel.pipeline.partition import all_stages
from tests.support.networks import GPT2, LLAMA, QWEN3

PREFIX = dataclasses.replace(LLAMA, query="anchor+prefix", tie_embeddings=False)
MODELS = {"llama": LLAMA, "qwen3": QWEN3, "gpt2": GPT2, "prefix": PREFIX}
SPLITS = [(2, 1), (3, 1), (1, 3), (2, 2)]


def parts_of(model, groups, *, pipeline=1, chunks=1):
    """All stages of the network, built one by one in this process."""
    parallel = ParallelConfig(pipeline=pipeline, virtual_pipeline=chunks)
    model = resolve_model(model, max_positions=64)
    config = transformer_config(model, ParallelConfig())
    return [
        ArmdModel(model, config, groups=groups, stage=stage)
        for stage in all_stages(model, parallel, seq_length=32)
    ]


def shapes(part):
    return {name: p.shape for name, p in parameters_by_name(part).items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("pipeline", "chunks"), SPLITS)
def test_the_stages_names_are_the_whole_networks(groups, name, pipeline, chunks):
    model = dataclasses.replace(MODELS[name], layers=4)
    (whole,) = parts_of(model, groups)
    parts = [shapes(part) for part in parts_of(model, groups, pipeline=pipeline, chunks=chunks)]
    assert len(parts) == pipeline * chunks
    assert {name: shape for part in parts for name, shape in part.items()} == shapes(whole)
    held = Counter(name for part in parts for name in part)
    twice = {EMBEDDING} if model.tie_embeddings else set()
    assert {name for name, count in held.items() if count > 1} == twice
    assert held[EMBEDDING] == 1 + len(twice)


def test_a_tied_copy_goes_by_the_embeddings_name_and_is_marked(groups):
    first, last = parts_of(LLAMA, groups, pipeline=2)
    assert parameters_by_name(first)[EMBEDDING] is first.embedding.weight
    assert parameters_by_name(last)[EMBEDDING] is last.output_layer.weight
    assert not hasattr(first.embedding.weight, "ds_pipe_replicated")
    assert last.output_layer.weight.ds_pipe_replicated


def test_an_untied_head_keeps_its_own_name(groups):
    first, last = parts_of(QWEN3, groups, pipeline=2)
    assert "output_layer.weight" in parameters_by_name(last)
    assert EMBEDDING not in parameters_by_name(last)
    assert "output_layer.weight" not in parameters_by_name(first)


def test_several_parts_are_named_together(groups):
    parts = parts_of(QWEN3, groups, pipeline=3)
    together = parameters_by_name(*parts)
    assert len(together) == sum(len(parameters_by_name(part)) for part in parts)
    for part in parts:
        assert all(together[name] is p for name, p in parameters_by_name(part).items())


def test_a_layer_carries_its_number_in_the_whole_network(groups):
    _, last = parts_of(QWEN3, groups, pipeline=2)
    numbers = {int(n.split(".")[1]) for n in parameters_by_name(last) if n.startswith("layers.")}
    assert numbers == set(last.stage.layers)
    assert (min(numbers) > 0, max(numbers)) == (True, QWEN3.layers - 1)
