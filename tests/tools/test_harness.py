"""tools/harness.py: our models in lm-evaluation-harness, against its own model `hf`.

The tasks are files written by this test; nothing is downloaded.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.config.schema import ParallelConfig
from tests.support.cli import Finished, launch, run
from tests.support.hf_folders import make_model, write_byte_tokenizer, write_folder

pytestmark = pytest.mark.slow(minutes=4)

TOOL, LM_EVAL = "tools/harness.py", "lm_eval"
OFFLINE = {"HF_HUB_OFFLINE": 1, "HF_DATASETS_OFFLINE": 1}
SENTENCE = "the quick brown fox jumps over the lazy dog. "
DOCUMENTS = [
    {"text": SENTENCE * 4, "question": "the quick ", "choices": ["brown fox", "lazy dog over"]},
    {"text": "the lazy dog", "question": "", "choices": ["the", " jumps"]},
    {"text": "Ümit's fox", "question": SENTENCE * 3, "choices": [" fox", " quick brown"]},
]
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "go_on": {
        "output_type": "generate_until",
        "doc_to_text": "the {{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["q", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory) -> Path:
    """Write `llama` (texts start with BOS), `armd` converted from it, `gpt2` (no BOS), tasks."""
    folder = tmp_path_factory.mktemp("folder")
    for name, adds_bos in (("llama", True), ("gpt2", False)):
        (folder / name).mkdir()
        size = write_byte_tokenizer(folder / name, [SENTENCE] * 50, adds_bos=adds_bos)
        special = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1}
        make_model(name, **special).save_pretrained(folder / name)
    convert(
        ConversionRequest(
            hf=folder / "llama",
            output=folder / "armd",
            settings=ArmdSettings(),
            parallel=ParallelConfig(),
        ),
        groups=groups,
    )
    documents = folder / "documents.jsonl"
    documents.write_text(
        "".join(json.dumps({**document, "label": 0}) + "\n" for document in DOCUMENTS)
    )
    for name, task in TASKS.items():
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(documents)}},
            "test_split": "test",
            "doc_to_target": "label",
        }
        # The harness reads YAML, and a JSON object is valid YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))
    return folder


def make_options(
    folder: Path, output: Path, model: str, model_args: str, tasks: Iterable[str] = TASKS
):
    return (
        *("--model", model, "--model_args", model_args, "--tasks", ",".join(tasks)),
        *("--include_path", folder, "--output_path", output, "--log_samples"),
        *("--batch_size", 2, "--device", "cpu"),
    )


def variables(folder: Path) -> dict[str, object]:
    return {**OFFLINE, "HF_HOME": folder / "home"}


def read_responses(process: Finished, output: Path) -> dict[str, list[list[Any]]]:
    """Return the model's responses to each document, by task."""
    assert process.status == 0, process.errors
    responses: dict[str, list[list[Any]]] = {}
    for file in output.glob("*/samples_*.jsonl"):
        name = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        # If ranks have different numbers of documents, the harness requests the last one twice.
        responses[name] = [[response for response, *_ in line["resps"]] for line in lines]
        assert len(responses[name]) == len(DOCUMENTS)
    return responses


@pytest.fixture
def evaluated(folder, tmp_path):
    def evaluate(model: str, model_args: str, *tasks: str) -> dict[str, list[list[Any]]]:
        output = tmp_path / f"{model},{model_args.replace('/', '_')}"
        options = make_options(folder, output, model, f"{model_args},max_length=40", tasks or TASKS)
        entry = TOOL if model == "armd_scale" else LM_EVAL
        (rank,) = launch(entry, *options, size=1, folder=tmp_path, variables=variables(folder))
        return read_responses(rank.finish(seconds=120), output)

    return evaluate


def assert_equal_likelihoods(actual: list[list[Any]], expected: list[list[Any]]) -> None:
    """Compare pairs (nats, is_greedy), or nats alone."""
    for actual_document, expected_document in zip(actual, expected, strict=True):
        for a, b in zip(actual_document, expected_document, strict=True):
            a, b = ([x] if isinstance(x, str) else x for x in (a, b))
            assert float(a[0]) == pytest.approx(float(b[0]), abs=1e-4)
            assert a[1:] == b[1:]


def test_a_converted_model_scores_as_its_source_does(folder, evaluated):
    """In rolling texts `hf` would score BOS after BOS, so it must be told to add none."""
    armd = evaluated("armd_scale", f"checkpoint={folder}/armd")
    hf = evaluated("hf", f"pretrained={folder}/llama", "choose", "go_on")
    hf_rolling = evaluated("hf", f"pretrained={folder}/llama,add_bos_token=False", "roll")
    assert_equal_likelihoods(armd["choose"], hf["choose"])
    assert_equal_likelihoods(armd["roll"], hf_rolling["roll"])
    assert armd["go_on"] == hf["go_on"]
    assert all(text and "q" not in text for ((text,),) in zip(armd["go_on"], strict=True))


def test_a_model_whose_texts_start_without_bos(folder, evaluated):
    armd = evaluated("armd_scale", f"hf={folder}/gpt2")
    hf = evaluated("hf", f"pretrained={folder}/gpt2")
    assert_equal_likelihoods(armd["choose"], hf["choose"])
    assert_equal_likelihoods(armd["roll"], hf["roll"])
    assert armd["go_on"] == hf["go_on"]


def test_two_ranks_share_the_requests(folder, evaluated, tmp_path):
    """The responses equal those of one process, also with four streams."""
    model_args = f"checkpoint={folder}/armd,streams=4,max_length=40"
    output = tmp_path / "two"
    ranks = launch(
        TOOL,
        *make_options(folder, output, "armd_scale", model_args),
        size=2,
        folder=tmp_path / "ranks",
        variables=variables(folder),
    )
    processes = [rank.finish(seconds=120) for rank in ranks]
    assert [process.status for process in processes] == [0, 0], processes[1].errors
    two = read_responses(processes[0], output)
    one = evaluated("armd_scale", f"checkpoint={folder}/armd,streams=4")
    assert_equal_likelihoods(two["choose"], one["choose"])
    assert_equal_likelihoods(two["roll"], one["roll"])
    assert two["go_on"] == one["go_on"]


def test_a_model_without_tokenizer_is_one_error_sentence(folder, tmp_path):
    write_folder(tmp_path / "bare", "llama")
    options = make_options(folder, tmp_path / "out", "armd_scale", f"hf={tmp_path}/bare")
    process = run(TOOL, *options, folder=tmp_path, variables=variables(folder))
    assert "text needs the tokenizer that the model was trained with" in process.sentence


def test_help_has_an_example(tmp_path):
    process = run(TOOL, "--help", folder=tmp_path)
    assert "--model armd_scale --model_args checkpoint=runs/demo --tasks" in process.output
    assert "lm-eval run --model hf" in process.output
