"""Counted FLOPs against torch's count of the operations that run."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from armd_scale.bench.suites.step import mean_loss_spec
from armd_scale.config import derived, flops
from armd_scale.config.resolve import ResolvedRecipe, resolve_model
from armd_scale.config.schema import ModelConfig
from armd_scale.order.policies import LeftToRight, OrderStage, Progressive, Stages, Strided
from armd_scale.plan import compute
from armd_scale.train.build import build_model
from tests.plan.measure import batch_of
from tests.support.recipes import SMALL_RESOLVED, bend

MODEL = resolve_model(
    ModelConfig(
        layers=4,
        hidden=64,
        ffn_hidden=160,
        heads=4,
        kv_heads=2,
        vocab_size=101,
        two_stream_layers=2,
    )
)
RECIPE = bend(SMALL_RESOLVED, {"model": MODEL, "data.seq_length": 64, "train.micro_batch": 2})
ATEN = torch.ops.aten
# What torch's counter leaves out: the flash kernels of the CPU, which visit all keys, and the
# in-place matrix product.
EXTRA_FORMULAS = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
    ATEN.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],  # shapes
}


def measured_flops(recipe: ResolvedRecipe, order: str, groups) -> float:
    """FLOPs of forward and backward per target, by torch's counter."""
    network = build_model(recipe, None, groups=groups, device=torch.device("cpu"))
    batch = batch_of(recipe, order)
    with FlopCounterMode(display=False, custom_mapping=EXTRA_FORMULAS) as counter:
        loss, _ = network(batch, loss_spec=mean_loss_spec(batch))
        loss.backward()
    return counter.get_total_flops() / (recipe.data.seq_length * recipe.train.micro_batch)


CASES = {
    "one stream": ("l2r", {}),
    "random": ("random", {}),
    "random, attention recomputed": ("random", {"train.recompute": "selective"}),
    "random, layers recomputed": ("random", {"train.recompute": "full"}),
    "blocks with masks": ("strided:2", {"train.recompute": "selective"}),
    "one stream, layers recomputed": ("l2r", {"train.recompute": "full"}),
    "no two-stream layer": ("l2r", {"model.two_stream_layers": 0}),
    "one two-stream layer": ("random", {"model.two_stream_layers": 1}),
    "all layers two-stream": ("random", {"model.two_stream_layers": 4}),
    "prefix query, left to right": ("l2r", {"model.query": "prefix"}),
    "gelu and an untied head": (
        "random", {"model.activation": "gelu", "model.tie_embeddings": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_hardware_flops_agree_with_torchs_counter(name: str, groups) -> None:
    order, changes = CASES[name]
    recipe = bend(RECIPE, changes)
    one_stream = order == "l2r" and recipe.model.query == "anchor"
    counted = compute.hardware_flops_per_target(recipe, one_stream=one_stream, visited=1.0)
    assert counted == pytest.approx(measured_flops(recipe, order, groups), rel=0.02)


def test_logits_in_chunks_are_computed_only_once(groups, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured_flops(RECIPE, "random", groups)
    monkeypatch.setattr(derived, "MIN_ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(derived, "MAX_LOGITS_PER_CHUNK_CPU", 16 * 2 * 128)
    assert measured_flops(RECIPE, "random", groups) == whole


def test_hardware_flops_are_model_flops_plus_what_runs_twice() -> None:
    model = compute.model_flops_per_target(RECIPE, one_stream=False)
    none, selective, full = (
        compute.hardware_flops_per_target(bend(RECIPE, {"train.recompute": kind}), one_stream=False)
        for kind in ("none", "selective", "full")
    )
    # The scores of a flash kernel's backward pass, and the padding of the vocabulary.
    scores = 0.5 * 2 * 64 * 64 * 5
    assert none - model == scores + 3 * 2 * 64 * (128 - 101)
    assert none < selective < full
    assert full - none == sum(flops.layer_flops(RECIPE.model, 64))


def test_model_flops_of_one_stream_are_those_of_the_auto_regressive_model() -> None:
    plain = replace(RECIPE.model, two_stream_layers=0)
    one = compute.model_flops_per_target(RECIPE, one_stream=True)
    assert one == flops.model_flops_per_token(plain, 64, 101)
    assert one < compute.model_flops_per_target(RECIPE, one_stream=False)


def test_one_stream_steps_are_those_with_left_to_right_orders() -> None:
    curriculum = Stages(
        stages=(
            OrderStage(until_step=50, order=Progressive(ar_steps=10, ramp_end=50, rho=5)),
            OrderStage(until_step=75, order=LeftToRight()),
            OrderStage(order=Strided(streams=(1, 2))),
        )
    )
    recipe = bend(RECIPE, {"order": curriculum})  # of 100 steps
    # Ten steps left to right, ten in which one token is shuffled (with itself), and stage two.
    assert compute.one_stream_share(recipe) == pytest.approx(0.45)
    assert compute.one_stream_share(bend(recipe, {"model.query": "learned"})) == 0
    assert compute.one_stream_share(bend(recipe, {"model.two_stream_layers": 0})) == 1
