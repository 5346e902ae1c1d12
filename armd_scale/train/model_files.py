"""Small files that go into every checkpoint: those of the tokenizer and of the source model.

They are read once, at the start of a run: its checkpoints then agree, whatever happens to the
folders that they came from, and one that is moved to another machine can still be exported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from armd_scale.checkpoint.hf.importer import SOURCE_FILES, TOKENIZER_FILES
from armd_scale.checkpoint.load import Checkpoint
from armd_scale.checkpoint.save import SOURCE
from armd_scale.checkpoint.store import verify
from armd_scale.config.schema import Recipe
from armd_scale.data.manifest import load_manifest
from armd_scale.data.special_tokens import TOKENIZER_CONFIG, set_prepend_bos
from armd_scale.data.tokenizer import read_tokenizer_files
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
    contents, starts_with_bos = tokenizer_contents(recipe)
    source: dict[str, bytes] = {}
    if weights is not None:
        source = _read_existing(_source_folder(recipe, weights), SOURCE_FILES)
        inherited = _read_existing(weights.tokenizer_folder, TOKENIZER_FILES)
        if starts_with_bos is None and (tokenizer := weights.load_tokenizer()) is not None:
            starts_with_bos = bool(tokenizer.prefix_ids)
        # The shards' own files come first.
        contents = inherited | contents
    if contents and starts_with_bos is not None:
        # Always said: what has no such key is a checkpoint of an earlier version.
        config = set_prepend_bos(contents.get(TOKENIZER_CONFIG), starts_with_bos)
        contents = {**contents, TOKENIZER_CONFIG: config}
    return ModelFiles(contents, source)


def _source_folder(recipe: Recipe, weights: Checkpoint) -> Path | None:
    """Return the folder with the source's configuration; None if there is none."""
    start = recipe.model.init_from
    if weights.source_folder is None and start is not None and (Path(start) / SOURCE).is_dir():
        # A run of an earlier version, whose checkpoints have no copy of it.
        verify(Path(start), prefix=SOURCE)
        return Path(start) / SOURCE
    return weights.source_folder


def tokenizer_contents(recipe: Recipe) -> tuple[dict[str, bytes], bool | None]:
    """Read the files of the tokenizer of the training shards.

    Returns:
        Their contents by name, none if no manifest names existing ones; and whether the documents
        start with BOS, None if there is no manifest. Shards of earlier versions have no BOS,
        whatever their tokenizer does.

    Raises:
        ShardError: the manifest is damaged.
        TokenizerError: the files cannot be read, or are not those that the shards were made with.
    """
    prefix = training_prefixes(recipe)[0]  # all of them have the same one: see check_tokenizers
    manifest = load_manifest(prefix)
    folder = None if manifest is None else manifest.tokenizer_folder(prefix)
    if manifest is None:
        return {}, None
    starts_with_bos = bool(manifest.prefix_ids)
    if folder is None or not folder.is_dir():
        return {}, starts_with_bos
    contents = read_tokenizer_files(folder, fingerprint=manifest.tokenizer.fingerprint)
    return contents, starts_with_bos


def _read_existing(folder: Path | None, names: tuple[str, ...]) -> dict[str, bytes]:
    if folder is None:
        return {}
    # Files of a checkpoint, which were verified when it was opened.
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
