"""Policy `diffusion`: blocks from masking times."""

import numpy as np

from armd_scale.order.policies.diffusion import diffusion_blocks
from tests.order.policies.rounds import rounds


def test_the_token_masked_last_is_generated_first() -> None:
    # A random integer w stands for the time 1 + floor(4 w / 2^64).
    quarter = 2**62
    times = [0, 3 * quarter, quarter - 1, 3 * quarter + 5, quarter]
    random_bits = np.array(times, dtype=np.uint64)
    assert rounds(diffusion_blocks(random_bits, 4)) == [[2, 4], [5], [1, 3]]  # no token has time 3


def test_one_masking_time_gives_one_block() -> None:
    random_bits = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert diffusion_blocks(random_bits, 1).tolist() == [1, 1, 1]
