"""Documents out of a dataset of the Hugging Face hub, streamed by `datasets`.

A name is written NAME[:CONFIG[:SPLIT]]; the split is `train` unless given.
"""

from collections.abc import Iterator
from typing import Any

from armd_scale.data.documents import Bad, Document, Reading, Unreadable, documents
from armd_scale.errors import CorpusError


def num_hub_shards(name: str) -> int:
    """Files that a hub dataset is stored in, which are its units of work.

    Raises:
        CorpusError: the dataset cannot be had.
    """
    return _open_hub(name).num_shards


def read_hub(
    name: str, start: int, stop: int | None, reading: Reading
) -> Iterator[Document | Bad]:
    """Rows of shards [start, stop) of a dataset in the form that `datasets` streams it."""
    dataset = _open_hub(name)
    for index in range(start, dataset.num_shards if stop is None else stop):
        for row, record in enumerate(dataset.shard(dataset.num_shards, index)):
            try:
                if reading.text_key not in record:
                    raise Unreadable(f"no key {reading.text_key!r} (its keys: {', '.join(record)})")
                if record[reading.text_key] is None:
                    raise Unreadable(f"the key {reading.text_key!r} holds null, not a string")
                yield from documents(record[reading.text_key], reading)
            except Unreadable as error:
                yield Bad(f"{name} shard {index}", str(error), row=row)


def _open_hub(name: str) -> Any:
    import datasets

    path, config, split = (*name.split(":"), "", "")[:3]
    try:
        return datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    except Exception as error:  # the library and its network stack raise some dozen unrelated types
        reason = " ".join(str(error).split())[:200]
        raise CorpusError(
            f"input {name} is no file, folder or glob here, and no dataset of that name can be had "
            f"({type(error).__name__}: {reason}): check the name, written NAME[:CONFIG[:SPLIT]]"
        ) from error
