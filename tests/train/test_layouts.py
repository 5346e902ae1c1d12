"""Parallelism changes only speed and memory: the curve of every layout is that of one process."""

from dataclasses import replace
from pathlib import Path

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import CheckpointConfig, ModelConfig, OptimConfig, Recipe, TrainConfig
from armd_scale.order.policies import Progressive, RandomPermutation, Strided
from tests.support.cli import VOCAB, write_text
from tests.support.layouts import LAYOUTS, Layout, checkpoints_of, curves
from tests.support.networks import build
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow(minutes=5)

# Four layers, two of them two-stream, so that four stages and two interleaved ones split them in
# every way; and every kind of parameter that some layout treats specially.
MODEL = ModelConfig(
    layers=4, hidden=32, ffn_hidden=48, heads=4, kv_heads=2, vocab_size=VOCAB, two_stream_layers=2,
    qk_norm="projection", attention_bias=True, attention_output_bias=True, mlp_bias=True,
    query="anchor+prefix",
)  # fmt: skip
ORDERS = {
    # One stream for left to right, then two: the number of rows changes during the run.
    "progressive": Progressive(ar_steps=2, ramp_end=5, rho=8),
    "strided": Strided(streams=(1, 2, 4), joint=True),
    "random": RandomPermutation(),
}
DROPOUT = 0.1
Case = tuple[str, bool, float]
CASES: list[Case] = [
    # Dropout must be the same on every layout, with one stream and with two.
    ("progressive", True, DROPOUT),
    ("progressive", False, 0.0),
    ("strided", True, 0.0),
    ("random", False, 0.0),
]
# What layouts of four ranks run of these: they combine what layouts of two ranks do.
CASES_OF_FOUR_RANKS = (CASES[0], CASES[-1])
NUM_STEPS = 6


@pytest.fixture(scope="module")
def recipes(
    tmp_path_factory: pytest.TempPathFactory, groups: ProcessGroupCollection
) -> dict[Case, Recipe]:
    """A recipe for each case; cases that tie embeddings alike start from the same checkpoint."""
    folder = tmp_path_factory.mktemp("layouts")
    text = write_text(folder / "text")
    train = TrainConfig(steps=40, micro_batch=1, global_batch=4, precision="fp32")
    optim = OptimConfig(warmup_steps=2, schedule="constant", lr=3e-3)
    base = bend(
        SMALL_RESOLVED,
        {
            "data.train": text,
            "data.valid": None,
            "data.seq_length": 16,
            "train": train,
            "optim": optim,
            "checkpoint": CheckpointConfig(every_steps=1000),
        },
    )
    recipes = {}
    for order, tied, dropout in CASES:
        query, qk_norm = ("anchor", "head") if tied else (MODEL.query, MODEL.qk_norm)
        model = replace(MODEL, tie_embeddings=tied, query=query, qk_norm=qk_norm)
        start = folder / f"start {tied}"
        recipe = bend(
            base,
            {
                "model": resolve_model(model, max_positions=17),
                "eval.every_steps": 0,
                "data.workers": 0,
            },
        )
        if not start.exists():
            CheckpointSave(
                start, step=0, network=build(model, groups, max_positions=17), recipe=recipe,
                state={}, optimizer={}, tokenizer={},
            ).wait()  # fmt: skip
        model = replace(model, init_from=str(start), dropout=dropout)
        run = replace(recipe.run, folder=str(folder / f"{order} {tied} {dropout}"))
        recipes[order, tied, dropout] = bend(
            recipe,
            {
                "model": resolve_model(model, max_positions=17),
                "order": ORDERS[order],
                "run": run,
            },
        )
    return recipes


def on(layout: Layout, recipe: Recipe) -> Recipe:
    optim = replace(recipe.optim, zero_stage=layout.zero_stage)
    return replace(recipe, parallel=layout.parallel, optim=optim)


def run(layout: Layout, recipes: list[Recipe], *arguments: object) -> list:
    """The curves of the recipes on a layout, which must be equal on all ranks."""
    recipes = [on(layout, recipe) for recipe in recipes]
    by_rank = run_on_ranks(curves, layout.size, recipes, *arguments, parallel=layout.parallel)
    assert all(rank_curves == by_rank[0] for rank_curves in by_rank)
    return by_rank[0]


@pytest.fixture(scope="module")
def one_process(recipes: dict[Case, Recipe]) -> dict[Case, list]:
    curves = run(LAYOUTS["1"], list(recipes.values()), NUM_STEPS, None, False)
    return dict(zip(recipes, curves, strict=True))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "1"])
def test_every_layout_has_the_curve_of_one_process(
    recipes: dict[Case, Recipe], one_process: dict[Case, list], name: str
) -> None:
    layout = LAYOUTS[name]
    cases = CASES if layout.size < 4 else CASES_OF_FOUR_RANKS
    # The runs of `saved` check shapes, on five layouts.
    layout_curves = run(layout, [recipes[case] for case in cases], NUM_STEPS, None, False)
    for case, curve in zip(cases, layout_curves, strict=True):
        for step, (values, expected) in enumerate(zip(curve, one_process[case], strict=True)):
            assert values == pytest.approx(expected, rel=1e-5), (case, step)


RESUMED = ["1", "TP2+SP", "PP2 interleaved", "DP2 Z3", "TP2xPP2"]


@pytest.fixture(scope="module")
def resumable(recipes: dict[Case, Recipe]) -> Recipe:
    return bend(recipes["strided", True, 0.0], {"model.dropout": DROPOUT})


@pytest.fixture(scope="module")
def saved(resumable: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """For each layout a checkpoint after step 2, and the steps that followed without a resume."""
    saved = {}
    for name in RESUMED:
        folder = str(tmp_path_factory.mktemp("saved"))
        recipe = bend(resumable, {"run.folder": folder})
        (curve,) = run(LAYOUTS[name], [recipe], 5, 2)
        saved[name] = (checkpoints_of(recipe), curve[2:])
    return saved


@pytest.mark.parametrize("resumed", RESUMED)
@pytest.mark.parametrize("writer", RESUMED)
def test_a_checkpoint_of_any_layout_resumes_on_any_other(
    resumable: Recipe,
    saved: dict[str, tuple[Path, list]],
    tmp_path: Path,
    writer: str,
    resumed: str,
) -> None:
    checkpoints, uninterrupted = saved[writer]
    changes = {"run.folder": str(tmp_path), "checkpoint.resume": str(checkpoints)}
    (curve,) = run(LAYOUTS[resumed], [bend(resumable, changes)], 3, None, False)
    if writer == resumed:
        assert curve == uninterrupted
    for values, expected in zip(curve, uninterrupted, strict=True):
        assert values == pytest.approx(expected, rel=1e-5)
