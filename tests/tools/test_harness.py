"""tools/harness.py: our models on the harness's command line, against its own model `hf`.

The tasks are files of this test; nothing is fetched.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.config.schema import ParallelConfig
from tests.support.cli import Finished, launch, run
from tests.support.hf_folders import make_model, write_byte_tokenizer, write_folder

TOOL, THEIRS = "tools/harness.py", "lm_eval"
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
def place(groups, tmp_path_factory) -> Path:
    """`llama` (every text begins with BOS), `armd` converted from it, `gpt2` (none does), tasks."""
    place = tmp_path_factory.mktemp("place")
    for name, adds_bos in (("llama", True), ("gpt2", False)):
        (place / name).mkdir()
        size = write_byte_tokenizer(place / name, [SENTENCE] * 50, adds_bos=adds_bos)
        special = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 1}
        make_model(name, **special).save_pretrained(place / name)
    convert(
        ConversionRequest(
            hf=place / "llama",
            output=place / "armd",
            settings=ArmdSettings(),
            parallel=ParallelConfig(),
        ),
        groups=groups,
    )
    documents = place / "documents.jsonl"
    documents.write_text("".join(json.dumps({**one, "label": 0}) + "\n" for one in DOCUMENTS))
    for name, task in TASKS.items():
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(documents)}},
            "test_split": "test",
            "doc_to_target": "label",
        }
        # A JSON object is YAML too.
        (place / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))
    return place


def words(place: Path, output: Path, model: str, arguments: str, tasks: Mapping[str, Any] = TASKS):
    return (
        *("--model", model, "--model_args", arguments, "--tasks", ",".join(tasks)),
        *("--include_path", place, "--output_path", output, "--log_samples"),
        *("--batch_size", 2, "--device", "cpu"),
    )


def variables(place: Path) -> dict[str, object]:
    return {**OFFLINE, "HF_HOME": place / "home"}


def answers(done: Finished, output: Path) -> dict[str, list[list[Any]]]:
    """For each task the model's answers to each document."""
    assert done.status == 0, done.errors
    found: dict[str, list[list[Any]]] = {}
    for file in output.glob("*/samples_*.jsonl"):
        name = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        # Where ranks have unequally many documents, the harness asks the last one twice.
        found[name] = [[answer for answer, *_ in line["resps"]] for line in lines]
        assert len(found[name]) == len(DOCUMENTS)
    return found


@pytest.fixture
def evaluated(place, tmp_path):
    def evaluate(model: str, arguments: str, *tasks: str) -> dict[str, list[list[Any]]]:
        output = tmp_path / f"{model},{arguments.replace('/', '_')}"
        typed = words(place, output, model, f"{arguments},max_length=40", tasks or TASKS)
        entry = TOOL if model == "armd_scale" else THEIRS
        (rank,) = launch(entry, *typed, size=1, folder=tmp_path, variables=variables(place))
        return answers(rank.finish(seconds=120), output)

    return evaluate


def assert_equal_likelihoods(ours: list[list[Any]], theirs: list[list[Any]]) -> None:
    """Of pairs (nats, is greedy), or of nats alone."""
    for our, their in zip(ours, theirs, strict=True):
        for a, b in zip(our, their, strict=True):
            a, b = ([x] if isinstance(x, str) else x for x in (a, b))
            assert float(a[0]) == pytest.approx(float(b[0]), abs=1e-4)
            assert a[1:] == b[1:]


def test_a_converted_model_is_what_the_harness_finds_its_source_to_be(place, evaluated):
    """Of its own model the harness would score BOS after BOS in rolling texts; not so without."""
    ours = evaluated("armd_scale", f"checkpoint={place}/armd")
    theirs = evaluated("hf", f"pretrained={place}/llama", "choose", "go_on")
    rolled = evaluated("hf", f"pretrained={place}/llama,add_bos_token=False", "roll")
    assert_equal_likelihoods(ours["choose"], theirs["choose"])
    assert_equal_likelihoods(ours["roll"], rolled["roll"])
    assert ours["go_on"] == theirs["go_on"]
    assert all(text and "q" not in text for ((text,),) in zip(ours["go_on"], strict=True))


def test_a_folder_whose_texts_begin_with_nothing(place, evaluated):
    ours = evaluated("armd_scale", f"hf={place}/gpt2")
    theirs = evaluated("hf", f"pretrained={place}/gpt2")
    assert_equal_likelihoods(ours["choose"], theirs["choose"])
    assert_equal_likelihoods(ours["roll"], theirs["roll"])
    assert ours["go_on"] == theirs["go_on"]


def test_two_ranks_share_the_requests(place, evaluated, tmp_path):
    """With four streams, whose texts are those of one process too."""
    typed = f"checkpoint={place}/armd,streams=4,max_length=40"
    output = tmp_path / "two"
    ranks = launch(
        TOOL,
        *words(place, output, "armd_scale", typed),
        size=2,
        folder=tmp_path / "ranks",
        variables=variables(place),
    )
    done = [rank.finish(seconds=120) for rank in ranks]
    assert [rank.status for rank in done] == [0, 0], done[1].errors
    two = answers(done[0], output)
    one = evaluated("armd_scale", f"checkpoint={place}/armd,streams=4")
    assert_equal_likelihoods(two["choose"], one["choose"])
    assert_equal_likelihoods(two["roll"], one["roll"])
    assert two["go_on"] == one["go_on"]


def test_a_model_without_tokenizer_ends_in_one_sentence(place, tmp_path):
    write_folder(tmp_path / "bare", "llama")
    typed = words(place, tmp_path / "out", "armd_scale", f"hf={tmp_path}/bare")
    done = run(TOOL, *typed, folder=tmp_path, variables=variables(place))
    assert "text must be read by the tokenizer that the model was trained with" in done.sentence


def test_help_has_an_example(tmp_path):
    done = run(TOOL, "--help", folder=tmp_path)
    assert "--model armd_scale --model_args checkpoint=runs/demo --tasks" in done.output
    assert "lm-eval run --model hf" in done.output
