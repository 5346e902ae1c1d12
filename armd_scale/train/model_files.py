"""Small files that go into every checkpoint: those of the tokenizer and of the source model.

They are read once, at the start of a run: its checkpoints then agree, whatever happens to the
folders that they came from, and one that is moved to another machine can still be exported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from armd_scale.checkpoint.hf.importer import SOURCE_FILES, TOKENIZER_FILES
from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.schema import Recipe
from armd_scale.data.manifest import load_manifest
from armd_scale.data.special_tokens import TOKENIZER_CONFIG, set_prepend_bos
from armd_scale.data.tokenizer import load_tokenizer, read_tokenizer_files
from armd_scale.train.data import training_prefixes


@dataclass(frozen=True)
class ModelFiles:
    """Contents by file name."""

    tokenizer: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Of the tokenizer, its chat template included."""
    source: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """config.json and generation_config.json of the model that the weights were converted from."""


def read_model_files(recipe: Recipe, weights: Checkpoint | None) -> ModelFiles:
    """Read the files for the checkpoints of a run.

    Args:
        recipe: the recipe.
        weights: the checkpoint that the run starts from; its tokenizer is that of the shards, see
            `check_tokenizers`.

    Raises:
        ShardError: the manifest of the shards is damaged.
        TokenizerError: the files of the tokenizer cannot be read, or are not those that the shards
            were made with.
    """
    tokenizer = tokenizer_contents(recipe)
    if weights is None:
        return ModelFiles(tokenizer)
    # The shards' own files come first: they say how the documents start.
    tokenizer = _read_existing(weights.tokenizer_folder, TOKENIZER_FILES) | tokenizer
    return ModelFiles(tokenizer, _read_existing(weights.source_folder, SOURCE_FILES))


def tokenizer_contents(recipe: Recipe) -> dict[str, bytes]:
    """The files of the tokenizer of the training shards; none if no manifest names existing ones.

    Read once, at the start of a run: its checkpoints then agree, whatever happens to the folder.

    Raises:
        ShardError: the manifest is damaged.
        TokenizerError: the files cannot be read, or are not those that the shards were made with.
    """
    prefix = training_prefixes(recipe)[0]  # all of them have the same one: see check_tokenizers
    manifest = load_manifest(prefix)
    folder = None if manifest is None else manifest.tokenizer_folder(prefix)
    if manifest is None or folder is None or not folder.is_dir():
        return {}
    contents = read_tokenizer_files(folder, fingerprint=manifest.tokenizer.fingerprint)
    tokenizer = load_tokenizer(folder)
    if tokenizer.prefix_ids != manifest.prefix_ids:
        # Shards of earlier versions have no BOS, whatever their tokenizer does. Texts of the model
        # start as its documents did.
        starts_with_bos = tokenizer.bos is not None and tokenizer.bos in manifest.prefix_ids
        config = set_prepend_bos(contents.get(TOKENIZER_CONFIG), starts_with_bos)
        contents[TOKENIZER_CONFIG] = config
    return contents


def _read_existing(folder: Path | None, names: tuple[str, ...]) -> dict[str, bytes]:
    if folder is None:
        return {}
    # Files of a checkpoint, which were verified when it was opened.
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
