"""A process's parts of the network: chained they are the whole network, whatever the order."""

import dataclasses

import numpy as np
import pytest
import torch

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.param_names import EMBEDDING
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.parallel.pipeline.partition import PipelineStage, all_stages, stages_of_rank
from tests.support.networks import GPT2, LLAMA, QWEN3, batch_of
from tests.support.spawn import run_on_ranks

N = 16
LEFT_TO_RIGHT = np.arange(N + 1)
JOINT = np.concatenate(([0], 1 + np.arange(N) % (N // 2)))  # two segments side by side
SHUFFLED = np.concatenate(([0], 1 + np.random.default_rng(0).permutation(N)))
ORDERS = {"l2r": LEFT_TO_RIGHT, "joint": JOINT, "shuffled": SHUFFLED}
MODELS = {
    "llama untied": dataclasses.replace(LLAMA, tie_embeddings=False),
    "qwen3": QWEN3,
    "gpt2 untied": dataclasses.replace(GPT2, tie_embeddings=False),
    "prefix": dataclasses.replace(LLAMA, query="anchor+prefix", tie_embeddings=False),
}


def network(model, groups, stages, *, recompute="none"):
    """Chunks with the weights of a seed: those of the whole network, whatever the stages."""
    model = resolve_model(dataclasses.replace(model, init_std=0.3), max_positions=64)
    config = transformer_config(model, ParallelConfig())
    fixed = {"groups": groups, "recompute": recompute}
    made = ModelChunks([ArmdModel(model, config, stage=stage, **fixed) for stage in stages])
    for part in made.models:
        init_weights(part, seed=5)
    return made


def batch_under(order, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 101, (2, N + 1))
    return batch_of(tokens, np.stack([ORDERS[order]] * 2))


def chained(chunks, batch):
    """The last part's output, each part fed with what the one before put out."""
    rows, counts = None, []
    for number, part in enumerate(chunks.models):
        part.set_input(rows)
        rows = chunks(batch, number)
        counts.append(rows.shape[0])
    return rows, counts[:-1]


def stages_of(model, count):
    model = resolve_model(model, max_positions=64)
    return all_stages(model, ParallelConfig(pipeline=count), seq_length=N)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_chained_parts_are_the_whole_network(groups, name, order):
    model, batch = MODELS[name], batch_under(order)
    whole = network(model, groups, stages_of(model, 1))
    expected = whole(batch)
    expected.sum().backward()
    for count in range(2, model.layers + 1):
        parts = network(model, groups, stages_of(model, count))
        nll, _ = chained(parts, batch)
        assert torch.equal(nll, expected)
        nll.sum().backward()
        gradients = {name: p.grad for name, p in parts.parameters_by_name().items()}
        assert gradients.keys() == whole.parameters_by_name().keys()
        for parameter, ours in whole.parameters_by_name().items():
            torch.testing.assert_close(gradients[parameter], ours.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("order", "query", "rows"),
    [
        ("l2r", "anchor", [N, N, N]),  # one stream
        ("l2r", "learned", [2 * N, N, N]),
        ("joint", "anchor", [2 * N, N, N]),
        ("shuffled", "anchor", [2 * N, N, N]),
    ],
)
def test_lower_stages_send_both_streams_and_upper_ones_queries(groups, order, query, rows):
    model = dataclasses.replace(LLAMA, query=query, tie_embeddings=False)
    stages = [PipelineStage(range(n, n + 1), n == 0, n == 3) for n in range(4)]
    _, sent = chained(network(model, groups, stages), batch_under(order))
    assert sent == rows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("again", ["full", "selective"])
def test_recomputed_parts_have_the_same_gradients(groups, again, order):
    batch, gradients = batch_under(order), []
    for recompute in ("none", again):
        parts = network(QWEN3, groups, stages_of(QWEN3, 2), recompute=recompute)
        assert [part.recompute for part in parts.models] == [recompute] * 2
        nll, _ = chained(parts, batch)
        nll.sum().backward()
        gradients.append({name: p.grad for name, p in parts.parameters_by_name().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_a_later_part_needs_rows(groups):
    parts = network(QWEN3, groups, stages_of(QWEN3, 2))
    with pytest.raises(AssertionError, match="the rows of the one before"):
        parts(batch_under("l2r"), 1)


def test_an_engine_finds_the_parameters_of_all_parts(groups):
    parts = network(QWEN3, groups, stages_of(QWEN3, 3))
    found = {id(parameter) for parameter in parts.parameters()}
    assert found == {id(parameter) for parameter in parts.parameters_by_name().values()}


def test_one_process_has_nothing_tied_across_stages(groups):
    assert network(LLAMA, groups, stages_of(LLAMA, 1)).tied_across_stages is None


def placed(groups, models):
    """What a rank of a pipeline of two says of its chunks."""
    said = []
    for model in models:
        parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
        stages = stages_of_rank(model, parallel, seq_length=N, rank=groups.pp.rank())
        chunks = network(model, groups, stages)
        said.append((chunks.tied_across_stages, EMBEDDING in chunks.parameters_by_name()))
    return said


def test_a_pipeline_says_what_is_tied_across_its_stages():
    untied = dataclasses.replace(LLAMA, tie_embeddings=False)
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
    first, last = run_on_ranks(placed, 2, [LLAMA, untied], parallel=parallel)
    assert first == [(EMBEDDING, True), (None, True)]
    assert last == [(EMBEDDING, True), (None, False)]
