"""Every rule broken once, its sentence read; and the limits just inside."""

from typing import Any

import pytest

from armd_scale.config.rules import check as rules
from armd_scale.config.rules import distillation as parent_rules
from armd_scale.config.rules import layout as layout_rules
from armd_scale.config.rules import model as model_rules
from armd_scale.config.rules import order as order_rules
from armd_scale.config.schema import (
    BlendSource,
    DiffusionConfig,
    DistillationConfig,
    GroupsConfig,
    LeftToRightConfig,
    MixtureComponent,
    MixtureConfig,
    OrderConfig,
    OrderStage,
    PermutedGroupsConfig,
    ProgressiveConfig,
    RandomConfig,
    RopeScaling,
    StagesConfig,
    StridedConfig,
)
from armd_scale.errors import RecipeError
from tests.support.recipes import SMALL, bend


def scaling(**changes: Any) -> RopeScaling:
    llama = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return RopeScaling(**{**llama, **changes})


L2R, RANDOM = LeftToRightConfig(), RandomConfig()
LEARNED = {"model.position_embedding": "learned_absolute"}

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"train.steps": 0}, "train.steps must be at least 1, got 0; raise it"),
    ({"model.kv_heads": 0}, "model.kv_heads must be at least 1, got 0"),
    ({"model.heads": 0}, "model.heads must be at least 1, got 0"),
    ({"optim.lr": 0.0, "optim.min_lr": 0.0}, "optim.lr must be above 0, got 0.0; raise it"),
    ({"run.name": " "}, "run.name must not be blank, got ' '; name it"),
    ({"checkpoint.resume": ""}, "checkpoint.resume must not be blank, got ''"),
    ({"data.train": ()}, "data.train must name at least one source, got []"),
    (
        {"data.train": (BlendSource(path="a", weight=0.0),)},
        "data.train.0.weight must be above 0, got 0.0; raise it or take the source out",
    ),
    ({"model.kv_heads": 3}, "model.heads must be a multiple of model.kv_heads (3), got 4"),
    ({"model.dropout": 1.0}, "model.dropout must be at least 0 and below 1, got 1.0; try 0.1"),
    ({"model.dropout": -0.1}, "model.dropout must be at least 0 and below 1, got -0.1"),
    ({"model.hidden": 30}, "model.hidden must be a multiple of model.heads (4), got 30"),
    ({"model.head_dim": 5}, "model.head_dim must be even with rotary positions, got 5"),
    ({"model.hidden": 36}, "model.head_dim must be even with rotary positions, got 9"),
    (
        {"model.rope_scaling": scaling(), **LEARNED},
        "model.position_embedding must be rotary when model.rope_scaling is given, got 'learned'",
    ),
    (
        {"model.partial_rotary_factor": 0.5, **LEARNED},
        "model.position_embedding must be rotary when model.partial_rotary_factor is given, got 'learned'",
    ),
    (
        {"model.partial_rotary_factor": 0.0},
        "model.partial_rotary_factor must lie above 0, at most 1, got 0.0",
    ),
    (
        {"model.partial_rotary_factor": 1.5},
        "model.partial_rotary_factor must lie above 0, at most 1, got 1.5",
    ),
    (
        {"model.partial_rotary_factor": 0.4},
        "model.partial_rotary_factor must turn an even number of a head's 8 channels, got 0.4",
    ),
    (
        {"model.partial_rotary_factor": 0.1},
        "model.partial_rotary_factor must turn an even number of a head's 8 channels, got 0.1",
    ),
    (
        {"model.qk_norm": "projection", "model.norm": "layernorm"},
        "model.norm must be rmsnorm when model.qk_norm is projection, got 'layernorm'",
    ),
    (
        {"model.rope_scaling": scaling(high_freq_factor=None)},
        "model.rope_scaling.high_freq_factor must be given for kind llama3, got null",
    ),
    (
        {"model.rope_scaling": scaling(rope_type="yarn", original_max_position_embeddings=None)},
        "model.rope_scaling.original_max_position_embeddings must be given for kind yarn, got null",
    ),
    (
        {"model.rope_scaling": scaling(rope_type="linear")},
        "model.rope_scaling.low_freq_factor must be null for kind linear, got 1.0",
    ),
    (
        {"model.rope_scaling": scaling(factor=0.5)},
        "model.rope_scaling.factor must be at least 1, got 0.5",
    ),
    (
        {"model.rope_scaling": scaling(low_freq_factor=4.0)},
        "model.rope_scaling.low_freq_factor must lie between 0 and high_freq_factor",
    ),
    (
        {"model.rope_scaling": scaling(original_max_position_embeddings=0)},
        "model.rope_scaling.original_max_position_embeddings must be at least 1, got 0",
    ),
    (
        {"model.two_stream_layers": 5},
        "model.two_stream_layers must lie between 0 and model.layers (4), got 5",
    ),
    (
        {"model.two_stream_layers": 0, "model.query": "prefix"},
        "model.query must be anchor when model.two_stream_layers is 0, got 'prefix'",
    ),
    (
        {"model.max_positions": 64, **LEARNED},
        "model.max_positions must be at least data.seq_length + 1 (65), got 64",
    ),
    (
        {"model.max_positions": 64, "model.query": "anchor+prefix"},
        "model.max_positions must be at least data.seq_length + 1 (65), got 64",
    ),
    ({"parallel.tensor": 8}, "model.heads must be a multiple of parallel.tensor (8), got 4"),
    ({"parallel.tensor": 4}, "model.kv_heads must be a multiple of parallel.tensor (4), got 2"),
    (
        {"parallel.tensor": 2, "model.ffn_hidden": 65},
        "model.ffn_hidden must be a multiple of parallel.tensor (2), got 65",
    ),
    (
        {"parallel.sequence": True},
        "parallel.tensor must be above 1 for parallel.sequence, got 1; raise it or set",
    ),
    (
        {"parallel.sequence": True, "parallel.tensor": 2, "data.seq_length": 65},
        "data.seq_length must be a multiple of parallel.tensor (2) for parallel.sequence, got 65",
    ),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 3},
        "model.layers must be at least parallel.pipeline x parallel.virtual_pipeline (6), got 4",
    ),
    (
        {"parallel.virtual_pipeline": 2},
        "parallel.virtual_pipeline must be 1 without a pipeline (parallel.pipeline is 1), got 2",
    ),
    ({"parallel.context": 2}, "parallel.context must be 1, because one sample cannot be shared"),
    (
        {"parallel.pipeline": 2, "optim.zero_stage": 3},
        "optim.zero_stage must be at most 2 with a pipeline (parallel.pipeline is 2), got 3",
    ),
    (
        {"optim.zero_stage": 0, "train.precision": "bf16"},
        "train.precision must be fp32 with optim.zero_stage 0, got 'bf16'",
    ),
    (
        {"optim.zero_stage": 0, "optim.offload": "optimizer"},
        "optim.offload must be none with optim.zero_stage 0, got 'optimizer'",
    ),
    ({"optim.min_lr": 1e-3}, "optim.min_lr must be at most optim.lr (0.0003), got 0.001"),
    ({"optim.warmup_steps": 100}, "optim.warmup_steps must be below train.steps (100), got 100"),
    (
        {"optim.decay_steps": 5},
        "optim.decay_steps must be null unless optim.schedule is wsd, got 5; leave it out",
    ),
    (
        {"optim.schedule": "wsd", "optim.decay_steps": 91},
        "optim.decay_steps must be at most train.steps - optim.warmup_steps (90), got 91",
    ),
    (
        {"optim.schedule": "wsd", "optim.warmup_steps": 91},
        "optim.decay_steps must be at most train.steps - optim.warmup_steps (9), got 10",
    ),
    ({"optim.betas": (0.9, 1.0)}, "optim.betas.1 must lie between 0 and 1, got 1.0"),
    ({"optim.ema_decay": 1.0}, "optim.ema_decay must lie between 0 and 1, got 1.0"),
    ({"optim.ema_decay": 0.0}, "optim.ema_decay must lie between 0 and 1, got 0.0"),
    (
        {"train.micro_batch": 3},
        "train.global_batch must be a multiple of train.micro_batch (3), got 16",
    ),
    ({"data.valid": None}, "data.valid must name held-out shards to evaluate on, got null"),
    ({"eval.orders": ()}, "eval.orders must name an order to evaluate under, got []"),
]

PARENT = DistillationConfig(checkpoint="a", weight=1.0)
BROKEN_PARENTS: list[tuple[dict[str, Any], str]] = [
    (
        {"train.distillation": DistillationConfig(checkpoint=" ", weight=1.0)},
        "train.distillation.checkpoint must not be blank, got ' '; name a checkpoint, or leave",
    ),
    (
        {"train.distillation": DistillationConfig(checkpoint="a", weight=-0.5)},
        "train.distillation.weight must be at least 0, got -0.5; raise it",
    ),
    (
        {"train.distillation": PARENT, "parallel.pipeline": 2},
        "parallel.pipeline must be 1 with train.distillation, because the parent runs where the loss",
    ),
    *(
        (
            {"train.distillation": PARENT, "order": order},
            f"order.policy must draw some samples left to right with train.distillation, got '{name}'",
        )
        for name, order in {
            "random": RANDOM,
            "strided": StridedConfig(streams=(2, 4)),
            "groups": GroupsConfig(sizes=(2,)),
            "progressive": ProgressiveConfig(ar_steps=0, ramp_end=2, rho=3),
            "mixture": MixtureConfig(components=(MixtureComponent(weight=1.0, order=RANDOM),)),
        }.items()
    ),
]

BROKEN_ORDERS: list[tuple[OrderConfig, str]] = [
    (
        ProgressiveConfig(ar_steps=-1, ramp_end=2, rho=3),
        "order.ar_steps must be at least 0, got -1",
    ),
    (
        ProgressiveConfig(ar_steps=3, ramp_end=2, rho=3),
        "order.ar_steps must be at most ramp_end (2), got 3",
    ),
    (
        ProgressiveConfig(ar_steps=1, ramp_end=2, rho=65),
        "order.rho must lie between 1 and data.seq_length (64), got 65",
    ),
    (StridedConfig(streams=()), "order.streams must hold at least one number, got []; add one"),
    (
        StridedConfig(streams=(1, 65)),
        "order.streams.1 must lie between 1 and data.seq_length (64), got 65",
    ),
    (GroupsConfig(sizes=(0,)), "order.sizes.0 must lie between 1 and data.seq_length (64), got 0"),
    (GroupsConfig(sizes=(1,), ramp_end=-1), "order.ramp_end must be at least 0, got -1"),
    (PermutedGroupsConfig(sizes=()), "order.sizes must hold at least one number, got []"),
    (DiffusionConfig(num_timesteps=0), "order.times must be at least 1, got 0"),
    (MixtureConfig(components=()), "order.parts must hold at least one order, got []"),
    (
        MixtureConfig(components=(MixtureComponent(weight=0.0, order=L2R),)),
        "order.parts.0.weight must be above 0, got 0.0",
    ),
    (StagesConfig(stages=()), "order.parts must hold at least one order, got []"),
    (
        StagesConfig(stages=(OrderStage(until_step=5, order=L2R),)),
        "order.parts.0.until must be left out in the last stage, got 5; remove it",
    ),
    (
        StagesConfig(stages=(OrderStage(order=L2R), OrderStage(order=L2R))),
        "order.parts.0.until must be a step after 0, got null; stages end one after another",
    ),
    (
        StagesConfig(
            stages=(
                OrderStage(until_step=5, order=L2R),
                OrderStage(until_step=5, order=L2R),
                OrderStage(order=L2R),
            )
        ),
        "order.parts.1.until must be a step after 5, got 5",
    ),
    (
        StagesConfig(
            stages=(
                OrderStage(until_step=5, order=L2R),
                OrderStage(
                    order=MixtureConfig(
                        components=(
                            MixtureComponent(weight=1.0, order=DiffusionConfig(num_timesteps=0)),
                        )
                    )
                ),
            )
        ),
        "order.parts.1.parts.0.times must be at least 1, got 0",
    ),
]

INSIDE: list[dict[str, Any]] = [
    {},
    {"model.hidden": 30, "model.head_dim": 6},
    {"model.head_dim": 5, **LEARNED},
    {"model.two_stream_layers": 0},
    {"model.two_stream_layers": 4, "order": StridedConfig(streams=(1, 64))},
    {"model.max_positions": 65, **LEARNED},
    {"model.max_positions": 8},
    {"model.rope_scaling": scaling()},
    {"model.rope_scaling": scaling(rope_type="yarn")},
    {"model.rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
    {"model.partial_rotary_factor": 0.5},
    {"model.head_dim": 6, "model.partial_rotary_factor": 0.7},
    {"parallel.tensor": 2, "parallel.sequence": True, "optim.zero_stage": 3},
    {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2, "optim.zero_stage": 2},
    {"optim.zero_stage": 0},
    {"optim.schedule": "wsd", "optim.decay_steps": 90},
    {"optim.warmup_steps": 0, "optim.min_lr": 3e-4, "optim.clip_grad": 0.0},
    {"data.valid": None, "eval.every_steps": 0, "eval.orders": ()},
    {"order": ProgressiveConfig(ar_steps=0, ramp_end=0, rho=64)},
    {"train.distillation": PARENT, "optim.zero_stage": 3},
    {
        "train.distillation": DistillationConfig(checkpoint="a", weight=0.0),
        "order": StridedConfig(),
    },
    {
        "train.distillation": PARENT,
        "order": StagesConfig(
            stages=(
                OrderStage(until_step=5, order=RANDOM),
                OrderStage(
                    order=MixtureConfig(components=(MixtureComponent(weight=1.0, order=L2R),))
                ),
            )
        ),
    },
]

BROKEN_WORLDS: list[tuple[dict[str, Any], int, str]] = [
    (
        {"parallel.tensor": 2, "parallel.pipeline": 2},
        6,
        "processes must be a multiple of parallel.tensor x pipeline x context (4), got 6",
    ),
    ({"parallel.tensor": 2}, 1, "the number of processes must be a multiple of parallel.tensor"),
    ({}, 3, "train.global_batch must be a multiple of 6 (train.micro_batch x 3 processes), got 16"),
    ({}, 16, "train.global_batch must be a multiple of 32 (train.micro_batch x 16 processes)"),
    (
        {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2},
        16,
        "must be a multiple of parallel.pipeline (2) when interleaved, got 1",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), BROKEN + BROKEN_PARENTS)
def test_a_broken_rule_says_so(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rules.check(bend(SMALL, changes))
    assert str(caught.value).startswith(sentence)
    assert "; " in str(caught.value)


@pytest.mark.parametrize(("order", "sentence"), BROKEN_ORDERS)
def test_a_broken_order_says_so(order: OrderConfig, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        rules.check(bend(SMALL, {"order": order}))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("changes", INSIDE)
def test_what_just_holds_is_let_through(changes: dict[str, Any]) -> None:
    rules.check(bend(SMALL, changes))


@pytest.mark.parametrize("order", [RANDOM, GroupsConfig(sizes=(2,)), StridedConfig()])
def test_a_plain_stack_takes_no_other_order_than_l2r(order: OrderConfig) -> None:
    plain = bend(SMALL, {"model.two_stream_layers": 0})
    staged = StagesConfig(stages=(OrderStage(until_step=5, order=L2R), OrderStage(order=order)))
    for path, whole in (("order", order), ("order.parts.1", staged)):
        with pytest.raises(RecipeError, match=f"^{path}.policy must be l2r when"):
            rules.check(bend(plain, {"order": whole}))


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
    for module, applied in (
        (rules, rules.RULES),
        (model_rules, model_rules.MODEL_RULES),
        (model_rules, model_rules.MODEL_RULES),
        (layout_rules, layout_rules.LAYOUT_RULES + layout_rules.WORLD_RULES),
        (order_rules, order_rules.RULES),
        (parent_rules, parent_rules.PARENT_RULES),
    ):
        written = [
            value
            for name, value in vars(module).items()
            if callable(value) and value.__module__ == module.__name__
            if not name.startswith(("_", "check"))
        ]
        assert list(applied) == written
