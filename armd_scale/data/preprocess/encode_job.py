"""`EncodeJob`: the settings that all work units of a run share, and the names of their files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, final

from armd_scale.data.indexed_format import IndexedPart
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.tokenizer import SpecialTokens

OnError: TypeAlias = Literal["skip-documents", "skip", "fail"]
"""What to do about invalid input.

`skip-documents` skips and counts documents that are invalid, and ends the run at a file that cannot
be read or is damaged from some place on. `skip` skips what is unreadable of such files too. `fail`
ends the run at either.
"""


@final
@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Settings of encoding; pickled once to every worker."""

    folder: Path
    """The workspace, where the part files go."""
    tokenizer: Path
    """Folder of the tokenizer."""
    fingerprint: str
    """That of the tokenizer."""
    reader: ReaderOptions
    start_tokens: tuple[int, ...]
    """Tokens in front of every document."""
    end_token: int | None
    """Token appended to every document; None: none."""
    dtype: str
    """NumPy name of the width of a token."""
    split_names: tuple[str, ...]
    """Names of the splits; one empty name without a split."""
    split_bounds: tuple[int, ...]
    """Upper end of the hash range of each split; see `splits.split_bounds`."""
    special_tokens: SpecialTokens
    """Whether special tokens that are written out in a text become their ids."""
    on_error: OnError

    def part(
        self, unit_index: int, split_name: str, *, num_sequences: int = 0, num_documents: int = 0
    ) -> IndexedPart:
        """Return the part files of one split of a unit; see `IndexedPart`."""
        stem = f"{unit_index:07d}{split_name}"
        return IndexedPart(
            bin_path=self.folder / f"{stem}.bin",
            lengths_path=self.folder / f"{stem}.lengths",
            lengths_offset=0,
            num_sequences=num_sequences,
            documents_path=self.folder / f"{stem}.documents",
            documents_offset=0,
            num_documents=num_documents,
        )

    def report_path(self, unit_index: int) -> Path:
        """Return the path of a unit's report."""
        return self.folder / f"{unit_index:07d}.json"
