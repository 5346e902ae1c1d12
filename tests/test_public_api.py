"""The public API: lazy imports, and the library example of README.md, run as it stands there."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import armd_scale
from tests.support.cli import ROOT, Command, run

SOURCE = Path(armd_scale.__file__).read_text(encoding="utf-8")
DOCUMENT = "def main():\n    value = {number} + 2\n    return value\n\n\n"


def test_names_are_the_objects_of_their_modules():
    for name in armd_scale.__all__:
        value = getattr(armd_scale, name)
        assert value.__name__ == name
        assert sys.modules[value.__module__].__dict__[name] is value
        assert name in dir(armd_scale)


def test_imports_for_type_checkers_equal_the_lazy_ones():
    tree = ast.parse(SOURCE)
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    body: list[Any] = block.body
    imports = {alias.name: node.module for node in body for alias in node.names}
    assert imports == armd_scale._MODULES
    assert sorted(imports) == armd_scale.__all__
    assert (Path(armd_scale.__file__).parent / "py.typed").is_file()


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="module 'armd_scale' has no attribute 'trainer_'"):
        armd_scale.trainer_  # noqa: B018


def test_import_is_fast_because_it_is_lazy():
    script = "import sys, armd_scale; print([m for m in ('torch', 'megatron') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_readme_example_runs(tmp_path):
    """With a tiny model in runs/demo, and shards where the demo puts them."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    corpus, data = tmp_path / "corpus.jsonl", tmp_path / "runs/demo/data"
    documents = [{"text": DOCUMENT.format(number=number)} for number in range(400)]
    corpus.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    data.mkdir(parents=True)
    prepared = run(
        "tools/preprocess.py",
        *("--input", corpus, "--output", data / "corpus", "--tokenizer"),
        *("train:sentencepiece:300", "--workers", 1, "--split", "0.7,0.3"),
        folder=tmp_path,
    )
    assert prepared.status == 0, prepared.errors
    train = run(
        "armd_scale.train",
        *(ROOT / "recipes/demo_cpu.yaml", f"run.folder={tmp_path / 'runs/demo'}"),
        *(f"data.train={data / 'corpus_train'}", f"data.valid={data / 'corpus_valid'}"),
        *("train.steps=2", "optim.warmup_steps=1", "data.seq_length=64", "model.layers=2"),
        *("model.two_stream_layers=1", "model.hidden=32", "model.ffn_hidden=48"),
        folder=tmp_path,
    )
    assert train.status == 0, train.errors
    # The example uses relative paths, as in a clone of the repository.
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    script = tmp_path / "example.py"
    script.write_text(f"import os\n\nos.chdir({str(tmp_path)!r})\n{code}")
    done = Command(str(script), folder=tmp_path).finish(seconds=120)
    assert done.status == 0, done.errors
    lines = done.output.splitlines()
    assert re.fullmatch(r"l2r \d+\.\d+", lines[0])
    assert re.fullmatch(r"strided:2 \d+\.\d+", lines[1])
    assert done.output.count("def ") >= 2
    assert (tmp_path / "runs/mine/checkpoints/step_00000002").is_dir()
