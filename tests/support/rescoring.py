"""Re-scoring of generated samples by teacher forcing, which decoding must agree with."""

import numpy as np
import torch

from armd_scale.generation import GenerationOutput
from armd_scale.model.armd_model import ArmdModel
from tests.support.networks import batch_of, log_probs_by_position
from tests.support.windows import VOCAB


def random_prompts(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Random tokens, a prompt of each length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, size=length) for length in lengths]


def assert_rescores(network: ArmdModel, output: GenerationOutput, *, atol: float = 1e-4) -> None:
    """Each sample, alone and under its own blocks, has the log-probabilities that were reported."""
    for sample in output.samples:
        batch = batch_of(sample.tokens[None], sample.block[None])
        with torch.no_grad():
            (expected,) = log_probs_by_position(network, batch)
        positions = np.flatnonzero(sample.generated)
        torch.testing.assert_close(
            torch.from_numpy(sample.logprob[positions]),
            torch.stack([expected[int(p)] for p in positions]).double(),
            atol=atol,
            rtol=0,
        )
