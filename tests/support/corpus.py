"""Small corpora for preprocessing, and what readers and results say about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from megatron.core.datasets.indexed_dataset import IndexedDataset

from armd_scale.data.preprocess.documents import ReaderOptions, SkippedDocument
from armd_scale.data.preprocess.options import PreprocessOptions
from armd_scale.data.preprocess.readers import read_unit
from armd_scale.data.preprocess.sources import find_sources
from armd_scale.data.preprocess.work_units import make_work_units
from armd_scale.data.tokenizer import load_tokenizer

TEXTS = ["one", "two\nlines", "drei — ünïcode 🙂", "", "last"]
SPLIT = ("0.6", "0.2", "0.2")
MakeOptions: TypeAlias = Callable[..., PreprocessOptions]
"""Makes the options of a run from the name of its result and changed fields."""


def read(*inputs: object, **changes: object) -> tuple[list[str], list[str]]:
    """Read inputs as preprocessing does.

    Args:
        inputs: paths and globs.
        changes: fields of ReaderOptions.

    Returns:
        The texts of the documents, and the descriptions of what was skipped.
    """
    sources, _ = find_sources([str(name) for name in inputs])
    options = ReaderOptions(**changes)  # type: ignore[arg-type]
    items = [
        item for unit in make_work_units(sources, options) for item in read_unit(unit, options)
    ]
    return (
        [item.text for item in items if not isinstance(item, SkippedDocument)],
        [str(item) for item in items if isinstance(item, SkippedDocument)],
    )


def json_lines(texts: list[str], key: str = "text") -> bytes:
    """Return the content of a JSON lines file with these texts."""
    return "".join(json.dumps({key: text}) + "\n" for text in texts).encode()


def result_files(folder: Path) -> dict[str, bytes]:
    """Return every file of a result by name, after a check that no workspace is left."""
    assert not list(folder.glob("*.work"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def document_texts(prefix: Path, *, tokenizer: str | None = None) -> list[str]:
    """Return the decoded documents of a dataset, read by Megatron.

    Args:
        prefix: of the dataset.
        tokenizer: name of the tokenizer's folder beside it; None: that of an unsplit dataset.
    """
    decoder = load_tokenizer(prefix.with_name(tokenizer or f"{prefix.name}.tokenizer"))
    dataset = IndexedDataset(str(prefix))
    documents: list[Any] = [dataset[i] for i in range(len(dataset))]
    return [decoder.decode(document.tolist()) for document in documents]
