"""Parameter names are those of the whole network, on any pipeline stage."""

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


def build_stages(model, groups, *, pipeline=1, chunks=1):
    """Build all stages of the network in this process."""
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
def test_names_on_stages_equal_those_of_the_whole_network(groups, name, pipeline, chunks):
    model = dataclasses.replace(MODELS[name], layers=4)
    (whole,) = build_stages(model, groups)
    parts = [shapes(part) for part in build_stages(model, groups, pipeline=pipeline, chunks=chunks)]
    assert len(parts) == pipeline * chunks
    assert {name: shape for part in parts for name, shape in part.items()} == shapes(whole)
    copies = Counter(name for part in parts for name in part)
    shared = {EMBEDDING} if model.tie_embeddings else set()
    assert {name for name, count in copies.items() if count > 1} == shared
    assert copies[EMBEDDING] == 1 + len(shared)


def test_a_tied_copy_has_the_embeddings_name_and_is_marked(groups):
    first, last = build_stages(LLAMA, groups, pipeline=2)
    assert parameters_by_name(first)[EMBEDDING] is first.embedding.weight
    assert parameters_by_name(last)[EMBEDDING] is last.output_layer.weight
    assert not hasattr(first.embedding.weight, "ds_pipe_replicated")
    assert getattr(last.output_layer.weight, "ds_pipe_replicated", False)


def test_an_untied_head_keeps_its_own_name(groups):
    first, last = build_stages(QWEN3, groups, pipeline=2)
    assert "output_layer.weight" in parameters_by_name(last)
    assert EMBEDDING not in parameters_by_name(last)
    assert "output_layer.weight" not in parameters_by_name(first)


def test_names_of_several_stages_are_merged(groups):
    parts = build_stages(QWEN3, groups, pipeline=3)
    merged = parameters_by_name(*parts)
    assert len(merged) == sum(len(parameters_by_name(part)) for part in parts)
    for part in parts:
        assert all(merged[name] is p for name, p in parameters_by_name(part).items())


def test_layers_are_numbered_in_the_whole_network(groups):
    _, last = build_stages(QWEN3, groups, pipeline=2)
    indices = {int(n.split(".")[1]) for n in parameters_by_name(last) if n.startswith("layers.")}
    assert indices == set(last.stage.layers)
    assert (min(indices) > 0, max(indices)) == (True, QWEN3.layers - 1)
