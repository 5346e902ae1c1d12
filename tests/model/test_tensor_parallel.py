"""Logits and likelihoods on several tensor parallel ranks equal those of one process."""

import dataclasses

import pytest
import torch

from armd_scale.config.schema import ParallelConfig
from tests.model.test_weight_init import build_initialized
from tests.support.networks import LLAMA
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows


def run(groups, kind, vocab):
    model = dataclasses.replace(LLAMA, vocab_size=vocab, heads=8, kv_heads=8)
    network = build_initialized(model, groups, parallel=ParallelConfig(tensor=groups.tp.size()))
    batch = draw_windows("strided:3", (12,)).batch()
    token_ids = {k: getattr(batch, k) % 20 for k in ("tokens", "labels", "anchor_tokens")}
    batch = dataclasses.replace(batch, **token_ids)
    with torch.no_grad():
        return network.logits(batch) if kind == "logits" else network(batch)


# 101 tokens on two ranks: 64, and 37 with padding. 33 tokens on four: the last has padding only.
@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "vocab", "kind"), [(2, 101, "logits"), (4, 33, "nll")])
def test_padding_the_vocabulary_changes_nothing(groups, tensor, vocab, kind):
    expected = run(groups, kind, vocab)
    for actual in run_on_ranks(run, tensor, kind, vocab, parallel=ParallelConfig(tensor=tensor)):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
