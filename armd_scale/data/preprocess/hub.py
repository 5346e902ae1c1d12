"""Read documents from a dataset of the Hugging Face hub, streamed by the `datasets` library.

A dataset is written NAME[:CONFIG[:SPLIT]]; the split is `train` if it is left out.
"""

from collections.abc import Iterator
from typing import Any

from armd_scale.data.preprocess.documents import (
    Document,
    ReaderOptions,
    SkippedDocument,
    UnreadableError,
    make_documents,
    one_line_reason,
)
from armd_scale.errors import CorpusError

_MAX_KEYS_CHARACTERS = 200


def num_hub_shards(name: str) -> int:
    """Return the number of files that a hub dataset is stored in.

    Raises:
        CorpusError: the dataset cannot be loaded.
    """
    return _open_dataset(name).num_shards


def read_hub(
    name: str, options: ReaderOptions, *, start: int = 0, stop: int | None = None
) -> Iterator[Document | SkippedDocument]:
    """Read the rows of the dataset's shards `start` to `stop`; a `stop` of None is the end.

    Raises:
        CorpusError: the dataset cannot be loaded, or the connection failed while streaming.
    """
    key = options.text_key
    dataset = _open_dataset(name)
    num_shards: int = dataset.num_shards
    for index in range(start, num_shards if stop is None else stop):
        for row, record in enumerate(_rows(name, dataset.shard(num_shards, index))):
            try:
                if key not in record:
                    keys = ", ".join(record)[:_MAX_KEYS_CHARACTERS]
                    raise UnreadableError(f"no key {key!r} (its keys: {keys})", "no such key")
                yield from make_documents(record[key], options)
            except UnreadableError as error:
                where = f"{name} shard {index}"
                yield SkippedDocument(where, str(error), error.reason_class, row=row)


def _rows(name: str, shard: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from shard
    except Exception as error:  # any type, for the reason given in _open_dataset
        raise CorpusError(
            f"dataset {name} failed while streaming ({one_line_reason(error)}): run the same "
            "command again; finished work is kept"
        ) from error


def _open_dataset(name: str) -> Any:
    # Imported here: it takes about a second, and most corpora are files.
    import datasets  # pyright: ignore[reportMissingTypeStubs]

    library: Any = datasets  # its annotations are incomplete
    path, config, split = (*name.split(":"), "", "")[:3]
    try:
        return library.load_dataset(path, config or None, split=split or "train", streaming=True)
    except Exception as error:
        # The library, its file systems and its HTTP client raise a dozen types without a common
        # base class. All of them mean the same to the user.
        raise CorpusError(
            f"input {name} is neither a local path nor a Hugging Face dataset that can be loaded "
            f"({one_line_reason(error)}): check the name, written NAME[:CONFIG[:SPLIT]]"
        ) from error
