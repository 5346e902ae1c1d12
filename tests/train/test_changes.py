"""What a resume may change, what it must not, and what it says about it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.config.schema import BlendSource
from armd_scale.data.fingerprint import DataFingerprint, fingerprint
from armd_scale.errors import CheckpointError
from armd_scale.order.policies import Strided
from armd_scale.train.changes import check_changes, describe_data, log_changes
from tests.support.networks import LLAMA
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.shards import write_pair


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    text = write_pair(tmp_path / "text", [[k % 50] * (1 + k % 7) for k in range(100)])
    changes = {"model": LLAMA, "data.train": text, "train.steps": 100, "optim.warmup_steps": 10}
    return bend(SMALL_RESOLVED, {**changes, "optim.schedule": "constant", "optim.lr": 1e-3})


def saved_by(recipe: ResolvedRecipe, *, step: int = 50) -> Checkpoint:
    return Checkpoint(
        folder=Path("runs/one/checkpoints/step_00000050"),
        recipe=recipe,
        state={"step": step, "data": describe_data(recipe)},
    )


def test_nothing_changed(recipe: ResolvedRecipe, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = saved_by(recipe)
    assert check_changes(recipe, checkpoint) == []
    log_changes([], checkpoint)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("run.seed", 7, "-> 7"),
        ("data.seq_length", 8, "data.seq_length: 64 -> 8"),
        ("data.packing", "documents", "data.packing: concat -> documents"),
        ("train.global_batch", 64, "-> 64"),
        ("train.precision", "bf16", "train.precision: fp32 -> bf16"),
        ("optim.lr", 2e-3, "optim.lr: 0.001 -> 0.002"),
        ("optim.warmup_steps", 20, "optim.warmup_steps: 10 -> 20"),
        ("optim.schedule", "cosine", "optim.schedule: constant -> cosine"),
        ("optim.weight_decay", 0.0, "optim.weight_decay: 0.1 -> 0.0"),
        ("optim.clip_grad", 0.5, "optim.clip_grad"),
        ("optim.betas", (0.9, 0.99), "optim.betas"),
        ("order", Strided(), "order.policy"),
    ],
)
def test_what_breaks_the_curve_is_refused_and_can_be_allowed(
    recipe: ResolvedRecipe, key: str, value: Any, text: str
) -> None:
    checkpoint = saved_by(recipe)
    changed = bend(recipe, {key: value})
    with pytest.raises(CheckpointError) as caught:
        check_changes(changed, checkpoint)
    assert text in str(caught.value)
    assert "checkpoint.allow_changes=true" in str(caught.value)
    assert "\n" not in str(caught.value)
    allowed = check_changes(bend(changed, {"checkpoint.allow_changes": True}), checkpoint)
    assert any(change.breaks_curve for change in allowed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 200),
        ("train.micro_batch", 1),
        ("optim.zero_stage", 3),
        ("optim.min_lr", 1e-6),
        ("parallel.tensor", 2),
        ("train.hang_timeout_seconds", 3.0),
    ],
)
def test_what_keeps_the_curve_is_listed(
    recipe: ResolvedRecipe, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    checkpoint = saved_by(recipe)
    changes = check_changes(bend(recipe, {key: value}), checkpoint)
    assert [(change.key, change.present) for change in changes] == [(key, str(value))]
    caplog.set_level("INFO")
    log_changes(changes, checkpoint)
    assert key in caplog.text
    assert "another curve" not in caplog.text


def test_a_schedule_may_change_where_the_run_has_not_been(recipe: ResolvedRecipe) -> None:
    wsd = bend(recipe, {"optim.schedule": "wsd", "optim.decay_steps": 20})
    longer = bend(wsd, {"train.steps": 300})
    assert not any(change.breaks_curve for change in check_changes(longer, saved_by(wsd)))
    with pytest.raises(CheckpointError, match=r"train\.steps: 100 -> 300"):
        check_changes(longer, saved_by(wsd, step=90))  # in the decay of the shorter run
    cosine = bend(recipe, {"optim.schedule": "cosine"})
    with pytest.raises(CheckpointError, match=r"train\.steps: 100 -> 300"):
        check_changes(bend(cosine, {"train.steps": 300}), saved_by(cosine))


def test_moved_data_is_no_change(recipe: ResolvedRecipe, tmp_path: Path) -> None:
    checkpoint = saved_by(recipe)
    for suffix in (".bin", ".idx"):
        (tmp_path / f"text{suffix}").rename(tmp_path / f"moved{suffix}")
    assert check_changes(bend(recipe, {"data.train": str(tmp_path / "moved")}), checkpoint) == []


def test_data_that_was_rewritten_under_its_name_is_refused(
    recipe: ResolvedRecipe, tmp_path: Path
) -> None:
    checkpoint = saved_by(recipe)
    write_pair(tmp_path / "text", [[(k + 1) % 50] * (1 + k % 7) for k in range(100)])
    with pytest.raises(CheckpointError, match=r"data\.train: .*text -> .*text \(other tokens\)"):
        check_changes(recipe, checkpoint)


def test_other_weights_of_a_blend_are_refused(recipe: ResolvedRecipe) -> None:
    assert isinstance(recipe.data.train, str)
    blend = (BlendSource(path=recipe.data.train, weight=2.0), BlendSource(path="b", weight=1.0))
    with pytest.raises(CheckpointError, match=r"data\.train: 1 .*text -> 2 .*text \+ 1 b"):
        check_changes(bend(recipe, {"data.train": blend}), saved_by(recipe))


def test_a_checkpoint_without_fingerprints_is_compared_by_path(recipe: ResolvedRecipe) -> None:
    checkpoint = Checkpoint(folder=Path("old"), recipe=recipe, state={"step": 5})
    assert check_changes(recipe, checkpoint) == []
    with pytest.raises(CheckpointError, match=r"data\.train"):
        check_changes(bend(recipe, {"data.train": "elsewhere"}), checkpoint)


@pytest.mark.parametrize("records", [7, [7], [{}], {"a": 1}, "text"])
def test_fingerprints_of_other_types_are_refused(recipe: ResolvedRecipe, records: Any) -> None:
    checkpoint = Checkpoint(folder=Path("x"), recipe=recipe, state={"step": 5, "data": records})
    with pytest.raises(CheckpointError, match="must list fingerprints under 'data'"):
        check_changes(recipe, checkpoint)


def test_the_record_of_the_data_is_json(recipe: ResolvedRecipe) -> None:
    assert isinstance(recipe.data.train, str)
    record = asdict(fingerprint([recipe.data.train]))
    assert describe_data(recipe) == [record]
    assert DataFingerprint(record["sampled"]).matches(fingerprint([recipe.data.train]))


def test_another_dataset_in_a_source_is_refused(recipe: ResolvedRecipe, tmp_path: Path) -> None:
    assert isinstance(recipe.data.train, str)
    more = write_pair(tmp_path / "text_2", [[3] * 200])
    checkpoint = saved_by(bend(recipe, {"data.train": (source(recipe.data.train, more),)}))
    assert check_changes(checkpoint.recipe, checkpoint) == []
    third = write_pair(tmp_path / "text_3", [[4] * 200])
    changed = bend(recipe, {"data.train": (source(recipe.data.train, more, third),)})
    with pytest.raises(CheckpointError, match=r"text and 1 more -> .*text and 2 more \(other tok"):
        check_changes(changed, checkpoint)


def source(*prefixes: str) -> BlendSource:
    return BlendSource(path=prefixes, weight=1.0)
