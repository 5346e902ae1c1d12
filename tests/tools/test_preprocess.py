"""tools/preprocess.py: interrupted in every way, it continues to the same bytes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from armd_scale.data.tokenizer_training import train_sentencepiece

pytestmark = pytest.mark.slow

TOOL = Path(__file__).parents[2] / "tools" / "preprocess.py"
UNITS = 60


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty work units, which take a few seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    text = Path(subprocess.__file__).read_text()
    train_sentencepiece([text], 1000).save(folder / "tokenizer")
    texts = [f"{i}\n{text[i : i + 40_000]}" for i in range(2 * UNITS)]
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=2)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> dict[str, bytes]:
    (corpus / "whole").mkdir()
    assert run(*arguments(corpus, corpus / "whole/out")).returncode == 0
    return contents(corpus / "whole")


def arguments(corpus: Path, output: Path, workers: int = 2) -> list[str]:
    files = ["--input", f"{corpus}/corpus.parquet", "--output", str(output)]
    tokenizer = ["--tokenizer", f"{corpus}/tokenizer", "--split", "0.5,0.5"]
    return [*files, *tokenizer, "--workers", str(workers)]


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *words], capture_output=True, text=True, timeout=60, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, TOOL, *words], stderr=subprocess.PIPE, text=True)


def wait_for_units(parts: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(parts.glob("*.json"))) < count:
        assert time.monotonic() < deadline, "no unit was finished"
        time.sleep(0.002)


def assert_continues(corpus: Path, folder: Path, undisturbed: dict[str, bytes]) -> None:
    again = run(*arguments(corpus, folder / "out"))
    assert again.returncode == 0, again.stderr
    assert "continuing: " in again.stderr
    assert contents(folder) == undisturbed


def assert_only_workspace(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["out.work"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues_to_the_same_bytes(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int
):
    process = start(*arguments(corpus, tmp_path / "out", workers))
    wait_for_units(tmp_path / "out.work", 3)
    process.kill()
    process.communicate()
    assert_only_workspace(tmp_path)
    assert_continues(corpus, tmp_path, undisturbed)


def test_units_whose_content_was_lost_are_encoded_again(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    """As a power failure may leave them: the report exists, the content does not."""
    process = start(*arguments(corpus, tmp_path / "out"))
    wait_for_units(tmp_path / "out.work", 4)
    process.kill()
    process.communicate()
    finished = sorted((tmp_path / "out.work").glob("*.json"))
    finished[0].with_name(f"{finished[0].stem}train.bin").write_bytes(b"")
    finished[1].with_name(f"{finished[1].stem}valid.lengths").unlink()
    finished[2].write_text("{")
    assert_continues(corpus, tmp_path, undisturbed)


def test_a_dead_worker_ends_the_run_within_seconds(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    process = start(*arguments(corpus, tmp_path / "out"))
    wait_for_units(tmp_path / "out.work", 3)
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    _, message = process.communicate(timeout=10)
    assert process.returncode == 2
    assert message.count("error: ") == 1
    assert "corpus.parquet row groups " in message
    assert "a worker died on " in message
    assert "(killed by SIGKILL): run the same command again" in message
    assert not workers[1].is_running()
    assert_only_workspace(tmp_path)
    assert_continues(corpus, tmp_path, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so_and_continues(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, number: signal.Signals
):
    process = start(*arguments(corpus, tmp_path / "out"))
    wait_for_units(tmp_path / "out.work", 3)
    process.send_signal(number)
    _, message = process.communicate(timeout=10)
    assert process.returncode == 130
    assert message == "interrupted: run the same command again to continue\n"
    assert_only_workspace(tmp_path)
    assert_continues(corpus, tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("limit", "workers"), [(20_000, 2), (200_000, 1)], ids=["in a unit", "in the join"]
)
def test_file_size_limit_ends_the_run_and_loses_nothing(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, limit: int, workers: int
):
    ended = run(
        *arguments(corpus, tmp_path / "out", workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_full(ended, "File too large")
    if workers == 2:  # no unit fits
        assert not list(tmp_path.iterdir())
    else:
        assert_only_workspace(tmp_path)
        assert_continues(corpus, tmp_path, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("size", ["1m", "6m"], ids=["in a unit", "in the join"])
def test_a_run_on_a_full_disk_finishes_when_there_is_space(
    corpus: Path,
    undisturbed: dict[str, bytes],
    small_disk: Callable[[str], Path],
    size: str,
):
    folder = small_disk(size)
    assert_full(run(*arguments(corpus, folder / "out")), "No space left on device")
    assert_only_workspace(folder)
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert_continues(corpus, folder, undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_cannot_be_written_is_refused_in_a_sentence(
    corpus: Path, small_disk: Callable[[str], Path], workers: int
):
    folder = small_disk("64m")
    process = start(*arguments(corpus, folder / "out", workers))
    wait_for_units(folder / "out.work", 3)
    process.kill()
    process.communicate()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for output in ("out", "other/out"):
        ended = run(*arguments(corpus, folder / output, workers))
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: {folder}/")
        assert ended.stderr.count("\n") <= 2  # and perhaps the line "continuing:"
        assert "cannot be written (Read-only file system): make the folder writable" in ended.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_compressed_data_without_end_ends_in_bounded_memory(
    corpus: Path, tmp_path: Path, workers: int
):
    compressor = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "bomb.jsonl.zst").open("wb") as file:
        for _ in range(64):
            file.write(compressor.compress(bytes(64 << 20)))
        file.write(compressor.flush())
    (tmp_path / "good.txt").write_text("some text")
    tokenizer = str(corpus / "tokenizer")
    for training in (tokenizer, "train:sentencepiece:300"):
        ended = run(
            *("--input", str(tmp_path), "--output", str(tmp_path / "out"), "--tokenizer", training),
            *("--workers", str(workers)),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
        )
        assert ended.returncode == 2
        if training == tokenizer:
            assert ended.stderr.startswith(
                f"error: {tmp_path}/bomb.jsonl.zst: cannot be read on from here (it expands to more"
            )
        assert not (tmp_path / "out.json").exists()


def assert_full(ended: subprocess.CompletedProcess[str], why: str) -> None:
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert f"cannot be written ({why}): free some space and run the same command" in ended.stderr


def test_shards_merge_and_verify_from_the_command_line(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    (tmp_path / "merged").mkdir()
    for index in range(2):
        done = run(*arguments(corpus, tmp_path / "out"), "--shard", f"{index}/2")
        assert done.returncode == 0, done.stderr
    shards = [f"{tmp_path}/out.shard-{index}-of-2" for index in range(2)]
    assert run("--merge", *shards, "--output", f"{tmp_path}/merged/out").returncode == 0
    assert contents(tmp_path / "merged") == undisturbed
    verified = run("--verify", f"{tmp_path}/merged/out")
    assert verified.stdout == "".join(
        f"{tmp_path}/merged/out_{s}: ok\n" for s in ("train", "valid")
    )
    with (tmp_path / "merged/out_valid.bin").open("r+b") as file:
        file.truncate(100)
    verified = run("--verify", f"{tmp_path}/merged/out")
    assert verified.returncode == 2
    assert verified.stderr.startswith(f"error: {tmp_path}/merged/out_valid.bin is damaged (")


def test_a_run_imports_no_large_library(corpus: Path, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "some text"}))
    shutil.copytree(corpus / "tokenizer", tmp_path / "tokenizer")
    program = (
        f"import runpy, sys; sys.argv[1:] = ['--input', {str(tmp_path / 'x.jsonl')!r}, '--output', "
        f"{str(tmp_path / 'out')!r}, '--tokenizer', {str(tmp_path / 'tokenizer')!r}]\n"
        f"try: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "large = {'torch', 'transformers', 'datasets', 'megatron', 'pyarrow', 'pandas'}\n"
        "assert not large & set(sys.modules), large & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (tmp_path / "out.json").exists()


def test_help_shows_an_example():
    shown = run("--help")
    assert shown.returncode == 0
    assert "python tools/preprocess.py --input corpus/ --output data/corpus" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "x"], "--output is required"),
        (["--output", "x"], "--input and --tokenizer are required"),
        (["--shard", "1"], "argument --shard: "),
    ],
)
def test_incomplete_commands_show_the_usage(words: list[str], message: str):
    ended = run(*words)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text-documents", "line"], "--text-documents has been renamed: use --document-unit"),
        (["--document-bytes", "9"], "--document-bytes has been renamed: use --max-document-bytes"),
        (["--on-error", "refuse"], "--on-error refuse has been renamed: use --on-error fail"),
    ],
)
def test_former_options_are_refused_with_the_new_name(words: list[str], message: str):
    ended = run(*words)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {message}\n"


def test_too_many_skipped_documents_end_with_a_sentence_and_nothing_published(
    corpus: Path, tmp_path: Path
):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\nbroken\n')
    command = ["--input", f"{tmp_path}/in.jsonl", "--output", f"{tmp_path}/out"]
    command += ["--tokenizer", f"{corpus}/tokenizer", "--on-error", "skip"]
    ended = run(*command)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "error: at most 0.01 of the documents may be skipped, but 1 of 2"
    )
    assert ended.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.work"]
    ended = run(*command, "--max-skipped", "0.5")
    assert ended.returncode == 0
    assert "read 1 documents (4 bytes of text); skipped 1 documents (1 invalid" in ended.stderr


def test_a_split_of_a_folder_is_chosen_on_the_command_line(corpus: Path, tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    command = ["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out"]
    command += ["--tokenizer", f"{corpus}/tokenizer", "--special-tokens", "ids"]
    ended = run(*command)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: input {tmp_path}/in must be one split of a dataset")
    assert run(*command, "--input-split", "train").returncode == 0
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert (manifest["documents"], manifest["special_tokens"]) == (1, "ids")
