"""Distillation: the KL term, its gradient, and that both are the same on every layout."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config import derived as derive
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import DistillationConfig, OptimConfig, TrainConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.data.sample_stream import collate
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.loss_spec import LossSpec
from armd_scale.order.policies import Strided
from armd_scale.train.data import open_samples
from armd_scale.train.teacher import Teacher, open_teacher
from tests.support.cli import VOCAB, tiny_recipe, train, write_text
from tests.support.layouts import LAYOUTS, Layout, curves
from tests.support.networks import LLAMA, QWEN3, batch_of, build
from tests.support.recipes import bend
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows

pytestmark = pytest.mark.slow

DOCUMENTS = (7, 1, 5)
MODEL = dataclasses.replace(LLAMA, vocab_size=VOCAB)


def mixed(*orders: str, lengths: tuple[int, ...] = DOCUMENTS) -> ArmdBatch:
    """A batch with one sample per order."""
    drawn = [draw_windows(order, lengths, count=1, seed=i) for i, order in enumerate(orders)]
    tokens, block = (
        torch.cat([torch.from_numpy(getattr(w, name)) for w in drawn]).numpy()
        for name in ("tokens", "block")
    )
    return batch_of(tokens, block, [lengths] * len(drawn))


def dense_kl(teacher: ArmdModel, student: ArmdModel, batch: ArmdBatch) -> torch.Tensor:
    """KL(teacher || student) of every row, from the full logits of both."""
    log_q, log_p = (n.logits(batch).log_softmax(-1) for n in (student, teacher))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def gradients(network: ArmdModel, loss: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("lengths", [DOCUMENTS, (13,)])
def test_left_to_right_samples_are_selected(lengths: tuple[int, ...]) -> None:
    batch = mixed("l2r", "strided-ar:2", "strided:1", "groups:2", lengths=lengths)
    sample_mask, subset = batch.left_to_right_subset()
    assert sample_mask.tolist() == [True, False, True, False]
    expected = mixed("l2r", "l2r", lengths=lengths)
    assert subset.is_left_to_right == expected.is_left_to_right
    assert subset.is_plain_causal == expected.is_plain_causal
    assert torch.equal(subset.query.stop, expected.query.stop)
    assert torch.equal(subset.tokens, batch.tokens[[0, 2]])


@pytest.mark.parametrize("logits_per_chunk", [1 << 26, 101 * 9])
@pytest.mark.parametrize("teacher_model", [LLAMA, QWEN3], ids=["same shape", "another shape"])
def test_the_kl_term_equals_that_of_the_full_logits(
    groups: ProcessGroupCollection,
    monkeypatch: pytest.MonkeyPatch,
    teacher_model: Any,
    logits_per_chunk: int,
) -> None:
    monkeypatch.setattr(derive, "MIN_ROWS_PER_CHUNK", 1)
    monkeypatch.setattr(derive, "MAX_LOGITS_PER_CHUNK_CPU", logits_per_chunk)
    teacher = build(teacher_model, groups, dtype=torch.float64, seed=5)
    network = build(LLAMA, groups, dtype=torch.float64)
    batch = mixed("strided:2", "l2r", "random")
    weights = torch.stack((torch.zeros_like(batch.is_target), batch.is_target)).double()
    loss, nats = network(batch, LossSpec(weights, Teacher(teacher, 1.0).reference(batch)))
    torch.testing.assert_close(nats[0], network(batch).detach(), atol=1e-13, rtol=1e-13)
    target = batch.is_target[1]
    expected = dense_kl(teacher, network, mixed("l2r", "l2r"))[1]
    assert expected[target].min() > 1e-3
    torch.testing.assert_close(nats[1, 1][target], expected[target].detach(), atol=1e-12, rtol=0)
    assert not nats[1, [0, 2]].any()
    dense_gradients = gradients(network, expected[target].sum())
    for gradient, dense in zip(gradients(network, loss), dense_gradients, strict=True):
        torch.testing.assert_close(gradient, dense, atol=1e-11, rtol=0)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_the_teacher_runs_only_on_left_to_right_samples(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    rows: list[int] = []
    network.layers["0"].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    teacher = Teacher(network, 1.0)
    assert teacher.reference(mixed("strided-ar:2", "random")).rows.shape[1] == 0
    assert rows == []
    teacher.reference(mixed("l2r", "random", "l2r"))
    assert rows == [2]


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory, groups: ProcessGroupCollection
) -> ResolvedRecipe:
    """A third of the samples are left to right; the teacher is not what the run starts from."""
    folder = tmp_path_factory.mktemp("teacher")
    text = write_text(folder / "text")
    base = tiny_recipe(
        folder, text, order=Strided(streams=(1, 2, 4)), model=MODEL, data__valid=None,
        optim=OptimConfig(warmup_steps=1, schedule="constant", lr=3e-3),
        train=TrainConfig(steps=40, micro_batch=1, global_batch=4, precision="fp32"),
    )  # fmt: skip
    for name, seed in (("start", 0), ("teacher", 5)):
        CheckpointSave(
            folder / name, step=0, network=build(MODEL, groups, seed=seed, max_positions=17),
            recipe=base, state={}, optimizer={}, tokenizer={},
        ).wait()  # fmt: skip
    base = bend(resolve(base), {"model.init_from": str(folder / "start")})
    return with_teacher(base, str(folder / "teacher"), 0.7)


def with_teacher(recipe: ResolvedRecipe, checkpoint: str, weight: float) -> ResolvedRecipe:
    return bend(
        recipe, {"train.distillation": DistillationConfig(checkpoint=checkpoint, weight=weight)}
    )


def without_teacher(recipe: ResolvedRecipe) -> ResolvedRecipe:
    return bend(recipe, {"train.distillation": None})


def on(layout: Layout, recipe: ResolvedRecipe) -> ResolvedRecipe:
    return bend(recipe, {"parallel": layout.parallel, "optim.zero_stage": layout.zero_stage})


@pytest.mark.parametrize("name", ["TP2", "TP2+SP", "DP2 Z1", "DP2 Z3"])
def test_every_layout_has_the_curve_of_one_process(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, name: str
) -> None:
    (expected,) = curves(groups, [on(LAYOUTS["1"], recipe)], 5)
    layout = LAYOUTS[name]
    for (curve,) in run_on_ranks(
        curves, layout.size, [on(layout, recipe)], 5, parallel=layout.parallel
    ):
        for values, expected_values in zip(curve, expected, strict=True):
            assert values == pytest.approx(expected_values, rel=1e-5)


def test_weight_zero_changes_no_bit_and_a_larger_one_lowers_the_kl(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    assert recipe.train.distillation is not None
    monitored = with_teacher(recipe, recipe.train.distillation.checkpoint, 0.0)
    plain, weight_zero, distilled = curves(groups, [without_teacher(recipe), monitored, recipe], 4)
    assert [step[:2] for step in weight_zero] == plain
    assert distilled[0][0] == plain[0][0]
    assert distilled[0][1] != plain[0][1]
    assert weight_zero[3][2] is not None
    assert distilled[3][2] is not None
    assert distilled[3][2] < weight_zero[3][2]


def test_the_step_follows_the_gradient_of_the_documented_loss(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    """Mean NLL + weight * mean KL over the targets of left-to-right samples, by plain autograd."""
    assert recipe.train.distillation is not None
    assert recipe.model.init_from is not None
    ((first,),) = curves(groups, [recipe], 1)
    stream = open_samples(recipe)
    batches = [collate([stream.sample(k, step=0)]) for k in range(recipe.train.global_batch)]
    network, teacher = (
        load_network(open_checkpoint(folder), groups=groups).requires_grad_()
        for folder in (recipe.model.init_from, recipe.train.distillation.checkpoint)
    )
    nll = torch.cat([network(batch)[batch.is_target] for batch in batches]).mean()
    forward = [batch for batch in batches if batch.is_left_to_right]
    assert 0 < len(forward) < len(batches)
    kl = torch.cat([dense_kl(teacher.requires_grad_(False), network, b).flatten() for b in forward])
    norms = [
        g.norm() for g in gradients(network, nll + recipe.train.distillation.weight * kl.mean())
    ]
    assert first[0] == pytest.approx(nll.item(), rel=1e-6)
    assert first[1] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)
    assert first[2] == pytest.approx(kl.mean().item(), rel=1e-5)


def test_the_kl_to_the_own_weights_starts_at_zero(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    assert recipe.model.init_from is not None
    ((first, *_),) = curves(groups, [with_teacher(recipe, recipe.model.init_from, 1.0)], 1)
    assert first[2] == pytest.approx(0, abs=1e-6)


def test_a_run_writes_its_kl_and_resumes_exactly(recipe: ResolvedRecipe, tmp_path: Path) -> None:
    recipe = bend(recipe, {"run.folder": str(tmp_path / "run"), "train.steps": 6})
    whole = train(recipe, tmp_path)
    assert all(line["kl_nats"] is None or line["kl_nats"] > 1e-3 for line in whole)
    assert sum(line["kl_nats"] is not None for line in whole) >= 3
    cut = bend(recipe, {"run.folder": str(tmp_path / "cut"), "train.steps": 4})
    assert train(bend(cut, {"train.steps": 3}), tmp_path) == whole[:3]
    assert train(bend(cut, {"train.steps": 6}), tmp_path) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 60},
            r"must have the model's vocabulary of 64 tokens \(.* has 60\)",
        ),
        (
            {"position_embedding": "learned_absolute"},
            r"must have data\.seq_length \+ 1 = 17 positions \(.* has 9\)",
        ),
    ],
)
def test_a_teacher_of_another_vocabulary_or_length_is_rejected(
    recipe: ResolvedRecipe,
    groups: ProcessGroupCollection,
    tmp_path: Path,
    changes: Any,
    message: str,
) -> None:
    other = dataclasses.replace(MODEL, **changes)
    CheckpointSave(
        tmp_path, step=0, network=build(other, groups, max_positions=9),
        recipe=bend(recipe, {"model": other, "data.seq_length": 8, "train.distillation": None}),
        state={}, optimizer={}, tokenizer={},
    ).wait()  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        open_teacher(with_teacher(recipe, str(tmp_path), 1.0))
