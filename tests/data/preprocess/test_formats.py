"""Formats by the names of files, and the names that are refused."""

from pathlib import Path

import pytest

from armd_scale.data.preprocess.formats import source_kind
from armd_scale.data.preprocess.sources import find_sources
from armd_scale.errors import CorpusError
from tests.support.corpus import json_lines, read


def test_the_kind_follows_the_suffix_below_the_compression_suffix():
    assert source_kind("a/b.JSONL.gz") == "lines"
    assert source_kind("a/b.jsonl.XZ") == "lines"
    assert [
        source_kind(f"x{end}") for end in (".parquet", ".arrow", ".txt.zst", "", ".TSV.bz2")
    ] == [
        "parquet",
        "arrow",
        "text",
        "text",
        "csv",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.zip", r"an archive \(.zip\): unpack it"),
        ("a.tar.gz", r"an archive \(.tar\): unpack it"),
        ("a.TGZ", r"an archive \(.tgz\): unpack it"),
        ("a.tar.xz", r"an archive \(.tar\): unpack it"),
        ("a.7z", r"an archive \(.7z\): unpack it"),
        ("a.jsonl.lz4", "is .lz4: decompress it"),
        ("a.txt.br", "is .br: decompress it"),
        ("a.Z", "is .z: decompress it"),
        ("a.parquet.gz", "is a compressed .parquet: decompress it"),
    ],
)
def test_archives_and_unknown_compressions_are_refused_by_name(
    tmp_path: Path, name: str, found: str
):
    path = tmp_path / name
    path.write_bytes(b"\x8b\xff" + json_lines(["text that must not be read"]))
    for spec in (path, tmp_path / "a.*"):
        with pytest.raises(CorpusError, match=rf"{name} must be .*, but {found}|{found}"):
            find_sources([str(spec)])


def test_packed_data_in_a_folder_is_refused_and_other_archives_are_ignored(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.whl").write_bytes(b"PK")
    assert find_sources([str(tmp_path)])[1] == {".whl": 1}
    assert read(tmp_path) == (["a"], [])
    for name in ("b.jsonl.lz4", "b.csv.zip", "b.txt.tar.gz"):
        (tmp_path / name).write_bytes(b"packed")
        with pytest.raises(CorpusError, match=f"{tmp_path}/{name} must be"):
            find_sources([str(tmp_path)])
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["corpus.ar-en.ar", "tatoeba.br"])
def test_a_text_whose_suffix_is_a_language_is_read(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text("مرحبا\n")
    assert read(path) == (["مرحبا\n"], [])
    path.write_bytes(b"!<arch>\nx" if name.endswith("ar") else b"\x8b\xff\x00")
    with pytest.raises(CorpusError, match="but is"):
        read(path)
