"""Settings, batches and stop strings of generation requests."""

import numpy as np

from armd_scale.eval.harness.generation import (
    GenerationRequest,
    make_batches,
    parse_settings,
)
from armd_scale.generation import Sampling

KWARGS = {"until": ["\n", ""], "max_gen_toks": 4, "do_sample": False}


def test_without_sampling_decoding_is_greedy():
    settings = parse_settings(KWARGS, max_length=8)
    assert settings.sampling == Sampling(temperature=0.0)
    assert (settings.num_tokens, settings.stops) == (4, ("\n",))
    assert parse_settings({**KWARGS, "do_sample": True}, max_length=8).sampling.temperature == 1.0


def test_batches_have_equal_settings_and_similar_lengths():
    settings = [parse_settings({**KWARGS, "max_gen_toks": n}, max_length=8) for n in (3, 4)]
    requests = [
        GenerationRequest(index, np.zeros(length, dtype=np.int64), settings[index % 2])
        for index, length in enumerate((5, 2, 1, 3, 4, 6))
    ]
    batches = [[r.index for r in batch] for batch in make_batches(requests, 2)]
    assert batches == [[2, 4], [0], [1, 3], [5]]
