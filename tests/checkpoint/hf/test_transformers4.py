"""Exports under transformers 4: the same logits, token ids and settings as under version 5."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from armd_scale.checkpoint.hf.exporter import export
from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings
from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.schema import ParallelConfig
from tests.support.hf_folders import CONFIGS, make_model, write_byte_tokenizer
from tests.support.windows import VOCAB

pytestmark = pytest.mark.slow(minutes=1)

PACKAGES = ("transformers==4.56.2", "tokenizers==0.22.1", "huggingface_hub==0.35.3")
TEXT = "the quick brown fox"
CHAT = [{"role": "user", "content": "the fox?"}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
# Run in a process of its own, with another version of the library.
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
transformers.logging.set_verbosity_error()
assert transformers.__version__.startswith("4.")
tokens = torch.load(sys.argv[1])
results = {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        results[folder] = model(tokens).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results[folder + "/ids"] = tokenizer(sys.argv[2]).input_ids
    results[folder + "/chat"] = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the fox?"}], tokenize=False
    )
    results[folder + "/eos"] = GenerationConfig.from_pretrained(folder).eos_token_id
torch.save(results, sys.argv[1])
"""


@pytest.fixture(scope="module")
def transformers4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, *PACKAGES], check=True)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of all families, in the spelling of version 5, with a chat template and two EOS."""
    root = tmp_path_factory.mktemp("sources")
    for name in CONFIGS:
        (root / name).mkdir()
        num_tokens = write_byte_tokenizer(root / name, [TEXT] * 20, adds_bos=True)
        make_model(name, vocab_size=num_tokens).save_pretrained(root / name)
        (root / name / "chat_template.jinja").write_text(TEMPLATE)
        settings = json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]})
        (root / name / "generation_config.json").write_text(settings)
    return root


def test_exports_read_the_same_in_both_versions(groups, tmp_path, transformers4, sources):
    folders = {}
    for name in CONFIGS:
        max_positions = 24 if name == "mistral-window" else None
        request = ConversionRequest(
            hf=sources / name,
            output=tmp_path / f"{name}.armd",
            settings=ArmdSettings(max_positions=max_positions),
            parallel=ParallelConfig(),
        )
        convert(request, groups=groups)
        folders[name] = tmp_path / name
        export(open_checkpoint(request.output), folders[name], groups=groups, as_ar=True)
    tokens = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(3))
    torch.save(tokens, tmp_path / "exchange.pt")
    subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "exchange.pt", TEXT, *map(str, folders.values())],
        check=True,
        env=os.environ | {"PYTHONPATH": str(transformers4)},
    )
    results = torch.load(tmp_path / "exchange.pt")
    for name, folder in folders.items():
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(sources / name).eval()(tokens).logits
            again = AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
        assert torch.equal(again, logits), name
        assert (results[str(folder)] - logits).abs().max() < 1e-5, name
        tokenizer = AutoTokenizer.from_pretrained(sources / name)
        assert results[f"{folder}/ids"] == tokenizer(TEXT).input_ids
        chat = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert results[f"{folder}/chat"] == chat == "<user>the fox?"
        eos = GenerationConfig.from_pretrained(folder).eos_token_id
        assert results[f"{folder}/eos"] == eos == [1, 2]
