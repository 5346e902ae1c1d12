"""The network on several tensor-parallel ranks gives the logits and likelihoods of one."""

import dataclasses

import pytest
import torch

from armd_scale.config.schema import ParallelConfig
from tests.model.test_weight_init import fresh
from tests.support.networks import LLAMA
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows


def run(groups, kind, vocab):
    model = dataclasses.replace(LLAMA, vocab_size=vocab, heads=8, kv_heads=8)
    network = fresh(model, groups, parallel=ParallelConfig(tensor=groups.tp.size()))
    batch = draw_windows("strided:3", (12,)).batch()
    ids = {k: getattr(batch, k) % 20 for k in ("tokens", "labels", "anchor_tokens")}
    batch = dataclasses.replace(batch, **ids)
    with torch.no_grad():
        return network.logits(batch) if kind == "logits" else network(batch)


# 101 tokens are 64 and 37 of two padded shares; of 33 on four ranks the last holds padding alone.
@pytest.mark.parametrize(("tensor", "vocab", "kind"), [(2, 101, "logits"), (4, 33, "nll")])
def test_padding_of_the_vocabulary_changes_nothing(groups, tensor, vocab, kind):
    expected = run(groups, kind, vocab)
    for got in run_on_ranks(run, tensor, kind, vocab, parallel=ParallelConfig(tensor=tensor)):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
