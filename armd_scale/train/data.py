"""The data of a run: shards, tokenizers and held-out windows, checked before the run writes."""

from dataclasses import dataclass

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import Recipe
from armd_scale.data.indexed_reader import open_shards
from armd_scale.data.manifest import Manifest, load_manifest
from armd_scale.data.sample_stream import SampleStream, open_sample_stream
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import RecipeError, TokenizerError
from armd_scale.log import get_logger
from armd_scale.order.policies import OrderPolicy
from armd_scale.order.spec import parse_spec


@dataclass(frozen=True)
class EvalData:
    """Held-out windows, and the orders that evaluations during the run score them under."""

    windows: TokenWindows
    orders: tuple[OrderPolicy, ...]


def resolve_from_shards(recipe: Recipe) -> ResolvedRecipe:
    """Resolve a recipe, taking an open `model.vocab_size` from the training shards.

    Raises:
        ShardError: a training shard does not exist.
        RecipeError: neither the recipe nor a manifest gives the vocabulary size.
        TokenizerError: a tokenizer of the data has more tokens than the model.
    """
    manifests = _load_manifests(training_prefixes(recipe))
    largest = max((manifest.vocab_size for manifest in manifests.values()), default=None)
    configured = recipe.model.vocab_size
    if configured is None and largest is None:
        prefix = training_prefixes(recipe)[0]
        # A mistyped path is likelier than shards without a manifest, and its message is clearer.
        open_shards(prefix)
        raise RecipeError(
            "model.vocab_size must be set if data.train has no manifest "
            f"({prefix}.json does not exist): set it to the number of tokens of the tokenizer"
        )
    if configured is not None and largest is not None and largest > configured:
        raise TokenizerError(
            f"model.vocab_size must be >= {largest}, the number of tokens of the tokenizer of "
            f"{', '.join(manifests)} (got {configured}): preprocess with the model's tokenizer or "
            "raise model.vocab_size"
        )
    # A larger configured size is allowed: pretrained models have more rows than tokens.
    return resolve(recipe, vocab_size=largest)


def check_tokenizers(recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """Check that all data, and the weights that the run starts from, have the same tokenizer.

    Shards without a manifest and checkpoints without a tokenizer are not checked.

    Raises:
        TokenizerError: two tokenizers differ.
    """
    prefixes = training_prefixes(recipe)
    if recipe.data.valid is not None:
        prefixes.append(recipe.data.valid)
    manifests = _load_manifests(prefixes)
    fingerprints = {manifest.tokenizer.fingerprint for manifest in manifests.values()}
    if len(fingerprints) > 1:
        raise TokenizerError(
            f"data.train and data.valid must have the same tokenizer (found {len(fingerprints)} "
            f"different ones in {', '.join(manifests)}): preprocess them with the same --tokenizer"
        )
    # Compared by fingerprint, not by path: the same tokenizer is often copied to several folders.
    folder = None if checkpoint is None else checkpoint.tokenizer_folder
    if (
        folder is not None
        and fingerprints
        and load_tokenizer(folder).fingerprint not in fingerprints
    ):
        raise TokenizerError(
            f"{', '.join(manifests)} must have the tokenizer of the checkpoint that the run starts "
            f"from, but has a different one: preprocess with --tokenizer {folder}"
        )


def check_document_starts(recipe: Recipe) -> None:
    """Check that the documents of all data start alike, and say what follows if without BOS.

    Raises:
        TokenizerError: some start with BOS and others do not.
    """
    prefixes = training_prefixes(recipe)
    if recipe.data.valid is not None:
        prefixes.append(recipe.data.valid)
    manifests = _load_manifests(prefixes)
    prefixes_of_documents = {manifest.prefix_ids for manifest in manifests.values()}
    if len(prefixes_of_documents) > 1:
        raise TokenizerError(
            "the documents of data.train and data.valid must all start with BOS, or none of them "
            f"(they differ in {', '.join(manifests)}): preprocess them again, with the same "
            "--prepend-bos or --no-prepend-bos"
        )
    if recipe.data.packing == "documents" and () in prefixes_of_documents:
        get_logger(__name__).warning(
            "no document starts with BOS, so that under data.packing=documents the model does not "
            "learn how texts start, and needs a prompt: preprocess with --prepend-bos to change it"
        )


def open_samples(recipe: ResolvedRecipe) -> SampleStream:
    """Open the training samples.

    Raises:
        ShardError: a source is missing, damaged or shorter than one window.
    """
    return open_sample_stream(
        recipe.data,
        order=recipe.order,
        seed=recipe.run.seed,
        vocab_size=recipe.model.vocab_size,
    )


def open_eval_data(recipe: ResolvedRecipe) -> EvalData | None:
    """Open `data.valid` and parse `eval.orders`; None if the recipe evaluates nothing.

    Raises:
        OrderError: an order does not exist.
        ShardError: data.valid is missing, damaged or shorter than one window.
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


def training_prefixes(recipe: Recipe) -> list[str]:
    """The prefixes of all training shards."""
    return [prefix for source in recipe.data.sources for prefix in source.prefixes]


def _load_manifests(prefixes: list[str]) -> dict[str, Manifest]:
    """The manifests by prefix, of those shards that have one."""
    manifests = {prefix: load_manifest(prefix) for prefix in prefixes}
    return {prefix: manifest for prefix, manifest in manifests.items() if manifest is not None}
