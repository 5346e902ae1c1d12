"""Files of the tokenizer and of the source model that go into every checkpoint."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.exporter import export
from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.checkpoint.load import load_network, open_checkpoint
from armd_scale.checkpoint.pretrained import open_model
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.schema import ParallelConfig, Recipe
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ShardError, TokenizerError
from armd_scale.train.model_files import read_model_files, tokenizer_contents
from tests.support.eval_data import add_manifest
from tests.support.hf_folders import make_model, write_byte_tokenizer


def test_the_tokenizer_is_read_from_beside_the_data(recipe: Recipe, tmp_path: Path) -> None:
    assert tokenizer_contents(recipe) == ({}, None)
    tokenizer = train_sentencepiece(["a text\n" * 20], 270)
    add_manifest(recipe, "a", fingerprint=tokenizer.fingerprint)
    assert tokenizer_contents(recipe) == ({}, False)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "id_rsa").write_text("not a file of a tokenizer")
    contents, _ = tokenizer_contents(recipe)
    assert sorted(contents) == ["tokenizer.model", "tokenizer_config.json"]
    model = (tmp_path / "tokenizer" / "tokenizer.model").read_bytes()
    assert contents["tokenizer.model"] == model
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"others")
    with pytest.raises(TokenizerError, match="must hold the tokenizer that the shards were made"):
        tokenizer_contents(recipe)


@pytest.mark.parametrize("starts_with_bos", [True, False])
def test_texts_of_a_model_start_as_the_documents_of_its_shards(
    recipe: Recipe, tmp_path: Path, starts_with_bos: bool
) -> None:
    """Also where their tokenizer would start them otherwise: earlier shards have no BOS."""
    tokenizer = train_sentencepiece(["a text\n" * 20], 270)
    tokenizer.save(tmp_path / "tokenizer")
    prefix = (1,) if starts_with_bos else ()
    add_manifest(recipe, "a", fingerprint=tokenizer.fingerprint, prefix_ids=prefix)
    (tmp_path / "copy").mkdir()
    for name, content in read_model_files(recipe, None).tokenizer.items():
        (tmp_path / "copy" / name).write_bytes(content)
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.prefix_ids == prefix
    assert copy.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("folder", ["../home", "/root", "a/../../home", "link", "", "a\0b"])
def test_a_tokenizer_outside_the_folder_of_the_data_is_refused(
    recipe: Recipe, tmp_path: Path, folder: object
) -> None:
    add_manifest(recipe, "a")
    (tmp_path / "link").symlink_to(Path.home())
    path = tmp_path / "a.json"
    manifest = json.loads(path.read_text())
    manifest["tokenizer"]["folder"] = folder
    del manifest["manifest_sha256"]  # as whoever makes such a manifest would do
    path.write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r"must be in the folder of their manifest|without NUL"):
        tokenizer_contents(recipe)


def test_a_link_among_the_files_of_a_tokenizer_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret"
    secret.write_text("private")
    add_manifest(recipe, "a", fingerprint=hashlib.sha256(b"private").hexdigest())
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").symlink_to(secret)
    with pytest.raises(TokenizerError, match="a link out of its folder"):
        tokenizer_contents(recipe)


def test_what_came_with_the_source_travels_to_the_export(
    recipe: Recipe,
    groups: ProcessGroupCollection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the checkpoints of a run, wherever they are moved, from any working directory."""
    hf = tmp_path / "hf"
    hf.mkdir()
    num_tokens = write_byte_tokenizer(hf, ["a text"] * 20, adds_bos=True)
    make_model("llama", vocab_size=num_tokens).save_pretrained(hf)
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    (hf / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    request = ConversionRequest(
        hf=hf, output=tmp_path / "armd", settings=ArmdSettings(), parallel=ParallelConfig()
    )
    convert(request, groups=groups)
    converted = open_checkpoint(tmp_path / "armd")
    # The shards' copy of the tokenizer has no chat template.
    load_tokenizer(hf).save(tmp_path / "tokenizer")
    add_manifest(recipe, "a", fingerprint=load_tokenizer(hf).fingerprint, prefix_ids=(0,))
    files = read_model_files(recipe, converted)
    CheckpointSave(
        tmp_path / "run",
        step=2,
        network=load_network(converted, groups=groups),
        recipe=converted.recipe,
        state={"step": 2},
        optimizer={},
        tokenizer=files.tokenizer,
        source=files.source,
    ).wait()
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "run" / "step_00000002").rename(tmp_path / "elsewhere" / "tuned")
    shutil.rmtree(tmp_path / "armd")
    monkeypatch.chdir(tmp_path / "elsewhere")
    tuned = open_checkpoint(moved)
    tokenizer = tuned.load_tokenizer()
    assert tokenizer is not None
    assert tokenizer.eos_ids == (1, 7)
    assert open_model(moved).is_chat_model
    export(tuned, tmp_path / "back", groups=groups, as_ar=True)
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"):
        copy = (tmp_path / "back" / name).read_text()
        if name != "config.json":
            assert copy == (hf / name).read_text()
            continue
        original = json.loads((hf / name).read_text())
        assert json.loads(copy) == json.loads(copy) | original
