"""Model chunks of one rank: chained, they compute what the whole network does."""

import dataclasses
from typing import Any

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
JOINT = np.concatenate(([0], 1 + np.arange(N) % (N // 2)))  # two segments generated jointly
SHUFFLED = np.concatenate(([0], 1 + np.random.default_rng(0).permutation(N)))
ORDERS = {"l2r": LEFT_TO_RIGHT, "joint": JOINT, "shuffled": SHUFFLED}
MODELS = {
    "llama untied": dataclasses.replace(LLAMA, tie_embeddings=False),
    "qwen3": QWEN3,
    "gpt2 untied": dataclasses.replace(GPT2, tie_embeddings=False),
    "prefix": dataclasses.replace(LLAMA, query="anchor+prefix", tie_embeddings=False),
}


def build_chunks(model, groups, stages, *, recompute="none"):
    """Build chunks whose initial weights depend on the seed and not on the stages."""
    model = resolve_model(dataclasses.replace(model, init_std=0.3), max_positions=64)
    config = transformer_config(model, ParallelConfig())
    kwargs = {"groups": groups, "recompute": recompute}
    chunks = ModelChunks([ArmdModel(model, config, stage=stage, **kwargs) for stage in stages])
    for part in chunks.models:
        init_weights(part, seed=5)
    return chunks


def make_batch(order, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 101, (2, N + 1))
    return batch_of(tokens, np.stack([ORDERS[order]] * 2))


def run_chain(chunks, batch) -> tuple[Any, list[int]]:
    """Feed each chunk with the previous one's output; return the last output and row counts."""
    rows, counts = None, []
    for index, part in enumerate(chunks.models):
        part.set_input_tensor(rows)
        rows = chunks(batch, index)
        counts.append(rows.shape[0])
    return rows, counts[:-1]


def split_stages(model, count):
    model = resolve_model(model, max_positions=64)
    return all_stages(model, ParallelConfig(pipeline=count), seq_length=N)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_chained_chunks_equal_the_whole_network(groups, name, order):
    model, batch = MODELS[name], make_batch(order)
    whole = build_chunks(model, groups, split_stages(model, 1))
    expected = whole(batch)
    expected.sum().backward()
    for count in range(2, model.layers + 1):
        parts = build_chunks(model, groups, split_stages(model, count))
        nll, _ = run_chain(parts, batch)
        assert torch.equal(nll, expected)
        nll.sum().backward()
        gradients = {name: p.grad for name, p in parts.parameters_by_name().items()}
        assert gradients.keys() == whole.parameters_by_name().keys()
        for parameter_name, parameter in whole.parameters_by_name().items():
            grad = gradients[parameter_name]
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("order", "query", "rows"),
    [
        ("l2r", "anchor", [N, N, N]),  # one stream
        ("l2r", "learned", [2 * N, N, N]),
        ("joint", "anchor", [2 * N, N, N]),
        ("shuffled", "anchor", [2 * N, N, N]),
    ],
)
def test_lower_stages_send_both_streams_and_upper_stages_queries(groups, order, query, rows):
    model = dataclasses.replace(LLAMA, query=query, tie_embeddings=False)
    stages = [PipelineStage(range(n, n + 1), n == 0, n == 3) for n in range(4)]
    _, sent = run_chain(build_chunks(model, groups, stages), make_batch(order))
    assert sent == rows


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_chunks_have_the_same_gradients(groups, recompute, order):
    batch, gradients = make_batch(order), []
    for setting in ("none", recompute):
        parts = build_chunks(QWEN3, groups, split_stages(QWEN3, 2), recompute=setting)
        assert [part.recompute for part in parts.models] == [setting] * 2
        nll, _ = run_chain(parts, batch)
        nll.sum().backward()
        gradients.append({name: p.grad for name, p in parts.parameters_by_name().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_a_later_stage_needs_input_rows(groups):
    parts = build_chunks(QWEN3, groups, split_stages(QWEN3, 2))
    with pytest.raises(AssertionError, match="the previous stage's rows must be set"):
        parts(make_batch("l2r"), 1)


def test_parameters_of_all_chunks_are_registered(groups):
    parts = build_chunks(QWEN3, groups, split_stages(QWEN3, 3))
    registered = {id(parameter) for parameter in parts.parameters()}
    assert registered == {id(parameter) for parameter in parts.parameters_by_name().values()}


def test_nothing_is_tied_across_stages_without_a_pipeline(groups):
    assert build_chunks(LLAMA, groups, split_stages(LLAMA, 1)).tied_across_stages is None


def tied_embeddings(groups, models):
    """Return for each model what is tied across stages, and whether this rank holds it."""
    results = []
    for model in models:
        parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
        model = resolve_model(model, max_positions=64)
        stages = stages_of_rank(model, parallel, seq_length=N, rank=groups.pp.rank())
        chunks = build_chunks(model, groups, stages)
        results.append((chunks.tied_across_stages, EMBEDDING in chunks.parameters_by_name()))
    return results


@pytest.mark.slow
def test_a_pipeline_ties_the_embedding_across_stages():
    untied = dataclasses.replace(LLAMA, tie_embeddings=False)
    parallel = ParallelConfig(pipeline=2, virtual_pipeline=2)
    first, last = run_on_ranks(tied_embeddings, 2, [LLAMA, untied], parallel=parallel)
    assert first == [(EMBEDDING, True), (None, True)]
    assert last == [(EMBEDDING, True), (None, False)]
