"""Pretrained models of every family, converted: the same function, on every layout."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.parity import check_parity, describe
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.streaming_io import StreamedWeights
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.errors import CheckpointError, RecipeError
from armd_scale.model.weight_init import init_parameter
from armd_scale.train.build import build_network, make_chunks_for
from armd_scale.train.pipeline_evaluator import PipelineEvaluator
from tests.support.hf_folders import CONFIGS, VOCAB, make_model, write_folder
from tests.support.networks import batch_of
from tests.support.precise import AllDouble
from tests.support.spawn import run_on_ranks

WINDOW = 24


def conversion(hf: Path, output: Path, **changes) -> ConversionRequest:
    settings = changes.pop("settings", ArmdSettings())
    parallel = changes.pop("parallel", ParallelConfig())
    return ConversionRequest(hf=hf, output=output, settings=settings, parallel=parallel, **changes)


@pytest.fixture(scope="module")
def converted(groups, tmp_path_factory) -> Path:
    """For each configuration NAME the folder NAME, and NAME.armd, made from it."""
    place = tmp_path_factory.mktemp("hf")
    for name in CONFIGS:
        write_folder(place / name, name, max_shard_size="20KB")
        within = WINDOW if name == "mistral-window" else None
        settings = ArmdSettings(max_positions=within)
        convert(conversion(place / name, place / f"{name}.armd", settings=settings), groups=groups)
    return place


def left_to_right(seed: int = 0, count: int = 2) -> ArmdBatch:
    """Windows of random tokens whose two streams are both run."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, size=(count, WINDOW))
    blocks = np.tile(np.arange(WINDOW, dtype=np.int32), (count, 1))
    return dataclasses.replace(batch_of(tokens, blocks), is_left_to_right=False)


def window_of(batch: ArmdBatch) -> Tensor:
    return torch.cat((batch.tokens[:, :1], batch.labels), dim=1)


def reference(name: str, batch: ArmdBatch, dtype: torch.dtype = torch.float32) -> Tensor:
    """What transformers itself says of the targets of a batch."""
    model = make_model(name).to(dtype)
    with torch.no_grad(), AllDouble() if dtype is torch.float64 else torch.enable_grad():
        return model(input_ids=window_of(batch), use_cache=False).logits[:, :-1].detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_converted_model_is_the_model(converted, groups, name):
    network = load_network(open_checkpoint(converted / f"{name}.armd"), groups=groups)
    assert network.num_two_stream == 2
    batch = left_to_right()
    expected = reference(name, batch)
    for rows in (batch, dataclasses.replace(batch, is_left_to_right=True)):
        with torch.no_grad():
            logits = network.logits(rows)
        assert (logits - expected).abs().max() <= 1e-5
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_in_float64_nothing_is_left_of_the_difference(converted, groups, name):
    checkpoint = open_checkpoint(converted / f"{name}.armd")
    network = load_network(checkpoint, groups=groups, dtype=torch.float64)
    batch = left_to_right()
    with torch.no_grad():
        difference = network.logits(batch) - reference(name, batch, torch.float64)
    assert difference.abs().max() <= 1e-9


def scores_of(groups: ProcessGroupCollection, place: str, names: list[str]) -> list[np.ndarray]:
    """Nats per target of models on this layout."""
    found = []
    for name in names:
        checkpoint = open_checkpoint(f"{place}/{name}.armd")
        parallel = ParallelConfig(tensor=groups.tp.size(), pipeline=groups.pp.size())
        recipe = dataclasses.replace(checkpoint.recipe, parallel=parallel)
        network = build_network(recipe, checkpoint, groups=groups, device=torch.device("cpu"))
        scorer = PipelineEvaluator(network, make_chunks_for(network, network))
        found.append(scorer(left_to_right()).numpy())
    return found


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
def test_a_converted_model_is_the_model_on_any_layout(converted, tensor, pipeline):
    names = ["llama", "qwen2", "olmo2", "gpt_neox", "gpt2"]
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline)
    size = tensor * pipeline
    ranks = run_on_ranks(scores_of, size, str(converted), names, parallel=layout)
    batch = left_to_right()
    for number, name in enumerate(names):
        logits = reference(name, batch)
        nll = torch.nn.functional.cross_entropy(logits.mT, batch.labels, reduction="none")
        for rank in ranks:
            assert np.abs(rank[number] - nll.numpy()).max() <= 1e-5, name


def convert_on(groups: ProcessGroupCollection, hf: str, output: str) -> None:
    convert(conversion(Path(hf), Path(output)), groups=groups)


def test_processes_share_the_work(converted, tmp_path):
    run_on_ranks(convert_on, 2, str(converted / "llama"), str(tmp_path / "two"))
    one, two = (
        StreamedWeights(path / "weights") for path in (converted / "llama.armd", tmp_path / "two")
    )
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)
    files = {path.name.split("_")[2] for path in (tmp_path / "two" / "weights").glob("*.distcp")}
    assert files == {"0", "1"}


def test_parity_tells_another_model_apart(converted, groups):
    checkpoint = open_checkpoint(converted / "llama.armd")
    for by_layer in (False, True):
        same = check_parity(checkpoint, converted / "llama", groups=groups, by_layer=by_layer)
        assert same.passed
        assert [one.path for one in same.agreements] == ["two streams", "one stream"]
        other = check_parity(
            checkpoint, converted / "llama-linear", groups=groups, by_layer=by_layer
        )
        assert not other.passed
        assert "TOO FAR" in describe(other)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "qwen2", "phi3"])
def test_parity_by_layer_is_parity(converted, groups, name):
    checkpoint = open_checkpoint(converted / f"{name}.armd")
    whole, layers = (
        check_parity(checkpoint, converted / name, groups=groups, by_layer=by_layer)
        for by_layer in (False, True)
    )
    assert layers.passed
    assert layers.reference_nll == whole.reference_nll


@pytest.mark.parametrize("query", ["learned", "prefix", "anchor+prefix"])
def test_other_query_starts_keep_the_content_path(converted, groups, tmp_path, query):
    settings = ArmdSettings(query=query, two_stream_layers=3, upper_visibility="self", seed=7)
    convert(conversion(converted / "llama", tmp_path / "armd", settings=settings), groups=groups)
    checkpoint = open_checkpoint(tmp_path / "armd")
    model = checkpoint.recipe.model
    assert (model.query, model.two_stream_layers, model.upper_visibility) == (query, 3, "self")
    parity = check_parity(checkpoint, converted / "llama", groups=groups)
    assert parity.passed
    # Beside an anchor the prefix starts at nothing, so both streams are still exact.
    assert len(parity.agreements) == (2 if query == "anchor+prefix" else 1)
    assert ("not AR-exact by construction" in describe(parity)) == (query != "anchor+prefix")
    new = [
        name
        for name in load_network(checkpoint, groups=groups).parameters_by_name()
        if "query_" in name
    ]
    for name in new:
        stored = StreamedWeights(tmp_path / "armd" / "weights").read(name)
        init_parameter(expected := torch.empty_like(stored), name, model=model, seed=7)
        assert torch.equal(stored, expected), name


@pytest.mark.parametrize(("given", "kept"), [("keep", "fp16"), ("bf16", "bf16"), ("fp32", "fp32")])
def test_weights_keep_their_type_unless_asked_for(groups, tmp_path, given, kept):
    make_model("qwen2").half().save_pretrained(tmp_path / "hf")
    convert(conversion(tmp_path / "hf", tmp_path / "armd", dtype=given), groups=groups)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[kept]
    weights = StreamedWeights(tmp_path / "armd" / "weights")
    assert {tensor.dtype for tensor in weights.tensors.values()} == {dtype}
    parity = check_parity(open_checkpoint(tmp_path / "armd"), tmp_path / "hf", groups=groups)
    assert parity.passed == (given != "bf16")  # which rounds fp16's numbers


def test_an_output_is_replaced_only_where_asked_for(converted, groups, tmp_path):
    wanted = conversion(converted / "llama", tmp_path / "armd")
    convert(wanted, groups=groups)
    with pytest.raises(CheckpointError, match="does: choose another name or add --overwrite"):
        convert(wanted, groups=groups)
    other = dataclasses.replace(wanted, hf=converted / "qwen2", overwrite=True)
    convert(other, groups=groups)
    assert open_checkpoint(tmp_path / "armd").recipe.model.attention_bias
    (tmp_path / "armd" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"--overwrite must name a folder that holds a mani"):
        convert(other, groups=groups)
    assert [path.name for path in tmp_path.iterdir()] == ["armd"]


def test_a_layout_that_cannot_be_is_refused_before_anything_is_written(converted, groups, tmp_path):
    for parallel, key in (
        (ParallelConfig(tensor=4), "model.kv_heads"),
        (ParallelConfig(pipeline=5), "model.layers"),
    ):
        wanted = conversion(converted / "llama", tmp_path / "armd", parallel=parallel)
        with pytest.raises(RecipeError, match=key):
            convert(wanted, groups=groups)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(converted, groups, tmp_path):
    (tmp_path / "place").write_text("a file where a folder should be")
    wanted = conversion(converted / "llama", tmp_path / "place" / "armd")
    with pytest.raises(CheckpointError, match=r"armd, and that failed \(Not a directory\): free"):
        convert(wanted, groups=groups)
