"""tools/table.py on a tiny checkpoint, against the evaluations that its cells stand for."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from armd_scale.eval.run import Request, measure, prepare
from tests.support import runs
from tests.support.held_out import write_place


@pytest.fixture(scope="module")
def place(groups, tmp_path_factory):
    folder = write_place(tmp_path_factory.mktemp("place"), groups, vocab_size=280)
    (folder / "ptb.txt").write_text("the quick <unk> 's fox\n" * 9)
    return folder


def run(place, *words):
    return runs.run("tools/table.py", *words, folder=place)


def test_zero_shot(groups, place):
    files = ("--markdown", place / "t.md", "--picture", place / "t.svg")
    done = run(
        place, "zero-shot", "--checkpoint", place / "run", "--text", f"PTB={place}/ptb.txt", *files
    )
    assert done.status == 0, done.errors
    request = Request(
        checkpoint=str(place / "run"), text=place / "ptb.txt", detokenise="ptb", order="l2r"
    )
    expected = measure(prepare(request), groups, torch.device("cpu")).perplexity
    assert done.output.endswith(f"| run | - | - | {expected:.2f} | - | - |\n")
    assert (place / "t.md").read_text() == done.output
    assert "<svg" in (place / "t.svg").read_text()


def test_generative(place):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(place / "tokenizer")
    sizes = ("--samples", "2", "--tokens", "12")
    done = run(
        place, "generative", "--checkpoint", place / "run", "--judge", place / "tokenizer", *sizes
    )
    assert done.status == 0, done.errors
    *_, last = done.output.splitlines()
    name, *cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert name == "run"
    perplexities, bits = map(float, cells[::2]), map(float, cells[1::2])
    assert all(100 < value < 1000 for value in perplexities)  # an untrained judge of 280 tokens
    assert all(0 < value < 3.6 for value in bits)  # log2 of 12 tokens


def test_ablations_say_what_they_vary(place):
    words = ("--checkpoint", place / "run", "--data", place / "valid", "--samples", "2")
    done = run(place, "ablation-two-stream", *words)
    assert "| run: 2 of 4 layers two-stream | " in done.output, done.errors


def test_a_wrong_name_ends_in_one_sentence(place):
    done = run(place, "zero-shot", "--checkpoint", place / "run", "--text", "ptb=x")
    assert done.sentence.startswith("error: --text must be NAME=FILE")
