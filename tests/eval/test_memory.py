"""Tests of refusing evaluations that cannot fit into memory."""

import pytest

from armd_scale.errors import ArmdError
from armd_scale.eval.memory import require_memory_to_score
from armd_scale.order.spec import parse_spec
from tests.support.networks import LLAMA, build


def test_what_fits_passes_and_what_does_not_is_refused(groups) -> None:
    network = build(LLAMA, groups)
    sizes = {"seq_length": 100_000, "micro_batch": 4, "num_results": 10}
    require_memory_to_score(network, parse_spec("l2r"), **{**sizes, "micro_batch": 1})
    with pytest.raises(ArmdError, match="a forward pass of 4 windows of 100,000 targets must fit"):
        # The mask of another order has an entry for each row and each key.
        require_memory_to_score(network, parse_spec("random"), **sizes)
    with pytest.raises(ArmdError, match="the results of 1,000,000,000,000 windows must fit"):
        require_memory_to_score(
            network, parse_spec("l2r"), seq_length=16, micro_batch=1, num_results=10**12
        )
