"""The way from a corpus to shards: plan, tokenizer, units, join; stopped anywhere, it continues."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from armd_scale.data.indexed_format import dtype_for
from armd_scale.data.manifest import (
    Manifest,
    Skipped,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    manifest_path,
)
from armd_scale.data.preprocess.documents import Document
from armd_scale.data.preprocess.encode_unit import (
    EncodeJob,
    UnitReport,
    finished_report,
    part_of,
    translate_os_errors,
)
from armd_scale.data.preprocess.options import PreprocessOptions, WorkPlan, make_plan, split_bounds
from armd_scale.data.preprocess.publish import SplitParts, publish
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.sources import WorkUnit
from armd_scale.data.preprocess.workers import encode_units
from armd_scale.data.preprocess.workspace import workspace
from armd_scale.data.tokenizer import (
    Tokenizer,
    load_tokenizer,
    parse_train_spec,
    train_sentencepiece,
)
from armd_scale.errors import CorpusError, ShardError, TokenizerError
from armd_scale.log import ProgressBar, get_logger

# Text that a tokenizer is trained on: more changes the vocabulary little, and training takes some
# fifteen times its size in memory.
_SAMPLE_BYTES = 16 << 20
_SAMPLE_UNITS = 64

_logger = get_logger(__name__)


def preprocess(options: PreprocessOptions) -> list[Manifest]:
    """Encodes a corpus into PREFIX.bin, .idx, .json (for each side of a split) and .tokenizer/.

    A run that was stopped continues where it was; one whose result is there does nothing.

    Returns:
        the manifests, one a side.

    Raises:
        CorpusError: the input cannot be read, or holds no document.
        TokenizerError: the tokenizer cannot be read or trained.
        ShardError: the result cannot be written, or would replace another.
    """
    vocab_size = parse_train_spec(options.tokenizer)
    if vocab_size is not None and options.shard is not None:
        raise TokenizerError(
            "the shards of a corpus must share one tokenizer, so train it first, by a run without "
            "--shard on some of the text, and give its PREFIX.tokenizer folder as --tokenizer"
        )
    given = load_tokenizer(options.tokenizer) if vocab_size is None else None
    plan = make_plan(options, tokenizer=given.fingerprint if given else options.tokenizer)
    if manifests := _existing_result(plan, options):
        _logger.info("%s is complete already", options.prefix)
        return manifests
    with workspace(
        options.prefix, options.sides, guard=plan.workspace_key, overwrite=options.overwrite
    ) as folder:
        tokenizer = _prepare_tokenizer(folder, given, vocab_size, plan=plan, options=options)
        job = _make_job(folder, tokenizer, options)
        _encode(job, plan, options.workers)
        manifests = publish(options.prefix, _pairs(job, plan, tokenizer, options), folder=folder)
    _log_result(manifests, options)
    return manifests


def _existing_result(plan: WorkPlan, options: PreprocessOptions) -> list[Manifest]:
    """The manifests of an earlier run of this command on unchanged files; none if one lacks."""
    files = (source.path for source in plan.sources if source.kind != "hub")
    newest = max((Path(file).stat().st_mtime for file in files), default=0)
    manifests: list[Manifest] = []
    for prefix in options.pairs.values():
        with suppress(ShardError):
            manifest = load_manifest(prefix)
            if (
                manifest is not None
                and (manifest.plan, manifest.shard) == (plan.digest, options.shard)
                and not (manifest.skipped.count and options.on_error == "refuse")
                and manifest_path(prefix).stat().st_mtime >= newest
                and all(Path(prefix + suffix).exists() for suffix in (".bin", ".idx"))
            ):
                manifests.append(manifest)
    return manifests if len(manifests) == len(options.pairs) else []


def _prepare_tokenizer(
    folder: Path,
    given: Tokenizer | None,
    vocab_size: int | None,
    *,
    plan: WorkPlan,
    options: PreprocessOptions,
) -> Tokenizer:
    """Puts the tokenizer into the folder of unfinished work, trained there if need be."""
    tokenizer_dir = folder / "tokenizer"
    if not tokenizer_dir.exists():
        if vocab_size is not None:
            _logger.info("training a sentencepiece vocabulary of %d", vocab_size)
            given = train_sentencepiece(_sample(plan.units, options), vocab_size)
        assert given is not None
        unfinished = folder / "tokenizer.unfinished"
        with translate_os_errors(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
            given.save(unfinished)
            unfinished.rename(tokenizer_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    if options.append_eod and tokenizer.eod is None:
        raise TokenizerError(
            f"tokenizer {options.tokenizer} must name an end-of-sequence token (eos_token in its "
            "tokenizer_config.json): add it there, or pass --no-eod to end documents without one"
        )
    return tokenizer


def _sample(units: Sequence[WorkUnit], options: PreprocessOptions) -> Iterator[str]:
    """Text of evenly spaced units from the whole corpus, an equal share of each."""
    count = min(len(units), _SAMPLE_UNITS)
    for i in range(count):
        left = _SAMPLE_BYTES // count
        for item in read_unit(units[i * len(units) // count], options.reading):
            if isinstance(item, Document):
                yield item.text
                left -= len(item.utf8)
            if left <= 0:
                break


def _make_job(folder: Path, tokenizer: Tokenizer, options: PreprocessOptions) -> EncodeJob:
    return EncodeJob(
        folder=folder,
        tokenizer=folder / "tokenizer",
        # An empty document is one only if its end token remains of it.
        reading=replace(options.reading, keep_empty=options.append_eod),
        end_token=tokenizer.eod if options.append_eod else None,
        dtype=dtype_for(tokenizer.vocab_size).name,
        sides=options.sides,
        bounds=split_bounds(options.split),
        on_error=options.on_error,
    )


def _encode(job: EncodeJob, plan: WorkPlan, workers: int) -> None:
    """Encodes the units that are not finished yet."""
    left = [(number, unit) for number, unit in plan.tasks if finished_report(job, number) is None]
    if len(left) < len(plan.tasks):
        _logger.info("continuing: %d of %d units are left", len(left), len(plan.tasks))
    megabytes = sum(unit.num_bytes for _, unit in left) / 1e6
    with ProgressBar("encoding", megabytes, unit="MB") as track:
        encode_units(
            job, left, workers=workers, finished=lambda unit: track.advance(unit.num_bytes / 1e6)
        )


def _pairs(
    job: EncodeJob, plan: WorkPlan, tokenizer: Tokenizer, options: PreprocessOptions
) -> dict[str, SplitParts]:
    """What the finished units add up to, by side."""
    reports: dict[int, UnitReport] = {}
    skipped = Skipped()
    for number, unit in plan.tasks:
        report = finished_report(job, number)
        assert report is not None, unit
        reports[number] = report
        skipped = skipped.plus(Skipped(report.skipped, tuple(report.examples)))
    pairs = {
        side: SplitParts(
            [
                part_of(job, number, side=side, documents=report.sides[side].documents)
                for number, report in reports.items()
            ],
            _manifest(
                side,
                list(reports.values()),
                skipped,
                plan=plan,
                tokenizer=tokenizer,
                options=options,
            ),
        )
        for side in options.sides
    }
    _refuse_empty([pair.manifest for pair in pairs.values()], options)
    return pairs


def _manifest(
    side: str,
    reports: Sequence[UnitReport],
    skipped: Skipped,
    *,
    plan: WorkPlan,
    tokenizer: Tokenizer,
    options: PreprocessOptions,
) -> Manifest:
    tallies = [report.sides[side] for report in reports]
    return Manifest(
        documents=sum(tally.documents for tally in tallies),
        tokens=sum(tally.tokens for tally in tallies),
        text_bytes=sum(tally.text_bytes for tally in tallies),
        cut_documents=sum(tally.cut_documents for tally in tallies),
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod if options.append_eod else None,
        dtype=dtype_for(tokenizer.vocab_size).name,
        tokenizer=TokenizerRecord(
            tokenizer.kind, tokenizer.fingerprint, f"{Path(options.prefix).name}.tokenizer"
        ),
        sha256={},
        sources=tuple(SourceRecord(source.path, source.size) for source in plan.sources),
        skipped=skipped,
        ignored=plan.ignored,
        split=SplitRecord(side, options.split) if side else None,
        shard=options.shard,
        plan=plan.digest,
    )


def _refuse_empty(manifests: Sequence[Manifest], options: PreprocessOptions) -> None:
    # A part of many may be empty: there may be more parts than units.
    if options.shard is None and not any(manifest.documents for manifest in manifests):
        skipped = manifests[0].skipped
        why = f", and {skipped.count} skipped ({skipped.examples[0]})" if skipped.count else ""
        raise CorpusError(
            f"the input {' '.join(options.inputs)} must hold at least one document, but holds none"
            f"{why}: check the files and --text-key"
        )


def _log_result(manifests: Sequence[Manifest], options: PreprocessOptions) -> None:
    for manifest, prefix in zip(manifests, options.pairs.values(), strict=True):
        _logger.info("%s: %d documents, %d tokens", prefix, manifest.documents, manifest.tokens)
        if manifest.cut_documents:
            _logger.info("%s: %d documents were too long, cut", prefix, manifest.cut_documents)
        if manifest.documents == 0:
            _logger.warning("%s holds no document, so nothing can be read from it", prefix)
    skipped, ignored = manifests[0].skipped, manifests[0].ignored
    for example in skipped.examples[:3]:
        _logger.warning("skipped %s", example)
    if skipped.count:
        _logger.warning("skipped %d in all; the manifest names the first", skipped.count)
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.items())
        _logger.info("files of no known kind, left out: %s", kinds)
