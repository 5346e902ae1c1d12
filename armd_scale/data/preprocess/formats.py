"""Formats of input files, by the suffixes of their names."""

import codecs
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from armd_scale.data.preprocess.compression import compression_suffix
from armd_scale.errors import CorpusError

SourceKind: TypeAlias = Literal["lines", "csv", "text", "parquet", "arrow", "hub"]
"""The reader of a source; `lines` are JSON lines."""

KIND_OF_SUFFIX: Mapping[str, SourceKind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Formats that have a reader of their own."""
TEXT_SUFFIXES = frozenset(
    """
    .txt .text .md .rst .tex .html .htm .xml .srt .py .pyi .pyx .c .h .cc .cpp .cxx .hpp
    .cu .cuh .rs .go .java .kt .scala .cs .swift .m .js .jsx .ts .tsx .rb .php .pl .pm .lua .r .jl
    .hs .ml .lisp .el .vim .sh .bash .bat .ps1 .sql .css .scss .yaml .yml .toml .ini .cfg .cmake
    .proto
    """.split()  # noqa: SIM905 - as a list this would be forty lines
)
"""Files that are read as plain text when they are found in a folder.

A file that is named, or matched by a glob, is read whatever its suffix.
"""
_ARCHIVE_SUFFIXES = frozenset(
    """
    .zip .7z .rar .tar .tgz .taz .tbz .tbz2 .tb2 .txz .tlz .tzst .cpio .iso .jar .whl .cab .arj
    .lzh .ar .deb .rpm .xar .wim .warc
    """.split()  # noqa: SIM905
)
_UNKNOWN_COMPRESSIONS = frozenset(
    """
    .lz4 .br .z .lzma .lz .lzo .lzop .sz .snappy .zz .zlib .deflate .lrz .rz .zpaq .bz .s2
    """.split()  # noqa: SIM905
)


# Codes of languages too, which name the sides of a parallel corpus.
_AMBIGUOUS_SUFFIXES = frozenset((".ar", ".br", ".sz"))
_HEAD_BYTES = 4096


def content_suffix(name: str) -> str:
    """Return the suffix below a compression suffix, in lower case: .jsonl of a.JSONL.gz."""
    return PurePath(name[: len(name) - len(compression_suffix(name))]).suffix.lower()


def source_kind(path: str) -> SourceKind:
    """Return how a file is read, from its suffix; plain text if the suffix is not known."""
    return KIND_OF_SUFFIX.get(content_suffix(path), "text")


def has_known_suffix(name: str) -> bool:
    """Return whether the suffix of a name is that of a format that can be read."""
    suffix = content_suffix(name)
    return suffix in KIND_OF_SUFFIX or suffix in TEXT_SUFFIXES


def is_packed_data(name: str) -> bool:
    """Return whether a name is that of data packed in a way that cannot be read: `a.jsonl.lz4`.

    Other archives in a folder may be anything: a wheel, say, among the files of a program.
    """
    suffix = content_suffix(name)
    if suffix not in _ARCHIVE_SUFFIXES | _UNKNOWN_COMPRESSIONS:
        return compression_suffix(name) != "" and source_kind(name) in ("parquet", "arrow")
    packed = PurePath(name[: name.lower().rindex(suffix)]).suffix.lower()
    return packed == ".txt" or packed in KIND_OF_SUFFIX


def check_supported(path: str) -> None:
    """Check by its name that a file is no archive, and not compressed in a way that is not known.

    Its bytes would otherwise be read as text, or a part of the corpus would be left out.

    Raises:
        CorpusError: it is one of them.
    """
    suffix = content_suffix(path)
    if suffix in _AMBIGUOUS_SUFFIXES and _is_text(path):
        return
    if suffix in _ARCHIVE_SUFFIXES:
        raise CorpusError(
            f"{path} must be a single file of text or a table, but is an archive ({suffix}): "
            "unpack it, and give the folder or the files that were in it"
        )
    if suffix in _UNKNOWN_COMPRESSIONS or (
        compression_suffix(path) and source_kind(path) in ("parquet", "arrow")
    ):
        found = suffix if suffix in _UNKNOWN_COMPRESSIONS else f"a compressed {suffix}"
        raise CorpusError(
            f"{path} must be uncompressed, or text, JSON lines, CSV or TSV compressed as .gz .zst "
            f".bz2 or .xz, but is {found}: decompress it, or compress it in one of these ways"
        )


def _is_text(path: str) -> bool:
    """Return whether a file starts with UTF-8 text."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
        # Not final: the last character may be cut.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(head) and b"\0" not in head and not head.startswith(b"!<arch>")
