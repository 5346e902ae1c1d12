"""Put the tokenizer of a run into its workspace; train it on the corpus if the user asks."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from armd_scale.data.preprocess.disk_errors import translate_os_errors
from armd_scale.data.preprocess.documents import Document
from armd_scale.data.preprocess.options import PreprocessOptions, WorkPlan
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.work_units import WorkUnit
from armd_scale.data.special_tokens import write_prepend_bos
from armd_scale.data.tokenizer import Tokenizer, load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import TokenizerError
from armd_scale.log import get_logger

# Text that a tokenizer is trained on. More text changes the vocabulary little, and training needs
# about fifteen times the size of the text in memory.
_SAMPLE_BYTES = 16 << 20
_SAMPLE_UNITS = 64
# File in the workspace with the key of the inputs that the tokenizer was trained on.
_TRAINED_ON = "trained-on"

_logger = get_logger(__name__)


def prepare_tokenizer(
    folder: Path,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int | None,
    plan: WorkPlan,
    options: PreprocessOptions,
) -> Tokenizer:
    """Save the tokenizer to `tokenizer/` in the workspace.

    One that an earlier run has trained there is kept, unless the corpus has changed since.

    Args:
        folder: the workspace.
        tokenizer: the tokenizer that the user gave; None: train one.
        vocab_size: size of a vocabulary to train; None if a tokenizer was given.
        plan: the work units of the whole corpus, to train on.
        options: the options of the run.

    Returns:
        The tokenizer, loaded from the workspace.

    Raises:
        TokenizerError: it cannot be trained, or has no end-of-sequence token but needs one.
        ShardError: it cannot be written.
    """
    tokenizer_dir = folder / "tokenizer"
    if not has_trained_tokenizer(folder, plan):
        with translate_os_errors(folder):
            shutil.rmtree(tokenizer_dir, ignore_errors=True)
        if vocab_size is not None:
            _logger.info("training a sentencepiece vocabulary of %d tokens", vocab_size)
            tokenizer = train_sentencepiece(_sample_texts(plan.units, options), vocab_size)
        assert tokenizer is not None
        partial = folder / "tokenizer.partial"
        with translate_os_errors(folder):
            shutil.rmtree(partial, ignore_errors=True)
            tokenizer.save(partial)
            if vocab_size is not None:
                if options.prepend_bos is not None:
                    write_prepend_bos(partial, options.prepend_bos, tokens={})
                (folder / _TRAINED_ON).write_text(plan.inputs_key)
            partial.rename(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    if options.append_eod and tokenizer.eod is None:
        raise TokenizerError(
            f"tokenizer {options.tokenizer} must name an end-of-sequence token (eos_token in its "
            "tokenizer_config.json): add it there, or pass --no-eod to end documents without one"
        )
    return tokenizer


def has_trained_tokenizer(folder: Path, plan: WorkPlan) -> bool:
    """Return whether the workspace holds a tokenizer that was trained on the inputs as they are."""
    path = folder / _TRAINED_ON
    return (folder / "tokenizer").is_dir() and path.exists() and path.read_text() == plan.inputs_key


def _sample_texts(units: Sequence[WorkUnit], options: PreprocessOptions) -> Iterator[str]:
    """Yield text of evenly spaced units of the whole corpus, the same number of bytes from each.

    The sample depends on the corpus alone, so training twice gives the same vocabulary.
    """
    num_units = min(len(units), _SAMPLE_UNITS)
    for i in range(num_units):
        num_bytes_left = _SAMPLE_BYTES // num_units
        for item in read_unit(units[i * len(units) // num_units], options.reader):
            if isinstance(item, Document):
                yield item.text
                num_bytes_left -= len(item.utf8)
            if num_bytes_left <= 0:
                break
