"""Every rule broken once, its sentence read; and the limits just inside."""

from typing import Any

import pytest

from armd_scale.config.rules import bounds, data, distillation, optim
from armd_scale.config.rules import check as rules
from armd_scale.config.rules import layout as layout_rules
from armd_scale.config.rules import model as model_rules
from armd_scale.config.rules import order as order_rules
from armd_scale.config.schema import BlendSource, DistillationConfig, RopeScaling
from armd_scale.errors import RecipeError
from armd_scale.order.policies import (
    Groups,
    LeftToRight,
    Mixture,
    MixtureComponent,
    OrderStage,
    Progressive,
    RandomPermutation,
    Stages,
    Strided,
)
from tests.support.recipes import SMALL, bend


def scaling(**changes: Any) -> RopeScaling:
    llama = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return RopeScaling(**{**llama, **changes})


YARN = RopeScaling(
    rope_type="yarn",
    factor=8.0,
    beta_slow=1.0,
    beta_fast=32.0,
    original_max_position_embeddings=8192,
)
L2R, RANDOM = LeftToRight(), RandomPermutation()
LEARNED = {"model.position_embedding": "learned_absolute"}

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"train.steps": 0}, "train.steps must be >= 1 (got 0)"),
    ({"model.kv_heads": 0}, "model.kv_heads must be >= 1 (got 0)"),
    ({"model.heads": 0}, "model.heads must be >= 1 (got 0)"),
    ({"optim.lr": 0.0, "optim.min_lr": 0.0}, "optim.lr must be > 0 (got 0.0)"),
    ({"run.name": " "}, "run.name must not be blank (got ' ')"),
    ({"checkpoint.resume": ""}, "checkpoint.resume must not be blank (got '')"),
    ({"data.train": ()}, "data.train must name at least one source (got [])"),
    (
        {"data.train": (BlendSource(path="a", weight=0.0),)},
        "data.train.0.weight must be > 0 (got 0.0)",
    ),
    ({"model.kv_heads": 3}, "model.heads must be a multiple of model.kv_heads = 3 (got 4)"),
    ({"model.dropout": 1.0}, "model.dropout must be >= 0 and < 1 (got 1.0)"),
    ({"model.dropout": -0.1}, "model.dropout must be >= 0 and < 1 (got -0.1)"),
    ({"model.hidden": 30}, "model.hidden must be a multiple of model.heads = 4 (got 30)"),
    ({"model.head_dim": 5}, "model.head_dim must be even with rotary positions (got 5)"),
    ({"model.hidden": 36}, "model.head_dim must be even with rotary positions (got 9)"),
    (
        {"model.rope_scaling": scaling(), **LEARNED},
        "model.position_embedding must be rope when model.rope_scaling is set",
    ),
    (
        {"model.partial_rotary_factor": 0.5, **LEARNED},
        "model.position_embedding must be rope when model.partial_rotary_factor is set",
    ),
    (
        {"model.partial_rotary_factor": 0.0},
        "model.partial_rotary_factor must be > 0 and <= 1 (got 0.0)",
    ),
    (
        {"model.partial_rotary_factor": 1.5},
        "model.partial_rotary_factor must be > 0 and <= 1 (got 1.5)",
    ),
    (
        {"model.partial_rotary_factor": 0.4},
        "model.partial_rotary_factor must rotate an even number of a head's 8 channels (got 0.4)",
    ),
    (
        {"model.partial_rotary_factor": 0.1},
        "model.partial_rotary_factor must rotate an even number of a head's 8 channels (got 0.1)",
    ),
    (
        {"model.qk_norm": "projection", "model.norm": "layernorm"},
        "model.norm must be rmsnorm when model.qk_norm is projection (got 'layernorm')",
    ),
    (
        {"model.rope_scaling": scaling(high_freq_factor=None)},
        "model.rope_scaling.high_freq_factor must be set for rope_type llama3 (got null)",
    ),
    (
        {
            "model.rope_scaling": RopeScaling(
                rope_type="yarn", factor=8.0, beta_slow=1.0, beta_fast=32.0
            )
        },
        "model.rope_scaling.original_max_position_embeddings must be set for rope_type yarn",
    ),
    (
        {"model.rope_scaling": scaling(rope_type="linear")},
        "model.rope_scaling.low_freq_factor must be null for rope_type linear (got 1.0)",
    ),
    (
        {"model.rope_scaling": scaling(factor=0.5)},
        "model.rope_scaling.factor must be >= 1 (got 0.5)",
    ),
    (
        {"model.rope_scaling": scaling(low_freq_factor=4.0)},
        "model.rope_scaling.low_freq_factor must be between 0 and high_freq_factor",
    ),
    (
        {"model.rope_scaling": scaling(original_max_position_embeddings=0)},
        "model.rope_scaling.original_max_position_embeddings must be >= 1 (got 0)",
    ),
    (
        {"model.two_stream_layers": 5},
        "model.two_stream_layers must be between 0 and model.layers = 4 (got 5)",
    ),
    (
        {"model.two_stream_layers": 0, "model.query": "prefix"},
        "model.query must be anchor when model.two_stream_layers is 0 (got 'prefix')",
    ),
    (
        {"model.max_positions": 64, **LEARNED},
        "model.max_positions must be >= data.seq_length + 1 = 65 (got 64)",
    ),
    (
        {"model.max_positions": 64, "model.query": "anchor+prefix"},
        "model.max_positions must be >= data.seq_length + 1 = 65 (got 64)",
    ),
    (
        {"model.max_positions": 64},
        "model.max_positions must be >= data.seq_length + 1 = 65 (got 64)",
    ),
    ({"parallel.tensor": 8}, "model.heads must be a multiple of parallel.tensor = 8 (got 4)"),
    ({"parallel.tensor": 4}, "model.kv_heads must be a multiple of parallel.tensor = 4 (got 2)"),
    (
        {"parallel.tensor": 2, "model.ffn_hidden": 65},
        "model.ffn_hidden must be a multiple of parallel.tensor = 2 (got 65)",
    ),
    (
        {"parallel.sequence": True},
        "parallel.tensor must be > 1 with parallel.sequence (got 1)",
    ),
    (
        {"parallel.sequence": True, "parallel.tensor": 2, "data.seq_length": 65},
        "data.seq_length must be a multiple of parallel.tensor = 2 with parallel.sequence (got 65)",
    ),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 3},
        "model.layers must be >= parallel.pipeline x parallel.virtual_pipeline = 6 (got 4)",
    ),
    (
        {"parallel.virtual_pipeline": 2},
        "parallel.virtual_pipeline must be 1 when parallel.pipeline is 1 (got 2)",
    ),
    ({"parallel.context": 2}, "parallel.context must be 1, because splitting one sample"),
    (
        {"parallel.pipeline": 2, "optim.zero_stage": 3},
        "optim.zero_stage must be <= 2 with parallel.pipeline = 2 (got 3)",
    ),
    (
        {"optim.zero_stage": 0, "train.precision": "bf16"},
        "train.precision must be fp32 with optim.zero_stage = 0 (got 'bf16')",
    ),
    (
        {"optim.zero_stage": 0, "optim.offload": "optimizer"},
        "optim.offload must be none with optim.zero_stage = 0 (got 'optimizer')",
    ),
    ({"optim.min_lr": 1e-3}, "optim.min_lr must be <= optim.lr = 0.0003 (got 0.001)"),
    ({"optim.warmup_steps": 100}, "optim.warmup_steps must be < train.steps = 100 (got 100)"),
    (
        {"optim.decay_steps": 5},
        "optim.decay_steps must be null unless optim.schedule is wsd (got 5)",
    ),
    (
        {"optim.schedule": "wsd", "optim.decay_steps": 91},
        "optim.decay_steps must be between 1 and train.steps - optim.warmup_steps = 90 (got 91)",
    ),
    (
        {"optim.schedule": "wsd", "optim.warmup_steps": 91},
        "optim.decay_steps must be between 1 and train.steps - optim.warmup_steps = 9 (got 10)",
    ),
    ({"optim.betas": (0.9, 1.0)}, "optim.betas.1 must be >= 0 and < 1 (got 1.0)"),
    ({"optim.ema_decay": 1.0}, "optim.ema_decay must be > 0 and < 1 (got 1.0)"),
    ({"optim.ema_decay": 0.0}, "optim.ema_decay must be > 0 and < 1 (got 0.0)"),
    (
        {"train.micro_batch": 3},
        "train.global_batch must be a multiple of train.micro_batch = 3 (got 16)",
    ),
    (
        {"data.valid": None},
        "data.valid must name the validation data while eval.every_steps is > 0 (got null)",
    ),
    (
        {"eval.orders": ()},
        "eval.orders must name at least one order while eval.every_steps is > 0 (got [])",
    ),
]

TEACHER = DistillationConfig(checkpoint="a", weight=1.0)
BROKEN_TEACHERS: list[tuple[dict[str, Any], str]] = [
    (
        {"train.distillation": DistillationConfig(checkpoint=" ", weight=1.0)},
        "train.distillation.checkpoint must not be blank (got ' ')",
    ),
    (
        {"train.distillation": DistillationConfig(checkpoint="a", weight=-0.5)},
        "train.distillation.weight must be >= 0 (got -0.5)",
    ),
    (
        {"train.distillation": TEACHER, "parallel.pipeline": 2},
        "parallel.pipeline must be 1 with train.distillation, because the teacher runs",
    ),
    *(
        (
            {"train.distillation": TEACHER, "order": order},
            "order.policy must draw some samples left to right with train.distillation "
            f"(got '{name}')",
        )
        for name, order in {
            "random": RANDOM,
            "strided": Strided(streams=(2, 4)),
            "groups": Groups(sizes=(2,)),
            "progressive": Progressive(ar_steps=0, ramp_end=2, rho=3),
            "mixture": Mixture(components=(MixtureComponent(weight=1.0, order=RANDOM),)),
        }.items()
    ),
]

INSIDE: list[dict[str, Any]] = [
    {},
    {"model.hidden": 30, "model.head_dim": 6},
    {"model.head_dim": 5, **LEARNED},
    {"model.two_stream_layers": 0},
    {"model.two_stream_layers": 4, "order": Strided(streams=(1, 64))},
    {"model.max_positions": 65, **LEARNED},
    {"model.max_positions": 65},
    {"model.rope_scaling": scaling()},
    {"model.rope_scaling": YARN},
    {"model.rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
    {"model.partial_rotary_factor": 0.5},
    {"model.head_dim": 6, "model.partial_rotary_factor": 0.7},
    {"parallel.tensor": 2, "parallel.sequence": True, "optim.zero_stage": 3},
    {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2, "optim.zero_stage": 2},
    {"optim.zero_stage": 0},
    {"optim.schedule": "wsd", "optim.decay_steps": 90},
    {"optim.warmup_steps": 0, "optim.min_lr": 3e-4, "optim.clip_grad": 0.0},
    {"data.valid": None, "eval.every_steps": 0, "eval.orders": ()},
    {"order": Progressive(ar_steps=0, ramp_end=0, rho=64)},
    {"train.distillation": TEACHER, "optim.zero_stage": 3},
    {
        "train.distillation": DistillationConfig(checkpoint="a", weight=0.0),
        "order": Strided(),
    },
    {
        "train.distillation": TEACHER,
        "order": Stages(
            stages=(
                OrderStage(until_step=5, order=RANDOM),
                OrderStage(order=Mixture(components=(MixtureComponent(weight=1.0, order=L2R),))),
            )
        ),
    },
]

BROKEN_WORLDS: list[tuple[dict[str, Any], int, str]] = [
    (
        {"parallel.tensor": 2, "parallel.pipeline": 2},
        6,
        "processes must be a multiple of parallel.tensor x pipeline x context = 4 (got 6)",
    ),
    ({"parallel.tensor": 2}, 1, "the number of processes must be a multiple of parallel.tensor"),
    (
        {},
        3,
        "train.global_batch must be a multiple of 6 (train.micro_batch x 3 processes) (got 16)",
    ),
    ({}, 16, "train.global_batch must be a multiple of 32 (train.micro_batch x 16 processes)"),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2},
        16,
        "must be a multiple of parallel.pipeline = 2 when interleaved (got 1)",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), BROKEN + BROKEN_TEACHERS)
def test_a_broken_rule_says_so(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rules.check(bend(SMALL, changes))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", INSIDE)
def test_what_just_holds_is_let_through(changes: dict[str, Any]) -> None:
    rules.check(bend(SMALL, changes))


@pytest.mark.parametrize(("changes", "world_size", "sentence"), BROKEN_WORLDS)
def test_a_world_that_does_not_fit_says_so(
    changes: dict[str, Any], world_size: int, sentence: str
) -> None:
    recipe = bend(SMALL, changes)
    rules.check(recipe)
    with pytest.raises(RecipeError) as caught:
        rules.check_world(recipe, world_size)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_worlds_that_share_the_batch_equally_fit(world_size: int) -> None:
    rules.check_world(SMALL, world_size)


def test_every_rule_is_applied() -> None:
    world_rules = layout_rules.WORLD_RULES
    for module in (bounds, data, optim, model_rules, layout_rules, distillation, order_rules):
        written = [
            value
            for name, value in vars(module).items()
            if name.startswith("check_") and value.__module__ == module.__name__
        ]
        assert written
        assert [
            r for r in (*rules.RULES, *world_rules) if r.__module__ == module.__name__
        ] == written
