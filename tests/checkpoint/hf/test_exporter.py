"""Tests of export: bit-exact round trips, and equal logits in transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armd_scale.checkpoint.hf.exporter import export
from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.reference import whole_logits
from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import CheckpointError
from tests.support.hf_folders import CONFIGS, make_model, write_folder, write_tokenizer
from tests.support.networks import GPT2, LLAMA, NEOX, OLMO2, QWEN3, build
from tests.support.recipes import SMALL, bend
from tests.support.windows import draw_windows


def convert_to(output: Path, hf: Path, groups, **settings) -> Path:
    request = ConversionRequest(
        hf=hf, output=output, settings=ArmdSettings(**settings), parallel=ParallelConfig()
    )
    convert(request, groups=groups)
    return output


def save(folder: Path, network, groups, *, source=None, **changes) -> Path:
    """Save a checkpoint as training does, with the files of a source model if there is one."""
    changes = {"model": network.model, "data.seq_length": 63, **changes}
    return CheckpointSave(
        folder, step=5, network=network, recipe=bend(SMALL, changes), state={"step": 5},
        optimizer={}, tokenizer={}, source=source,
    ).wait()  # fmt: skip


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_conversion_and_export_round_trip_bit_exactly(groups, tmp_path, name):
    hf, back = tmp_path / "hf", tmp_path / "back"
    make_model(name).bfloat16().save_pretrained(hf, max_shard_size="10KB")
    write_tokenizer(hf)
    (hf / "generation_config.json").write_text('{"eos_token_id": 2}')
    max_positions = 24 if name == "mistral-window" else None
    armd = convert_to(tmp_path / "armd", hf, groups, max_positions=max_positions)
    export(open_checkpoint(armd), back, groups=groups, as_ar=True, shard_bytes=20_000)
    original, exported = tensors_of(hf), tensors_of(back)
    assert original.keys() == exported.keys()
    for key, tensor in original.items():
        assert torch.equal(tensor.view(torch.int16), exported[key].view(torch.int16)), key
    for file in ("generation_config.json", "tokenizer.json"):
        assert json.loads((hf / file).read_text()) == json.loads((back / file).read_text())
    # With the keys of transformers 4 besides.
    config = json.loads((back / "config.json").read_text())
    assert config == config | json.loads((hf / "config.json").read_text())
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == original.keys()
    assert sorted(set(index["weight_map"].values())) == sorted(
        path.name for path in back.glob("*.safetensors")
    )


@pytest.mark.parametrize("query", ["anchor", "prefix", "learned", "anchor+prefix"])
def test_an_interchange_folder_holds_the_same_network(groups, tmp_path, query):
    model = dataclasses.replace(LLAMA, query=query, upper_visibility="self", max_anchor_gap=9)
    network = build(model, groups)
    export(open_checkpoint(save(tmp_path, network, groups)), tmp_path / "hf", groups=groups)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["armd"] == {
        "two_stream_layers": 2, "query": query, "upper_visibility": "self", "gap_rows": 9,
        "prefix_width": 128,
    }  # fmt: skip
    extra = {name: t.shape for name, t in tensors_of(tmp_path / "hf").items() if "armd" in name}
    shapes = {
        "armd.gap_embedding.weight": (10, 32),
        "armd.prefix.position_embedding.weight": (64, 128),
        "armd.prefix.scale": (32,),
        "armd.query_embedding": (32,),
    }
    kinds = {"anchor": "gap", "prefix": "prefix", "learned": "query_embedding"}
    prefixes = tuple(kinds[part] for part in query.split("+"))
    assert extra == {name: shape for name, shape in shapes.items() if name[5:].startswith(prefixes)}
    assert "arXiv 2601.16971" in (tmp_path / "hf" / "README.md").read_text()

    batch = draw_windows("strided-ar:4", (20,)).batch()
    direct = HfWeights(HfCheckpoint(tmp_path / "hf", ArmdSettings()), groups).load(torch.float32)
    assert torch.equal(direct(batch), network(batch))
    again = convert_to(tmp_path / "again", tmp_path / "hf", groups)
    assert torch.equal(load_network(open_checkpoint(again), groups=groups)(batch), network(batch))
    with pytest.raises(CheckpointError, match=f"--query must be {query.replace('+', '.')}, which"):
        HfCheckpoint(
            tmp_path / "hf", ArmdSettings(query="learned" if query == "anchor" else "anchor")
        )
    # Without the section the folder is a plain AR model.
    del config["armd"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    plain = HfCheckpoint(tmp_path / "hf", ArmdSettings())
    HfWeights(plain, groups)
    assert plain.model.query == "anchor"


@pytest.mark.parametrize(
    "model",
    [LLAMA, dataclasses.replace(QWEN3, attention_bias=False), GPT2, NEOX, OLMO2],
)
def test_a_trained_network_exports_as_an_ar_model_with_equal_logits(groups, tmp_path, model):
    network = build(model, groups)
    checkpoint = open_checkpoint(save(tmp_path, network, groups))
    export(checkpoint, tmp_path / "hf", groups=groups, as_ar=True)
    batch = draw_windows("l2r", (20,)).batch()
    tokens = torch.cat((batch.tokens[:, :1], batch.labels), dim=1)
    with torch.no_grad():
        logits = network.logits(dataclasses.replace(batch, is_left_to_right=False))
    expected = whole_logits(tmp_path / "hf", tokens)[:, :-1]
    assert (logits - expected).abs().max() <= 1e-4
    assert not any(name.startswith("armd") for name in tensors_of(tmp_path / "hf"))


def test_only_ar_exact_query_initializations_export_as_an_ar_model(groups, tmp_path):
    queries = ("prefix", "learned", "anchor+prefix")
    networks = [build(dataclasses.replace(LLAMA, query=query), groups) for query in queries]
    for index, network in enumerate(networks):
        checkpoint = open_checkpoint(save(tmp_path / str(index), network, groups))
        with pytest.raises(
            CheckpointError, match=r"--as-ar requires a checkpoint whose left-to-right path"
        ):
            export(checkpoint, tmp_path / "hf", groups=groups, as_ar=True)
    with torch.no_grad():
        networks[-1].get_parameter("query_start.prefix.scale").zero_()
    export(
        open_checkpoint(save(tmp_path / "zero", networks[-1], groups)),
        tmp_path / "hf",
        groups=groups,
        as_ar=True,
    )


def test_a_network_that_no_family_describes_is_refused(groups, tmp_path):
    network = build(dataclasses.replace(LLAMA, norm="layernorm"), groups)
    with pytest.raises(CheckpointError, match=r"not have model\.norm=layernorm"):
        export(open_checkpoint(save(tmp_path, network, groups)), tmp_path / "hf", groups=groups)
    assert not list(tmp_path.glob("*hf*"))


def test_the_source_config_is_kept_while_it_describes_the_model(groups, tmp_path):
    hf = write_folder(tmp_path / "hf", "llama")
    armd = convert_to(tmp_path / "armd", hf, groups)
    recipe = open_checkpoint(armd).recipe
    network = load_network(open_checkpoint(armd), groups=groups)
    # No path decides what is exported: the folder that a run started from may be another by now.
    fine_tuned = dataclasses.replace(recipe.model, init_from=str(tmp_path / "other"))
    files = {"config.json": (armd / "source" / "config.json").read_bytes()}
    trained = save(tmp_path / "run", network, groups, model=fine_tuned, source=files)
    export(open_checkpoint(trained), tmp_path / "one", groups=groups)
    one, source = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "one", hf))
    assert one.pop("armd")["two_stream_layers"] == recipe.model.two_stream_layers
    assert one == one | source
    other = dataclasses.replace(fine_tuned, rope_theta=1e6)
    changed = save(tmp_path / "changed", network, groups, model=other, source=files)
    export(open_checkpoint(changed), tmp_path / "two", groups=groups)
    two = json.loads((tmp_path / "two" / "config.json").read_text())
    assert two["rope_parameters"]["rope_theta"] == two["rope_theta"] == 1e6


def test_an_output_is_replaced_only_on_request(groups, tmp_path):
    checkpoint = open_checkpoint(save(tmp_path, build(LLAMA, groups), groups))
    export(checkpoint, tmp_path / "hf", groups=groups)
    with pytest.raises(CheckpointError, match="exists\\): choose another name or add --overwrite"):
        export(checkpoint, tmp_path / "hf", groups=groups)
    export(checkpoint, tmp_path / "hf", groups=groups, overwrite=True, as_ar=True)
    assert "armd" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    # The folder of somebody's model has a config.json and a model card too.
    card = tmp_path / "hf" / "README.md"
    card.write_text(card.read_text().replace("armd_scale", "llama"))
    with pytest.raises(CheckpointError, match="must name an export of armd_scale"):
        export(checkpoint, tmp_path / "hf", groups=groups, overwrite=True)
    assert (tmp_path / "hf" / "config.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".hf")]
