"""Damaged and crafted files: every artefact is read, or refused in one sentence.

Mutations are drawn from a seed; FUZZ_MUTATIONS=3600 in the environment draws more of them. Those of
a checkpoint are listed in its manifest anew, so that the readers themselves must notice what is
wrong, not only the hashes.
"""

import gzip
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.store import MANIFEST, write_manifest
from armd_scale.config.load import load_recipe
from armd_scale.data.preprocess.memory_limit import allocated_bytes, limit_allocations
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.windows import TokenWindows
from armd_scale.errors import ArmdError
from armd_scale.fault.run_lock import RunLock
from armd_scale.metrics.jsonl import JsonlFile, JsonlWriter
from armd_scale.report.write import write_report
from tests.support.cli import tiny_recipe, write_recipe, write_text
from tests.support.corpus import json_lines
from tests.support.corpus import read as read_corpus
from tests.support.eval_data import write_run
from tests.support.hf_folders import write_byte_tokenizer, write_folder

pytestmark = pytest.mark.slow(minutes=1)

NUM_MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "60"))
"""Of each file; 60 take a minute for all tests, and 3600 an hour."""
MAX_BYTES = 2 << 30
"""Allocations beyond these fail, with an error that is not of the project's own."""
VALUES = (
    *("null", "true", "-1", "0", "1.5", "1e999", "NaN", "9" * 23, "[]", "{}", '"x"', '""'),
    *('"\\ud800"', '"../a"', '"/etc/passwd"', '"a\\u0000b"', "[" * 2000, '{"a": ' * 2000),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip a bit, cut, repeat or insert bytes, or replace one value of a text."""
    match rng.randrange(5):
        case 0:
            index = rng.randrange(len(data))
            return data[:index] + bytes([data[index] ^ (1 << rng.randrange(8))]) + data[index + 1 :]
        case 1:
            return data[: rng.randrange(len(data))]
        case 2:
            start = rng.randrange(len(data))
            stop = min(len(data), start + rng.randrange(1, 40))
            return data[:stop] + data[start:stop] * rng.randrange(1, 4) + data[stop:]
        case 3:
            index = rng.randrange(len(data))
            return data[:index] + rng.randbytes(rng.randrange(1, 9)) + data[index:]
    # One value of JSON or YAML: what stands between a colon or bracket and the next comma or end.
    values = [m.span(1) for m in re.finditer(rb"[:\[,]\s*([^\s,\[\]{}]+)", data[:20_000])]
    if not values:
        return data[:-1]
    start, stop = rng.choice(values)
    return data[:start] + rng.choice(VALUES).encode() + data[stop:]


def assert_refused_or_read(path: Path, read: Callable[[], object], *, seed: int) -> None:
    """Mutate a file, read it in less than 2 GiB of memory, and put it back."""
    original = path.read_bytes()
    rng = random.Random(f"{path.name} {seed}")
    try:
        path.write_bytes(mutate(original, rng))
        with limit_allocations(MAX_BYTES, base_bytes=allocated_bytes()):
            read()
    except ArmdError as error:
        message = str(error)
    else:
        message = ""
    finally:
        path.write_bytes(original)
    assert "\n" not in message
    assert len(message) < 3000


@pytest.fixture(scope="module")
def run(groups: ProcessGroupCollection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("fuzz"), groups)


CHECKPOINT_FILES = (
    "recipe.yaml",
    "state.json",
    "weights/index.json",
    "weights/rank_00000.safetensors",
    "tokenizer/tokenizer.model",
)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint(groups: ProcessGroupCollection, run: Path, name: str) -> None:
    folder = run / "run" / "checkpoints" / "step_00000003"
    manifest = (folder / MANIFEST).read_bytes()

    def read() -> None:
        (folder / MANIFEST).unlink()
        write_manifest(folder, step=3)
        load_network(open_checkpoint(folder), groups=groups)

    try:
        for seed in range(NUM_MUTATIONS):
            assert_refused_or_read(folder / name, read, seed=seed)
    finally:
        (folder / MANIFEST).write_bytes(manifest)


def test_a_manifest(run: Path) -> None:
    folder = run / "run" / "checkpoints" / "step_00000003"
    original = (folder / MANIFEST).read_text()
    values = json.loads(original)
    del values["sha256"]  # every change would be noticed by this one
    (folder / MANIFEST).write_text(json.dumps(values, indent=1))
    try:
        for seed in range(4 * NUM_MUTATIONS):
            assert_refused_or_read(folder / MANIFEST, lambda: open_checkpoint(folder), seed=seed)
    finally:
        (folder / MANIFEST).write_text(original)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_shards(run: Path, suffix: str) -> None:
    def read() -> None:
        windows = TokenWindows(str(run / "valid"), 16, vocab_size=10**9)
        for index in range(min(windows.num_windows, 3)):
            tokens = windows.window(index)
            assert tokens.shape == (17,)
            assert tokens.dtype == np.int64

    for seed in range(2 * NUM_MUTATIONS):
        assert_refused_or_read(Path(f"{run / 'valid'}{suffix}"), read, seed=seed)


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "log.txt", "lock.json"])
def test_a_run_folder(tmp_path: Path, name: str) -> None:
    """What a run leaves behind is never refused: a report is drawn, and the run goes on."""
    write_files_of_a_run(tmp_path)
    original = (tmp_path / name).read_bytes()
    for seed in range(2 * NUM_MUTATIONS):
        (tmp_path / name).write_bytes(mutate(original, random.Random(f"{name} {seed}")))
        with limit_allocations(MAX_BYTES, base_bytes=allocated_bytes()):
            write_report([tmp_path])
            JsonlWriter(tmp_path / "metrics.jsonl", last_step=3).close()
            JsonlFile(tmp_path / "events.jsonl").close()
            RunLock(tmp_path, watch_seconds=0.001).release()


def write_files_of_a_run(folder: Path) -> None:
    write_recipe(tiny_recipe(folder, "text"), folder / "recipe.yaml")
    time = "2026-01-01T10:00:00.000"
    metrics = [{"step": step, "loss": 2.0 / step, "tokens": 64 * step} for step in (1, 2, 3)]
    events = [{"time": time, "event": event, "step": 0} for event in ("start", "end")]
    for name, lines in (("metrics.jsonl", metrics), ("events.jsonl", events)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.txt").write_text("2026-01-01 10:00:00,000 step 1\n")
    (folder / "lock.json").write_text(json.dumps({"host": "node07", "pid": 812, "token": "a"}))


def test_a_recipe(tmp_path: Path) -> None:
    path = write_recipe(tiny_recipe(tmp_path, write_text(tmp_path / "text")), tmp_path / "r.yaml")
    for seed in range(6 * NUM_MUTATIONS):
        assert_refused_or_read(path, lambda: load_recipe(path), seed=seed)


CORPUS_FILES = ("a.parquet", "b.parquet", "a.arrow", "b.arrow", "a.jsonl.gz", "a.jsonl.zst")


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_a_corpus(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_corpus_file(path)

    def read() -> None:
        texts, skipped = read_corpus(path)
        assert sum(map(len, texts)) < 1 << 20
        assert all(line.startswith(str(path)) for line in skipped)

    for seed in range(4 * NUM_MUTATIONS):
        assert_refused_or_read(path, read, seed=seed)


def write_corpus_file(path: Path) -> None:
    """Write compressed columns, with the values of `b` stored once, and compressed lines."""
    texts = ["one", "two\nlines", "drei — ünïcode 🙂", "", "last"] * 20
    column = pa.array(texts)
    table = pa.table({"text": column.dictionary_encode() if path.stem == "b" else column})
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd", use_dictionary=path.stem == "b")
    elif path.suffix == ".arrow":
        open_writer = pa.ipc.new_file if path.stem == "b" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with open_writer(path, table.schema, options=options) as writer:
            writer.write_table(table)
    else:
        compress = gzip.compress if path.suffix == ".gz" else zstandard.compress
        path.write_bytes(compress(json_lines(texts)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_hugging_face_folder(
    groups: ProcessGroupCollection, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("hf") / "llama", "llama")
    if name == "tokenizer.json":
        write_byte_tokenizer(folder, ["a text"], adds_bos=True)

    def read() -> None:
        if name == "tokenizer.json":
            load_tokenizer(folder).encode_batch(["a text"])
            return
        source = HfCheckpoint(folder, ArmdSettings())
        weights = HfWeights(source, groups)
        for tensor in weights.tensors(None):
            weights.build(tensor, dtype=None)

    for seed in range(2 * NUM_MUTATIONS):
        assert_refused_or_read(folder / name, read, seed=seed)
