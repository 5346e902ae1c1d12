"""Write the part files of one work unit: for each split the tokens and the document lengths."""

from contextlib import ExitStack
from io import BufferedWriter
from types import TracebackType
from typing import final

import numpy as np

from armd_scale.data.preprocess.encode_job import EncodeJob


@final
class PartWriter:
    """The open part files of a unit, as a context manager.

    Args:
        job: names the files, the token width and the end token.
        unit_index: index of the unit in the whole corpus.
    """

    def __init__(self, job: EncodeJob, unit_index: int) -> None:
        self._dtype = np.dtype(job.dtype)
        end_tokens = [] if job.end_token is None else [job.end_token]
        self._end = np.array(end_tokens, self._dtype)
        self._parts = {
            name: job.part(unit_index, name, num_documents=0) for name in job.split_names
        }
        self._stack = ExitStack()
        self._files: dict[str, tuple[BufferedWriter, BufferedWriter]] = {}

    def __enter__(self) -> "PartWriter":
        for name, part in self._parts.items():
            tokens = self._stack.enter_context(part.bin_path.open("wb"))
            lengths = self._stack.enter_context(part.lengths_path.open("wb"))
            self._files[name] = tokens, lengths
        return self

    def write(self, split_name: str, ids: np.ndarray) -> int:
        """Append a document and its end token to a split.

        Args:
            split_name: the split.
            ids: token ids, [num_tokens].

        Returns:
            Length of the document in tokens, end token included.
        """
        tokens, lengths = self._files[split_name]
        num_tokens = ids.size + self._end.size
        tokens.write(ids.astype(self._dtype).tobytes() + self._end.tobytes())
        lengths.write(np.int32(num_tokens).tobytes())
        return num_tokens

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
