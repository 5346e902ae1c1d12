"""Initial weights are a function of seed and parameter name, on any layout."""

import dataclasses
import math

import pytest
import torch

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.parallel.tensor.partition import tensor_partition
from tests.support.networks import LLAMA, SHAPES
from tests.support.spawn import run_on_ranks

PREFIX = dataclasses.replace(LLAMA, query="prefix")
WIDE = ModelConfig(
    layers=3, hidden=256, ffn_hidden=512, heads=4, vocab_size=1000, query="anchor+prefix",
    position_embedding="learned_absolute", mlp_bias=True, norm="layernorm", tie_embeddings=False,
    init_std=0.03,
)  # fmt: skip


def weights(model, groups, **kwargs):
    """Return initial parameters by name; a state dict would include megatron-core's extras."""
    return {
        name: p.detach()
        for name, p in build_initialized(model, groups, **kwargs).named_parameters()
    }


def build_initialized(model, groups, *, seed=0, parallel=None, dtype=torch.float32):
    model = resolve_model(model, max_positions=64)
    config = transformer_config(model, parallel or ParallelConfig(), dtype=dtype)
    network = ArmdModel(model, config, groups=groups)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    init_weights(network, seed=seed)
    return network


@pytest.mark.parametrize("model", [*SHAPES.values(), PREFIX, WIDE])
def test_weights_depend_on_the_seed(groups, model):
    first, same, other = (weights(model, groups, seed=seed) for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, same[name]), name
        assert tensor.unique().numel() == 1 or not torch.equal(tensor, other[name]), name


def test_no_two_parameters_have_the_same_values(groups):
    heads = [
        p.flatten()[:8]
        for p in build_initialized(WIDE, groups).parameters()
        if p.unique().numel() > 1
    ]
    heads = torch.stack([values / values.norm() for values in heads])
    assert (heads @ heads.T - torch.eye(len(heads))).abs().max() < 0.999


def test_an_additional_parameter_does_not_change_the_others(groups):
    plain, normed = (
        weights(dataclasses.replace(LLAMA, qk_norm=qk_norm, query=query), groups)
        for qk_norm, query in (("none", "learned"), ("head", "anchor"))
    )
    shared = plain.keys() & normed.keys()
    assert len(shared) < min(len(plain), len(normed))
    assert all(torch.equal(plain[name], normed[name]) for name in shared)


def test_standard_deviations_and_constants(groups):
    for name, weight in weights(WIDE, groups).items():
        if name.endswith("norm.weight"):
            assert (weight == 1).all(), name
        elif name.endswith("bias") or "gap" in name or name.endswith("prefix.scale"):
            assert (weight == 0).all(), name
        else:
            expected = 0.03
            if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
                expected /= math.sqrt(6)
            elif name.endswith("prefix.position_embedding"):
                expected = 128**-0.5
            # Five standard errors of a sample standard deviation, and of a mean.
            error = 5 * expected / math.sqrt(2 * weight.numel())
            assert abs(weight.std().item() - expected) < error, name
            assert abs(weight.mean().item()) < 2 * error, name


def test_the_prefix_scale_starts_at_one_alone_and_at_zero_with_an_anchor(groups):
    for model, value in ((PREFIX, 1), (WIDE, 0)):
        scale = build_initialized(model, groups).get_parameter("query_start.prefix.scale")
        assert (scale == value).all()


def test_lower_precision_rounds_the_same_values(groups):
    full = weights(LLAMA, groups)
    for name, tensor in weights(LLAMA, groups, dtype=torch.bfloat16).items():
        assert torch.equal(tensor, full[name].bfloat16()), name


def local_parts(groups, models):
    parallel = ParallelConfig(tensor=2)
    return [
        {
            name: (tensor_partition(p, groups.tp), p.detach())
            for name, p in build_initialized(model, groups, parallel=parallel).named_parameters()
        }
        for model in models
    ]


@pytest.mark.slow
def test_weights_do_not_depend_on_the_layout(groups):
    models = [*SHAPES.values(), WIDE]
    ranks = run_on_ranks(local_parts, 2, models, parallel=ParallelConfig(tensor=2))
    for rank, networks in enumerate(ranks):
        for model, parts in zip(models, networks, strict=True):
            whole = weights(model, groups)
            assert parts.keys() == whole.keys()
            for name, (split, part) in parts.items():
                assert split.rank == rank
                full = whole[name]
                assert torch.equal(part, split.local_part(full)), name
            assert parts["layers.0.mlp.linear_fc1.weight"][1].numel() * 2 == (
                whole["layers.0.mlp.linear_fc1.weight"].numel()
            )
