"""Partial gradients are complete after the reduction: they equal those of one process."""

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
from armd_scale.parallel.pipeline.partition import stages_of_rank
from armd_scale.parallel.pipeline.schedule import ScheduledChunk, run_micro_batches
from armd_scale.parallel.tensor.grad_reduce import all_reduce_partial_grads
from armd_scale.parallel.tensor.partition import tensor_partition
from tests.support.networks import GPT2, LLAMA, QWEN3, SHAPES, batch_of
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow

N = 16


def build_chunks(model, groups, parallel):
    """Build this rank's model chunks; their weights do not depend on the layout."""
    model = resolve_model(dataclasses.replace(model, init_std=0.3), max_positions=N + 1)
    config = transformer_config(model, parallel)
    stages = stages_of_rank(model, parallel, seq_length=N, rank=groups.pp.rank())
    chunks = ModelChunks([ArmdModel(model, config, stage=stage, groups=groups) for stage in stages])
    for part in chunks.models:
        init_weights(part, seed=3)
    return chunks


def samples():
    """Return two micro-batches: a random order, and two segments drawn jointly."""
    rng = np.random.default_rng(1)
    shuffled = np.concatenate(([0], 1 + rng.permutation(N)))
    joint = np.concatenate(([0], 1 + np.arange(N) % (N // 2)))
    return [
        batch_of(rng.integers(0, 101, (2, N + 1)), np.stack([block] * 2))
        for block in (shuffled, joint)
    ]


def gradients(groups, model, parallel, *, complete=True):
    """Return partition and gradient of the samples' summed loss, by parameter name."""
    chunks = build_chunks(model, groups, parallel)
    stages = [
        ScheduledChunk(
            lambda batch, index=index: chunks(batch, index),
            part.set_input_tensor,
            chunks.transformer_config,
        )
        for index, part in enumerate(chunks.models)
    ]
    run_micro_batches(stages, samples(), loss_fn=lambda nll, _: (nll.sum(), None), groups=groups)
    if complete:
        tied = chunks.tied_across_stages
        all_reduce_partial_grads(chunks.parameters_by_name(), tied=tied, groups=groups)
    return {
        name: (tensor_partition(p, groups.tp), p.grad)
        for name, p in chunks.parameters_by_name().items()
    }


def model_gradients(groups, models, parallel, complete):
    return [gradients(groups, model, parallel, complete=complete) for model in models]


@pytest.mark.parametrize("sequence", [False, True])
def test_gradients_of_two_tensor_ranks_are_parts_of_the_full_gradient(groups, sequence):
    parallel = ParallelConfig(tensor=2, sequence=sequence)
    models = list(SHAPES.values())
    ranks = run_on_ranks(model_gradients, 2, models, parallel, True, parallel=parallel)
    for index, model in enumerate(models):
        whole = gradients(groups, model, ParallelConfig())
        for rank in ranks:
            assert rank[index].keys() == whole.keys()
            for name, (split, gradient) in rank[index].items():
                expected = split.local_part(whole[name][1])
                scale = expected.abs().max()
                torch.testing.assert_close(gradient / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (False, {"q_norm.weight", "k_norm.weight"}),
        (
            True,
            {"q_norm.weight", "k_norm.weight", "linear_proj.bias", "linear_fc2.bias"}
            | {"attention_norm.weight", "mlp_norm.weight", "final_norm.weight"},
        ),
    ],
)
def test_exactly_the_marked_parameters_have_partial_gradients(groups, sequence, expected):
    """Without the reduction exactly the marked parameters differ, so no mark is redundant."""
    model = dataclasses.replace(QWEN3, attention_output_bias=True, mlp_bias=True)
    parallel = ParallelConfig(tensor=2, sequence=sequence)
    ranks = run_on_ranks(model_gradients, 2, [model], parallel, False, parallel=parallel)
    whole = gradients(groups, model, ParallelConfig())
    differing = set()
    for (rank,) in ranks:
        for name, (split, gradient) in rank.items():
            full = split.local_part(whole[name][1])
            if (gradient - full).abs().max() > 1e-4 * full.abs().max():
                differing.add(name)
    assert {name for name in whole if name.endswith(tuple(expected))} == differing
    for name in differing:
        total = sum(rank[name][1] for (rank,) in ranks)
        torch.testing.assert_close(total, whole[name][1], rtol=1e-4, atol=1e-4)


def reduce_ones(groups):
    """Reduce gradients of 1 + rank of a marked and an unmarked parameter."""
    parameters: dict[str, Any]
    parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("marked", "plain")}
    parameters["marked"].sequence_parallel = True
    for parameter in parameters.values():
        parameter.grad = torch.full((2,), 1.0 + groups.tp.rank())
    all_reduce_partial_grads(parameters, tied=None, groups=groups)
    return {name: p.grad.tolist() for name, p in parameters.items()}


def test_marked_gradients_are_summed_and_others_unchanged():
    parallel = ParallelConfig(tensor=2)
    ranks = run_on_ranks(reduce_ones, 2, parallel=parallel)
    assert [rank["marked"] for rank in ranks] == [[3.0, 3.0]] * 2
    assert [rank["plain"] for rank in ranks] == [[1.0, 1.0], [2.0, 2.0]]


def test_gradients_are_not_summed_over_data_parallel_ranks():
    ranks = run_on_ranks(reduce_ones, 2)
    assert ranks == [{"marked": [1.0, 1.0], "plain": [1.0, 1.0]}] * 2


def test_a_tied_embedding_has_one_gradient_on_both_stages(groups):
    parallel = ParallelConfig(pipeline=2)
    partial_grads, full_grads = (
        run_on_ranks(model_gradients, 2, [LLAMA, GPT2], parallel, complete, parallel=parallel)
        for complete in (False, True)
    )
    for index, model in enumerate((LLAMA, GPT2)):
        _, expected = gradients(groups, model, ParallelConfig())[EMBEDDING]
        first, last = (rank[index][EMBEDDING][1] for rank in full_grads)
        assert torch.equal(first, last)
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
        lookup_grad, head_grad = (rank[index][EMBEDDING][1] for rank in partial_grads)
        assert not torch.equal(lookup_grad, head_grad), "each stage has only its part"
        torch.testing.assert_close(lookup_grad + head_grad, expected, rtol=1e-4, atol=1e-4)


def test_a_missing_gradient_fails_an_assertion(groups):
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="takes part in every step"):
        all_reduce_partial_grads({EMBEDDING: parameter}, tied=EMBEDDING, groups=groups)
