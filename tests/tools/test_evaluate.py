"""tools/evaluate.py: options, output files, and errors."""

import dataclasses
import json

import pytest
from safetensors.torch import load_file

from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.data.windows import TokenWindows
from armd_scale.eval.data import require_tokenizer
from armd_scale.eval.likelihood import evaluate
from armd_scale.eval.tasks.base import TaskOptions, run_task
from armd_scale.eval.tasks.infilling import InfillTask
from armd_scale.generation import Sampling
from armd_scale.order.spec import parse_spec
from tests.support import cli
from tests.support.eval_data import make_recipe, write_documents, write_manifest, write_run
from tests.support.networks import LLAMA, build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("folder"), groups)


def run(folder, *options):
    defaults = {"--checkpoint": folder / "run", "--data": folder / "valid"}
    defaults |= {"--order": "strided-ar:3"}
    changes = dict(zip(options[::2], options[1::2], strict=True))
    line = [word for pair in {**defaults, **changes}.items() for word in pair]
    return cli.run("tools/evaluate.py", *line, folder=folder)


def test_figures_and_dump(groups, folder):
    process = run(
        folder,
        *("--samples", 5, "--json", folder / "result.json"),
        *("--dump", folder / "dump.safetensors"),
    )
    assert process.status == 0, process.errors
    result = json.loads((folder / "result.json").read_text())
    expected = evaluate(
        build(dataclasses.replace(LLAMA, vocab_size=280), groups),
        TokenWindows(str(folder / "valid"), 16),
        parse_spec("strided-ar:3"),
        samples=5,
        seed=make_recipe().run.seed,
        micro_batch=2,
        groups=groups,
    )
    figures = dataclasses.asdict(expected)
    assert result.pop("order") == figures.pop("order") == "strided-ar:3"
    assert {name for name in result if result[name] is None} == {
        "standard_error_over_orders",
        "perplexity_per_word",
    }
    for name, figure in figures.items():
        assert result[name] == (figure if figure is None else pytest.approx(figure, rel=1e-6)), name
    assert process.output.startswith(f"strided-ar:3  {expected.nll_nats_per_token:.4f} nats/token")

    dump = load_file(folder / "dump.safetensors")
    assert dump["tokens"].shape == dump["block"].shape == (5, 17)
    assert dump["logprob"].shape == (5, 16)
    assert -dump["logprob"].mean().item() == pytest.approx(result["nll_nats_per_token"], rel=1e-6)
    assert not list(folder.glob(".*partial"))


def test_the_infilling_task(groups, tmp_path):
    """The figures of the package, with the requested number of examples and temperature."""
    folder = write_run(tmp_path, groups, vocab_size=280)
    passage = {"before": "the", "middle": " quick", "after": " fox"}
    (folder / "stories.jsonl").write_text((json.dumps(passage) + "\n") * 3)
    process = cli.run(
        "tools/evaluate.py",
        *("--checkpoint", folder / "run", "--task", "infill", folder / "stories.jsonl"),
        *("--order", "strided:2", "--samples", 2, "--temperature", 0),
        *("--json", folder / "result.json"),
        folder=folder,
    )
    assert process.status == 0, process.errors
    checkpoint = open_checkpoint(folder / "run")
    options = TaskOptions(
        order=parse_spec("strided:2"),
        sampling=Sampling(temperature=0.0),
        max_tokens=17,
        max_examples=2,
    )
    tokenizer = require_tokenizer(checkpoint)
    expected = run_task(
        InfillTask.read(folder / "stories.jsonl", tokenizer, options),
        load_network(checkpoint, groups=groups),
        micro_batch=2,
        groups=groups,
    )
    assert json.loads((folder / "result.json").read_text()) == dataclasses.asdict(expected)
    assert process.output == f"{expected.format_line()}\n"
    assert "infill  strided:2  ROUGE-1 0." in process.output
    assert process.output.endswith("  2 passages\n")


def test_data_of_another_tokenizer_is_one_error_sentence(folder, tmp_path):
    prefix = write_documents(tmp_path / "other")
    write_manifest(prefix, tokens=175, text_bytes=700, fingerprint="0123456789abcdef")
    process = run(folder, "--data", prefix, "--json", folder / "never.json")
    beginning = f"error: {prefix} must be tokenized with the tokenizer of the"
    assert process.sentence.startswith(beginning)
    assert process.output == ""
    assert not (folder / "never.json").exists()


def test_the_number_of_windows_must_be_positive(folder):
    process = run(folder, "--samples", "0")
    assert process.status == 2
    assert process.errors.endswith("--samples: must be a whole number >= 1 (got '0')\n")


def test_the_former_name_of_an_option_is_refused_with_the_current_one(folder):
    process = run(folder, "--detokenise", "ptb")
    assert process.status == 2
    assert process.errors.endswith("--detokenise has been renamed: use --detokenizer\n")
