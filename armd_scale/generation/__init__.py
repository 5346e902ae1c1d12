"""Text generation in any order, with an exact key/value cache.

`generation.api` continues and infills texts; the functions here do the same for token sequences:

    output = generate_tokens(network, [prompt], num_tokens=256, strategy=Strategy(streams=4))
"""

from armd_scale.generation.batch import generate_from_specs, generate_tokens, infill_tokens
from armd_scale.generation.result import (
    GenerationOutput,
    RoundResult,
    Sample,
    SpeculativeStats,
    entropy_bits,
)
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.strategy import (
    TO_GENERATE,
    ConfidenceSchedule,
    GenerationSpec,
    Strategy,
    continuation_spec,
    infill_spec,
)

__all__ = [
    "TO_GENERATE",
    "ConfidenceSchedule",
    "GenerationOutput",
    "GenerationSpec",
    "RoundResult",
    "Sample",
    "Sampling",
    "SpeculativeStats",
    "Strategy",
    "continuation_spec",
    "entropy_bits",
    "generate_from_specs",
    "generate_tokens",
    "infill_spec",
    "infill_tokens",
]
