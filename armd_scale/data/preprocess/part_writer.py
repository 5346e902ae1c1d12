"""Write the part files of one work unit: for each split its tokens, sequences and documents."""

from contextlib import ExitStack
from types import TracebackType
from typing import final

import numpy as np

from armd_scale.data.indexed_format import MAX_SEQUENCE_TOKENS, IndexedPart
from armd_scale.data.preprocess.documents import Document
from armd_scale.data.preprocess.encode_job import EncodeJob


@final
class PartWriter:
    """The open part files of a unit, as a context manager.

    Args:
        job: names the files, the token width and the end token.
        unit_index: index of the unit in the whole corpus.
        max_sequence_tokens: length at which the sequence of a document is divided; a chunk must be
            shorter.
    """

    def __init__(
        self, job: EncodeJob, unit_index: int, *, max_sequence_tokens: int = MAX_SEQUENCE_TOKENS
    ) -> None:
        dtype = np.dtype(job.dtype)
        start_tokens = np.array(job.start_tokens, dtype)
        end_tokens = np.array([] if job.end_token is None else [job.end_token], dtype)
        self._stack = ExitStack()
        self._splits = {
            name: _SplitWriter(
                job.part(unit_index, name), start_tokens, end_tokens, max_sequence_tokens
            )
            for name in job.split_names
        }

    def __enter__(self) -> "PartWriter":
        for split in self._splits.values():
            split.open(self._stack)
        return self

    def write(self, split_name: str, document: Document, ids: np.ndarray) -> int:
        """Append a document, or a chunk of one, to a split.

        Args:
            split_name: the split.
            document: says whether the document starts or ends here, where the start tokens and the
                end token of the job are added.
            ids: token ids, [num_tokens].

        Returns:
            Number of tokens that were written, those included.
        """
        return self._splits[split_name].write(document, ids)

    def num_sequences(self, split_name: str) -> int:
        """Return the number of sequences of a split, once the block has ended."""
        return self._splits[split_name].num_sequences

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for split in self._splits.values():
                    split.end_sequence()
        finally:
            self._stack.__exit__(kind, error, trace)


@final
class _SplitWriter:
    """The part files of one split.

    A document is one sequence as long as it is in one unit and its length can be stored: programs
    that read the format, Megatron among them, shuffle sequences.
    """

    def __init__(
        self,
        part: IndexedPart,
        start_tokens: np.ndarray,
        end_tokens: np.ndarray,
        max_sequence_tokens: int,
    ) -> None:
        self._part, self._start, self._end = part, start_tokens, end_tokens
        self._max_sequence_tokens = max_sequence_tokens
        self.num_sequences = 0
        self._num_open_tokens: int | None = None  # of the sequence that has not ended; None: none

    def open(self, stack: ExitStack) -> None:
        self._tokens = stack.enter_context(self._part.bin_path.open("wb"))
        self._lengths = stack.enter_context(self._part.lengths_path.open("wb"))
        self._documents = stack.enter_context(self._part.documents_path.open("wb"))

    def write(self, document: Document, ids: np.ndarray) -> int:
        content = ids.astype(self._end.dtype).tobytes()
        num_tokens = ids.size
        if document.is_start:
            content = self._start.tobytes() + content
            num_tokens += self._start.size
        if document.is_end:
            content += self._end.tobytes()
            num_tokens += self._end.size
        if document.is_start:
            self.end_sequence()
            self._documents.write(np.int64(self.num_sequences).tobytes())
        elif (self._num_open_tokens or 0) + num_tokens > self._max_sequence_tokens:
            self.end_sequence()
        self._num_open_tokens = (self._num_open_tokens or 0) + num_tokens
        self._tokens.write(content)
        if document.is_end:
            self.end_sequence()
        return num_tokens

    def end_sequence(self) -> None:
        """Write the length of the open sequence, if there is one."""
        if self._num_open_tokens is not None:
            self._lengths.write(np.int32(self._num_open_tokens).tobytes())
            self.num_sequences += 1
            self._num_open_tokens = None
