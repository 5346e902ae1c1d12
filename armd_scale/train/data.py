"""What a run reads besides checkpoints: opened and checked before the run writes anything."""

from dataclasses import dataclass
from pathlib import Path

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import Recipe
from armd_scale.data.indexed_reader import open_shards
from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.data.sample_stream import SampleStream, open_sample_stream
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import RecipeError, TokenizerError
from armd_scale.order.policies import OrderPolicy
from armd_scale.order.spec import parse_spec


@dataclass(frozen=True)
class EvalData:
    """What evaluations during the run score."""

    windows: TokenWindows
    orders: tuple[OrderPolicy, ...]


def resolve_from_shards(recipe: Recipe) -> ResolvedRecipe:
    """Resolve a recipe, taking an open `model.vocab_size` from the training shards.

    Raises:
        ShardError: there are no such shards.
        RecipeError: neither the recipe nor a manifest says how large the vocabulary is.
        TokenizerError: sources of different tokenizers, or one with more tokens than the model has.
    """
    manifests = _manifests(training_prefixes(recipe))
    largest = max((manifest.vocab_size for manifest in manifests.values()), default=None)
    given = recipe.model.vocab_size
    if given is None and largest is None:
        prefix = training_prefixes(recipe)[0]
        open_shards(prefix)  # a mistyped path is the likelier mistake, and is named by this
        raise RecipeError(
            f"model.vocab_size must be given where data.train has no manifest, and {prefix}.json "
            "does not exist: set it to the number of tokens of the tokenizer"
        )
    if given is not None and largest is not None and largest > given:
        raise TokenizerError(
            f"the tokenizer of {', '.join(manifests)} must fit model.vocab_size={given}, and has "
            f"{largest} tokens: preprocess with the model's tokenizer or raise model.vocab_size"
        )
    return resolve(recipe, vocab_size=largest)


def check_tokenizers(recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """Makes sure that all data, and the weights that the run starts from, mean the same by a token.

    Raises:
        TokenizerError: they do not.
    """
    prefixes = training_prefixes(recipe)
    if recipe.data.valid is not None:
        prefixes.append(recipe.data.valid)
    manifests = _manifests(prefixes)
    fingerprints = {manifest.tokenizer.fingerprint for manifest in manifests.values()}
    if len(fingerprints) > 1:
        raise TokenizerError(
            f"data.train and data.valid must come from one tokenizer, got {len(fingerprints)} for "
            f"{', '.join(manifests)}: preprocess them with the same --tokenizer"
        )
    folder = None if checkpoint is None else checkpoint.tokenizer_folder
    if (
        folder is not None
        and fingerprints
        and load_tokenizer(folder).fingerprint not in fingerprints
    ):
        raise TokenizerError(
            f"{', '.join(manifests)} must come from the tokenizer of the weights that the run "
            f"starts from, and does not: preprocess with --tokenizer {folder}"
        )


def open_samples(recipe: ResolvedRecipe) -> SampleStream:
    """The training samples.

    Raises:
        ShardError: a source that is missing, damaged or shorter than a window.
    """
    return open_sample_stream(
        recipe.data,
        order=recipe.order,
        seed=recipe.run.seed,
        vocab_size=recipe.model.vocab_size,
    )


def open_held_out(recipe: ResolvedRecipe) -> EvalData | None:
    """The held-out windows and the orders to score them under; None where nothing is evaluated.

    Raises:
        OrderError: an order that does not exist.
        ShardError: data.valid is missing, damaged or shorter than a window.
    """
    if recipe.data.valid is None or recipe.eval.every_steps == 0:
        return None
    orders = tuple(parse_spec(text) for text in recipe.eval.orders)
    windows = TokenWindows(
        recipe.data.valid,
        recipe.data.seq_length,
        packing=recipe.data.packing,
        vocab_size=recipe.model.vocab_size,
    )
    return EvalData(windows, orders)


def tokenizer_folder(recipe: Recipe) -> Path | None:
    """The tokenizer of the training shards, where their manifest names one that exists."""
    prefix = training_prefixes(recipe)[0]
    manifest = load_manifest(prefix)
    folder = None if manifest is None else manifest.tokenizer_folder(prefix)
    return folder if folder is not None and folder.is_dir() else None


def training_prefixes(recipe: Recipe) -> list[str]:
    """Prefixes of all training shards."""
    train = recipe.data.train
    return [train] if isinstance(train, str) else [part.path for part in train]


def _manifests(prefixes: list[str]) -> dict[str, Manifest]:
    """Of those shards that have one."""
    found = {prefix: load_manifest(prefix) for prefix in prefixes}
    return {prefix: manifest for prefix, manifest in found.items() if manifest is not None}
