"""A frozen parent: what it says, what it adds to the loss, and that it adds it on any layout."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config import derived as derive
from armd_scale.config.schema import DistillationConfig, OptimConfig, Recipe, TrainConfig
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

DOCUMENTS = (7, 1, 5)
MODEL = dataclasses.replace(LLAMA, vocab_size=VOCAB)


def mixed(*orders: str, lengths: tuple[int, ...] = DOCUMENTS) -> ArmdBatch:
    """A batch of one sample an order."""
    drawn = [draw_windows(order, lengths, count=1, seed=i) for i, order in enumerate(orders)]
    tokens, block = (
        torch.cat([torch.from_numpy(getattr(w, name)) for w in drawn]).numpy()
        for name in ("tokens", "block")
    )
    return batch_of(tokens, block, [lengths] * len(drawn))


def dense_kl(parent: ArmdModel, network: ArmdModel, batch: ArmdBatch) -> torch.Tensor:
    """KL of every row from whole logits of both."""
    mine, theirs = (n.logits(batch).log_softmax(-1) for n in (network, parent))
    return (theirs.exp() * (theirs - mine)).sum(-1)


def gradients(network: ArmdModel, loss: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("lengths", [DOCUMENTS, (13,)])
def test_samples_in_text_order_are_told_from_the_others(lengths: tuple[int, ...]) -> None:
    batch = mixed("l2r", "strided-ar:2", "strided:1", "groups:2", lengths=lengths)
    samples, part = batch.left_to_right_subset()
    assert samples.tolist() == [True, False, True, False]
    alone = mixed("l2r", "l2r", lengths=lengths)
    assert (part.is_left_to_right, part.is_plain_causal) == (
        alone.is_left_to_right,
        alone.is_plain_causal,
    )
    assert torch.equal(part.query.stop, alone.query.stop)
    assert torch.equal(part.tokens, batch.tokens[[0, 2]])


@pytest.mark.parametrize("per_chunk", [1 << 26, 101 * 9])
@pytest.mark.parametrize("theirs", [LLAMA, QWEN3], ids=["same shape", "another shape"])
def test_the_network_puts_out_its_divergence_where_both_read_forward(
    groups: ProcessGroupCollection, monkeypatch: pytest.MonkeyPatch, theirs: Any, per_chunk: int
) -> None:
    monkeypatch.setattr(derive, "LEAST_ROWS", 1)
    monkeypatch.setattr(derive, "LOGITS_ON_CPU", per_chunk)
    parent = build(theirs, groups, dtype=torch.float64, seed=5)
    network = build(LLAMA, groups, dtype=torch.float64)
    batch = mixed("strided:2", "l2r", "random")
    weights = torch.stack((torch.zeros_like(batch.is_target), batch.is_target)).double()
    loss, nats = network(batch, LossSpec(weights, Teacher(parent, 1.0).reference(batch)))
    torch.testing.assert_close(nats[0], network(batch).detach(), atol=1e-13, rtol=1e-13)
    target = batch.is_target[1]
    expected = dense_kl(parent, network, mixed("l2r", "l2r"))[1]
    assert expected[target].min() > 1e-3
    torch.testing.assert_close(nats[1, 1][target], expected[target].detach(), atol=1e-12, rtol=0)
    assert not nats[1, [0, 2]].any()
    wanted = gradients(network, expected[target].sum())
    found = gradients(network, loss)
    for mine, dense in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, dense, atol=1e-11, rtol=0)
    assert not any(p.requires_grad or p.grad is not None for p in parent.parameters())


def test_the_parent_runs_on_left_to_right_samples_alone(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    rows: list[int] = []
    network.layers["0"].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    parent = Teacher(network, 1.0)
    assert parent.reference(mixed("strided-ar:2", "random")).rows.shape[1] == 0
    assert rows == []
    parent.reference(mixed("l2r", "random", "l2r"))
    assert rows == [2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, groups: ProcessGroupCollection) -> Recipe:
    """A third of its samples left to right, held to weights other than those it starts from."""
    folder = tmp_path_factory.mktemp("parent")
    text = write_text(folder / "text")
    base = tiny_recipe(
        folder, text, order=Strided(streams=(1, 2, 4)), model=MODEL, data__valid=None,
        optim=OptimConfig(warmup_steps=1, schedule="constant", lr=3e-3),
        train=TrainConfig(steps=40, micro_batch=1, global_batch=4, precision="fp32"),
    )  # fmt: skip
    for name, seed in (("start", 0), ("parent", 5)):
        CheckpointSave(
            folder / name, step=0, network=build(MODEL, groups, seed=seed, max_positions=17),
            recipe=base, state={}, optimizer={}, tokenizer=None,
        ).wait()  # fmt: skip
    base = bend(base, {"model.init_from": str(folder / "start")})
    return beside(base, str(folder / "parent"), 0.7)


def beside(recipe: Recipe, checkpoint: str, weight: float) -> Recipe:
    return bend(
        recipe, {"train.distillation": DistillationConfig(checkpoint=checkpoint, weight=weight)}
    )


def alone(recipe: Recipe) -> Recipe:
    return bend(recipe, {"train.distillation": None})


def on(layout: Layout, recipe: Recipe) -> Recipe:
    return bend(recipe, {"parallel": layout.parallel, "optim.zero_stage": layout.zero_stage})


@pytest.mark.parametrize("name", ["TP2", "TP2+SP", "DP2 Z1", "DP2 Z3"])
def test_every_layout_has_the_curve_of_one_process(
    recipe: Recipe, groups: ProcessGroupCollection, name: str
) -> None:
    (expected,) = curves(groups, [on(LAYOUTS["1"], recipe)], 5)
    layout = LAYOUTS[name]
    for (found,) in run_on_ranks(
        curves, layout.size, [on(layout, recipe)], 5, parallel=layout.parallel
    ):
        for got, wanted in zip(found, expected, strict=True):
            assert got == pytest.approx(wanted, rel=1e-5)


def test_a_weight_of_nothing_changes_no_bit_and_one_of_something_does(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    assert recipe.train.distillation is not None
    watched = beside(recipe, recipe.train.distillation.checkpoint, 0.0)
    plain, idle, held = curves(groups, [alone(recipe), watched, recipe], 4)
    assert [step[:2] for step in idle] == plain
    assert held[0][0] == plain[0][0]
    assert held[0][1] != plain[0][1]
    assert idle[3][2] is not None
    assert held[3][2] is not None
    assert held[3][2] < idle[3][2]


def test_the_step_follows_the_gradient_of_the_stated_loss(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    """Mean NLL + weight * mean KL over the targets of left-to-right samples, by plain autograd."""
    assert recipe.train.distillation is not None
    assert recipe.model.init_from is not None
    ((first,),) = curves(groups, [recipe], 1)
    stream = open_samples(recipe)
    batches = [collate([stream.sample(k, step=0)]) for k in range(recipe.train.global_batch)]
    network, parent = (
        load_network(open_checkpoint(folder), groups=groups).requires_grad_()
        for folder in (recipe.model.init_from, recipe.train.distillation.checkpoint)
    )
    nll = torch.cat([network(batch)[batch.is_target] for batch in batches]).mean()
    forward = [batch for batch in batches if batch.is_left_to_right]
    assert 0 < len(forward) < len(batches)
    kl = torch.cat([dense_kl(parent.requires_grad_(False), network, b).flatten() for b in forward])
    norms = [
        g.norm() for g in gradients(network, nll + recipe.train.distillation.weight * kl.mean())
    ]
    assert first[0] == pytest.approx(nll.item(), rel=1e-6)
    assert first[1] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)
    assert first[2] == pytest.approx(kl.mean().item(), rel=1e-5)


def test_a_model_starts_at_no_distance_from_its_own_weights(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    assert recipe.model.init_from is not None
    ((first, *_),) = curves(groups, [beside(recipe, recipe.model.init_from, 1.0)], 1)
    assert first[2] == pytest.approx(0, abs=1e-6)


def test_a_run_writes_its_divergence_and_resumes_with_it(recipe: Recipe, tmp_path: Path) -> None:
    recipe = bend(recipe, {"run.folder": str(tmp_path / "run"), "train.steps": 6})
    whole = train(recipe, tmp_path)
    assert all(line["kl_nats"] is None or line["kl_nats"] > 1e-3 for line in whole)
    assert sum(line["kl_nats"] is not None for line in whole) >= 3
    cut = bend(recipe, {"run.folder": str(tmp_path / "cut"), "train.steps": 4})
    assert train(bend(cut, {"train.steps": 3}), tmp_path) == whole[:3]
    assert train(bend(cut, {"train.steps": 6}), tmp_path) == whole


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"vocab_size": 60},
            "train.distillation must have the model's vocabulary of 64 tokens, and .* has 60",
        ),
        (
            {"position_embedding": "learned_absolute"},
            r"must know data\.seq_length \+ 1 = 17 positions, and .* knows 9",
        ),
    ],
)
def test_a_parent_that_cannot_be_compared_with_is_refused(
    recipe: Recipe, groups: ProcessGroupCollection, tmp_path: Path, changes: Any, sentence: str
) -> None:
    other = dataclasses.replace(MODEL, **changes)
    CheckpointSave(
        tmp_path, step=0, network=build(other, groups, max_positions=9),
        recipe=bend(recipe, {"model": other, "data.seq_length": 8, "train.distillation": None}),
        state={}, optimizer={}, tokenizer=None,
    ).wait()  # fmt: skip
    with pytest.raises(CheckpointError, match=sentence):
        open_teacher(beside(recipe, str(tmp_path), 1.0))
