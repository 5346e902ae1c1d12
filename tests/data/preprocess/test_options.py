"""Options that are invalid."""

import pytest

from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import CorpusError, TokenizerError
from tests.support.corpus import MakeOptions


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"workers": 0}, CorpusError, r"--workers must be >= 1 .got 0"),
        ({"split": ("0.9", "0.2")}, CorpusError, r"fractions of sum 1 .*got 0.9,0.2"),
        ({"split": ("x", "1")}, CorpusError, "got x,1"),
        ({"split": ("1",)}, CorpusError, "got 1"),
        ({"split": ("1.5", "-0.5")}, CorpusError, "got 1.5,-0.5"),
        ({"shard": ShardIndex(2, 2)}, CorpusError, "i from 0 to n-1 .got 2/2"),
        (
            {"reader": ReaderOptions(max_document_bytes=10)},
            CorpusError,
            "--max-document-bytes must be >= 1024 .got 10",
        ),
        ({"inputs": ("missing.jsonl",)}, CorpusError, "input missing.jsonl does not exist"),
        ({"tokenizer": "missing"}, TokenizerError, "tokenizer missing cannot be read"),
        (
            {"tokenizer": "train:sentencepiece:300", "shard": ShardIndex(0, 2)},
            TokenizerError,
            "must use one tokenizer: train it first",
        ),
    ],
)
def test_invalid_options_raise_errors_that_name_them(
    options: MakeOptions, changes: dict[str, object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        preprocess(options(**changes))
