"""Documents out of a dataset of the Hugging Face hub, streamed by `datasets`.

A name is written NAME[:CONFIG[:SPLIT]]; the split is `train` unless given.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    documents,
    one_line_reason,
)
from armd_scale.errors import CorpusError

if TYPE_CHECKING:
    from armd_scale.data.preprocess.sources import WorkUnit


def num_hub_shards(name: str) -> int:
    """Files that a hub dataset is stored in, which are its units of work.

    Raises:
        CorpusError: the dataset cannot be had.
    """
    return _open_hub(name).num_shards


def read_hub(
    name: str, unit: "WorkUnit", reading: ReaderOptions
) -> Iterator[Document | SkippedDocument]:
    """Rows of a unit's shards of the dataset."""
    key = reading.text_key
    dataset = _open_hub(name)
    stop = dataset.num_shards if unit.stop is None else unit.stop
    for index in range(unit.start, stop):
        for row, record in enumerate(_rows(name, dataset.shard(dataset.num_shards, index))):
            try:
                if key not in record:
                    raise UnreadableError(f"no key {key!r} (its keys: {', '.join(record)[:200]})")
                yield from documents(record[key], reading)
            except UnreadableError as error:
                yield SkippedDocument(f"{name} shard {index}", str(error), row=row)


def _rows(name: str, dataset: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset
    except Exception as error:  # as in _open_hub
        raise CorpusError(
            f"dataset {name} stopped coming ({one_line_reason(error)}): run the same command again, "
            "which keeps what is finished"
        ) from error


def _open_hub(name: str) -> Any:
    import datasets

    path, config, split = (*name.split(":"), "", "")[:3]
    try:
        return datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the library and its network stack raise a dozen unrelated types
        raise CorpusError(
            f"input {name} is no file, folder or glob here, and no dataset of that name can be had "
            f"({one_line_reason(error)}): check the name, written NAME[:CONFIG[:SPLIT]]"
        ) from error
