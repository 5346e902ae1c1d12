import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armd_scale.data.preprocess.options import PreprocessOptions
from armd_scale.data.tokenizer_training import train_sentencepiece
from tests.support.corpus import MakeOptions


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds: 13 work units, 400 documents and three invalid ones."""
    folder = tmp_path_factory.mktemp("corpus") / "files"
    folder.mkdir()
    texts = [f"text number {i} of the corpus\n" * (i % 7) for i in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join([*lines[:100], "broken", *lines[100:120]]))
    pq.write_table(pa.table({"text": texts[120:320]}), folder / "b.parquet", row_group_size=20)
    (folder / "c.jsonl").write_text("\n".join([*lines[320:390], '{"body": 1}']))
    for i, text in enumerate(texts[390:]):
        (folder / f"d{i}.txt").write_text(text)
    (folder / "e.txt").write_bytes(b"\xff")
    train_sentencepiece(texts, 300).save(folder.parent / "tokenizer")
    return folder


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> MakeOptions:
    def make(name: str = "out", **changes: object) -> PreprocessOptions:
        arguments: dict[str, object] = {
            "inputs": (str(corpus),),
            "output": str(tmp_path / name),
            "tokenizer": str(corpus.parent / "tokenizer"),
            **changes,
        }
        return PreprocessOptions(**arguments)  # type: ignore[arg-type]

    return make
