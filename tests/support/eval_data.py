"""Minimal shards with a manifest, and a checkpoint that fits them."""

import dataclasses
from pathlib import Path

import numpy as np
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.schema import ModelConfig, Recipe
from armd_scale.data.manifest import Manifest, Skipped, TokenizerRecord, manifest_path
from armd_scale.data.tokenizer import read_tokenizer_files
from armd_scale.data.tokenizer_training import train_sentencepiece
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL, bend
from tests.support.shards import write_pair
from tests.support.windows import VOCAB


def write_documents(prefix: Path, lengths: tuple[int, ...] = (30, 3, 70, 12, 60)) -> str:
    """Write a .bin/.idx pair of random tokens without a manifest; returns the prefix."""
    rng = np.random.default_rng(5)
    return write_pair(prefix, [rng.integers(0, VOCAB, size=length).tolist() for length in lengths])


def write_manifest(
    prefix: str,
    *,
    tokens: int,
    text_bytes: int,
    vocab_size: int = VOCAB,
    fingerprint: str = "f",
    prefix_ids: tuple[int, ...] = (),
) -> None:
    """Write a manifest beside a pair; only the fields that evaluation reads are correct."""
    Manifest(
        documents=5,
        tokens=tokens,
        text_bytes=text_bytes,
        chunked_documents=0,
        vocab_size=vocab_size,
        prefix_ids=prefix_ids,
        eod=None,
        dtype="int32",
        tokenizer=TokenizerRecord("sentencepiece", fingerprint, "tokenizer"),
        sha256={"bin": "", "idx": ""},
        sources=(),
        skipped=Skipped(),
        ignored={},
        split=None,
        shard=None,
        plan="",
    ).save(manifest_path(prefix))


def make_recipe(model: ModelConfig = LLAMA, **changes: object) -> Recipe:
    """A recipe with 16 targets per window, micro-batches of 2 and changes `section__key=value`."""
    recipe = dataclasses.replace(SMALL, model=model)
    changes = {"data__seq_length": 16, "train__micro_batch": 2, **changes}
    return bend(recipe, {key.replace("__", "."): value for key, value in changes.items()})


def write_run(folder: Path, groups: ProcessGroupCollection, *, vocab_size: int = 280) -> Path:
    """Write `run` with one checkpoint, its `tokenizer`, and shards `valid`; returns `folder`."""
    model = dataclasses.replace(LLAMA, vocab_size=vocab_size, max_positions=17)
    tokenizer = train_sentencepiece(["the quick brown fox\n" * 40], 280)
    tokenizer.save(folder / "tokenizer")
    CheckpointSave(
        folder / "run" / "checkpoints",
        step=3,
        network=build(model, groups),
        recipe=make_recipe(model),
        state={},
        optimizer={},
        tokenizer=read_tokenizer_files(folder / "tokenizer", fingerprint=tokenizer.fingerprint),
    ).wait()
    prefix = write_documents(folder / "valid")
    write_manifest(prefix, tokens=175, text_bytes=700, fingerprint=tokenizer.fingerprint)
    return folder


def add_manifest(
    recipe: Recipe,
    name: str,
    *,
    vocab_size: int = 64,
    fingerprint: str = "f",
    prefix_ids: tuple[int, ...] = (),
) -> None:
    """Write a manifest for the shards `name` beside the run's folder."""
    write_manifest(
        str(Path(recipe.run.folder).parent / name),
        tokens=0,
        text_bytes=1,
        vocab_size=vocab_size,
        fingerprint=fingerprint,
        prefix_ids=prefix_ids,
    )
