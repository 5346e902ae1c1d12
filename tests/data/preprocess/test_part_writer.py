"""The part files of a work unit: sequences, and the documents that start in it."""

from pathlib import Path

import numpy as np

from armd_scale.data.preprocess.documents import Document, ReaderOptions
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.part_writer import PartWriter

START, END = 8, 9


def make_job(folder: Path) -> EncodeJob:
    return EncodeJob(
        folder=folder,
        tokenizer=folder,
        fingerprint="",
        reader=ReaderOptions(),
        start_tokens=(START,),
        end_token=END,
        dtype="uint16",
        split_names=("train", "valid"),
        split_bounds=(1, 2),
        special_tokens="text",
        on_error="fail",
    )


def test_a_document_is_one_sequence_and_gets_its_start_and_end_tokens_once(tmp_path: Path):
    job = make_job(tmp_path)
    written: list[int] = []
    with PartWriter(job, 3, max_sequence_tokens=6) as writer:
        for split, is_start, is_end, length in [
            ("train", False, False, 2),  # continues a document of the unit before
            ("train", False, True, 1),
            ("valid", True, True, 0),
            ("train", True, False, 3),
            ("train", False, False, 2),
            ("train", False, False, 2),  # the sequence would have eight tokens
            ("train", False, True, 1),
            ("train", True, False, 1),  # goes on in the unit after
        ]:
            document = Document("", b"", b"", is_start, is_end)
            written.append(writer.write(split, document, np.full(length, 5, np.int32)))
    assert written == [2, 2, 2, 4, 2, 2, 2, 2]
    expected = {
        "train": ([5, 5, 5, END, START, *[5] * 8, END, START, 5], [4, 6, 4, 2], [1, 3]),
        "valid": ([START, END], [2], [0]),
    }
    for split, (tokens, lengths, documents) in expected.items():
        part = job.part(3, split)
        assert np.fromfile(part.bin_path, np.uint16).tolist() == tokens
        assert np.fromfile(part.lengths_path, np.int32).tolist() == lengths
        assert np.fromfile(part.documents_path, np.int64).tolist() == documents
        assert writer.num_sequences(split) == len(lengths)
