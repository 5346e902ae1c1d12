"""Tests of conversion: models of every family compute the same after it, on every layout."""

import dataclasses
import shutil
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
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import resolve
from armd_scale.config.schema import ParallelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.errors import CheckpointError, RecipeError, TokenizerError
from armd_scale.model.weight_init import init_parameter
from armd_scale.train.build import build_model
from armd_scale.train.callbacks.evaluator import PipelineEvaluator
from armd_scale.train.resume import find_checkpoint, initial_checkpoint
from armd_scale.train.schedule_chunks import make_schedule_chunks
from tests.support.hf_folders import (
    CONFIGS,
    VOCAB,
    make_model,
    write_byte_tokenizer,
    write_folder,
)
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
    """A folder with the Hugging Face folder NAME and the checkpoint NAME.armd of each model."""
    folder = tmp_path_factory.mktemp("hf")
    for name in CONFIGS:
        write_folder(folder / name, name, max_shard_size="20KB")
        max_positions = WINDOW if name == "mistral-window" else None
        settings = ArmdSettings(max_positions=max_positions)
        convert(
            conversion(folder / name, folder / f"{name}.armd", settings=settings), groups=groups
        )
    return folder


def left_to_right(seed: int = 0, count: int = 2) -> ArmdBatch:
    """Windows of random tokens for which the network runs both streams."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, size=(count, WINDOW))
    blocks = np.tile(np.arange(WINDOW, dtype=np.int32), (count, 1))
    return dataclasses.replace(batch_of(tokens, blocks), is_left_to_right=False)


def window_of(batch: ArmdBatch) -> Tensor:
    return torch.cat((batch.tokens[:, :1], batch.labels), dim=1)


def reference(name: str, batch: ArmdBatch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of transformers for the targets of a batch."""
    model = make_model(name).to(dtype)
    with torch.no_grad(), AllDouble() if dtype is torch.float64 else torch.enable_grad():
        return model(input_ids=window_of(batch), use_cache=False).logits[:, :-1].detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_converted_model_computes_the_same(converted, groups, name):
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
def test_the_difference_vanishes_in_float64(converted, groups, name):
    checkpoint = open_checkpoint(converted / f"{name}.armd")
    network = load_network(checkpoint, groups=groups, dtype=torch.float64)
    batch = left_to_right()
    with torch.no_grad():
        difference = network.logits(batch) - reference(name, batch, torch.float64)
    assert difference.abs().max() <= 1e-9


def nll_of(groups: ProcessGroupCollection, folder: str, names: list[str]) -> list[np.ndarray]:
    """Nats per target of the named models on this layout."""
    results = []
    for name in names:
        checkpoint = open_checkpoint(f"{folder}/{name}.armd")
        parallel = ParallelConfig(tensor=groups.tp.size(), pipeline=groups.pp.size())
        recipe = dataclasses.replace(checkpoint.recipe, parallel=parallel)
        network = build_model(recipe, checkpoint, groups=groups, device=torch.device("cpu"))
        scorer = PipelineEvaluator(network, make_schedule_chunks(network, network))
        results.append(scorer(left_to_right()).numpy())
    return results


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
def test_a_converted_model_computes_the_same_on_any_layout(converted, tensor, pipeline):
    names = ["llama", "qwen2", "olmo2", "gpt_neox", "gpt2"]
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline)
    size = tensor * pipeline
    ranks = run_on_ranks(nll_of, size, str(converted), names, parallel=layout)
    batch = left_to_right()
    for index, name in enumerate(names):
        logits = reference(name, batch)
        nll = torch.nn.functional.cross_entropy(logits.mT, batch.labels, reduction="none")
        for rank in ranks:
            assert np.abs(rank[index] - nll.numpy()).max() <= 1e-5, name


def convert_on(groups: ProcessGroupCollection, hf: str, output: str) -> None:
    convert(conversion(Path(hf), Path(output)), groups=groups)


@pytest.mark.slow
def test_two_ranks_share_the_work_and_write_the_same_weights(converted, tmp_path):
    run_on_ranks(convert_on, 2, str(converted / "llama"), str(tmp_path / "two"))
    one, two = (
        StreamedWeights(path / "weights") for path in (converted / "llama.armd", tmp_path / "two")
    )
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.read(name), two.read(name)) for name in one.tensors)
    files = {path.name for path in (tmp_path / "two" / "weights").glob("*.safetensors")}
    assert files == {"rank_00000.safetensors", "rank_00001.safetensors"}


def test_parity_fails_for_another_model(converted, groups):
    checkpoint = open_checkpoint(converted / "llama.armd")
    for by_layer in (False, True):
        same = check_parity(checkpoint, converted / "llama", groups=groups, by_layer=by_layer)
        assert same.passed
        assert [result.path for result in same.agreements] == ["two streams", "one stream"]
        other = check_parity(
            checkpoint, converted / "llama-linear", groups=groups, by_layer=by_layer
        )
        assert not other.passed
        assert "DIFFERS" in describe(other)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "qwen2", "phi3"])
def test_parity_by_layer_gives_the_same_figures(converted, groups, name):
    checkpoint = open_checkpoint(converted / f"{name}.armd")
    whole, layers = (
        check_parity(checkpoint, converted / name, groups=groups, by_layer=by_layer)
        for by_layer in (False, True)
    )
    assert layers.passed
    assert layers.reference_nll == whole.reference_nll


@pytest.mark.parametrize("query", ["learned", "prefix", "anchor+prefix"])
def test_other_query_initializations_keep_the_content_path(converted, groups, tmp_path, query):
    settings = ArmdSettings(query=query, two_stream_layers=3, upper_visibility="self", seed=7)
    convert(conversion(converted / "llama", tmp_path / "armd", settings=settings), groups=groups)
    checkpoint = open_checkpoint(tmp_path / "armd")
    model = checkpoint.recipe.model
    assert (model.query, model.two_stream_layers, model.upper_visibility) == (query, 3, "self")
    parity = check_parity(checkpoint, converted / "llama", groups=groups)
    assert parity.passed
    # Beside an anchor the prefix scale starts at zero, so both streams are still exact.
    assert len(parity.agreements) == (2 if query == "anchor+prefix" else 1)
    assert ("does not keep the two-stream network equal" in describe(parity)) == (
        query != "anchor+prefix"
    )
    new = [
        name
        for name in load_network(checkpoint, groups=groups).parameters_by_name()
        if "query_" in name
    ]
    for name in new:
        stored = StreamedWeights(tmp_path / "armd" / "weights").read(name)
        init_parameter(expected := torch.empty_like(stored), name, model=model, seed=7)
        assert torch.equal(stored, expected), name


@pytest.mark.parametrize(
    ("requested", "stored"), [("keep", "fp16"), ("bf16", "bf16"), ("fp32", "fp32")]
)
def test_weights_keep_their_type_unless_another_is_requested(groups, tmp_path, requested, stored):
    make_model("qwen2").half().save_pretrained(tmp_path / "hf")
    convert(conversion(tmp_path / "hf", tmp_path / "armd", dtype=requested), groups=groups)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[stored]
    weights = StreamedWeights(tmp_path / "armd" / "weights")
    assert {tensor.dtype for tensor in weights.tensors.values()} == {dtype}
    parity = check_parity(open_checkpoint(tmp_path / "armd"), tmp_path / "hf", groups=groups)
    assert parity.passed  # also with bf16, which rounds fp16 values: both sides are rounded


def test_a_recipe_of_a_conversion_starts_from_its_weights(converted, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(converted / "llama.armd", folder)
    recipe = resolve(load_recipe(folder / "recipe.yaml"))
    checkpoint = initial_checkpoint(recipe, find_checkpoint(recipe))
    assert checkpoint is not None
    assert checkpoint.folder == folder
    extended = tmp_path / "finetune.yaml"
    extended.write_text("extends: moved/recipe.yaml\n")
    assert load_recipe(extended).model.init_from == str(folder)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(groups, tmp_path):
    write_folder(tmp_path / "hf", "llama")
    num_tokens = write_byte_tokenizer(tmp_path / "hf", ["a text"], adds_bos=True)
    with pytest.raises(TokenizerError, match=rf"no more ids than .* has {num_tokens} for 101"):
        convert(conversion(tmp_path / "hf", tmp_path / "armd"), groups=groups)
    assert not (tmp_path / "armd").exists()


def test_an_output_is_replaced_only_on_request(converted, groups, tmp_path):
    request = conversion(converted / "llama", tmp_path / "armd")
    convert(request, groups=groups)
    with pytest.raises(CheckpointError, match="exists\\): choose another name or add --overwrite"):
        convert(request, groups=groups)
    other = dataclasses.replace(request, hf=converted / "qwen2", overwrite=True)
    convert(other, groups=groups)
    assert open_checkpoint(tmp_path / "armd").recipe.model.attention_bias
    (tmp_path / "armd" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"--overwrite must name a checkpoint of armd_scale"):
        convert(other, groups=groups)
    assert [path.name for path in tmp_path.iterdir()] == ["armd"]


def test_an_impossible_layout_is_refused_before_anything_is_written(converted, groups, tmp_path):
    for parallel, key in (
        (ParallelConfig(tensor=4), "model.kv_heads"),
        (ParallelConfig(pipeline=5), "model.layers"),
    ):
        request = conversion(converted / "llama", tmp_path / "armd", parallel=parallel)
        with pytest.raises(RecipeError, match=key):
            convert(request, groups=groups)
    assert not list(tmp_path.iterdir())


def test_a_write_error_names_the_output(converted, groups, tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    request = conversion(converted / "llama", tmp_path / "file" / "armd")
    with pytest.raises(CheckpointError, match=r"cannot write .*/armd \(Not a directory\): check"):
        convert(request, groups=groups)
