"""What a run says at its end: what was read, skipped and ignored; and when that is too much."""

from collections.abc import Sequence

from armd_scale.data.manifest import Manifest, Skipped
from armd_scale.data.preprocess.documents import EMPTY
from armd_scale.data.preprocess.sources import describe_counts
from armd_scale.errors import CorpusError
from armd_scale.log import get_logger

# Skipped documents shown in the log; the manifest keeps more of them.
_NUM_LOGGED_EXAMPLES = 3

_logger = get_logger(__name__)


def check_skipped(manifest: Manifest, max_skipped: float) -> None:
    """Check that no larger part of the documents was skipped than the user allows.

    Documents without text, which are skipped if no end token is appended, do not count.

    Args:
        manifest: of any split.
        max_skipped: largest share of all documents, from 0 to 1.

    Raises:
        CorpusError: more were skipped.
    """
    skipped = manifest.skipped
    reasons = {reason: count for reason, count in skipped.reasons.items() if reason != EMPTY}
    count = sum(reasons.values())
    total = manifest.read.documents + count
    if count <= max_skipped * total:
        return
    reason = min(reasons, key=lambda reason: (-reasons[reason], reason))
    raise CorpusError(
        f"at most {max_skipped:g} of the documents may be skipped, but {count} of {total} were "
        f"({reasons[reason]} of them: {reason}, such as {skipped.reason_examples[reason]}): fix "
        "the input or the options that describe it, or pass a larger --max-skipped to do without "
        "these documents"
    )


def log_summary(manifests: Sequence[Manifest], prefixes: Sequence[str]) -> None:
    """Log what the manifests of a result say, and in one closing line what was read of its input.

    Args:
        manifests: of all splits.
        prefixes: their prefixes.
    """
    for manifest, prefix in zip(manifests, prefixes, strict=True):
        _logger.info("%s: %d documents, %d tokens", prefix, manifest.documents, manifest.tokens)
        if manifest.documents == 0:
            _logger.warning("%s contains no documents and cannot be read", prefix)
    # What was read, skipped and ignored is equal in all manifests.
    first = manifests[0]
    _log_skipped(first.skipped)
    round_trip = first.read.round_trip
    if round_trip.changed:
        _logger.warning(
            "the tokenizer does not keep the text: %d of %d sampled documents come back changed; "
            "in the first of them, %s",
            round_trip.changed,
            round_trip.documents,
            round_trip.example,
        )
    _logger.info("%s", _describe_input(manifests))


def _log_skipped(skipped: Skipped) -> None:
    for example in skipped.examples[:_NUM_LOGGED_EXAMPLES]:
        _logger.warning("skipped %s", example)
    for file in skipped.files:
        _logger.warning("could not read all of a file: %s", file)
    if skipped.count > _NUM_LOGGED_EXAMPLES:
        _logger.warning("skipped %d documents; the manifest lists the first", skipped.count)


def _describe_input(manifests: Sequence[Manifest]) -> str:
    """Return one line: documents read, skipped by reason and encoded in chunks; files ignored."""
    read, skipped, ignored = manifests[0].read, manifests[0].skipped, manifests[0].ignored
    parts = [f"read {read.documents} documents ({read.text_bytes} bytes of text)"]
    if num_chunked := sum(manifest.chunked_documents for manifest in manifests):
        parts.append(f"encoded {num_chunked} of them in chunks")
    reasons = f" ({describe_counts(skipped.reasons)})" if skipped.count else ""
    parts.append(f"skipped {skipped.count} documents{reasons}")
    names = f" ({describe_counts(ignored)})" if ignored else ""
    parts.append(f"ignored {sum(ignored.values())} files or folders{names}")
    if read.special_tokens:
        became = {"text": "ordinary tokens", "ids": "their ids"}[manifests[0].special_tokens]
        parts.append(
            f"found {sum(read.special_tokens.values())} special tokens written out in the text, "
            f"which became {became} ({describe_counts(read.special_tokens)})"
        )
    return "; ".join(parts)
