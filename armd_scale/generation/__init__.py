"""Generation of text: what is asked when, an exact cache, and how tokens are drawn.

made = generate(network, [prompt], num_tokens=256, strategy=Strategy(streams=4))
"""

from armd_scale.generation.decoder import RoundResult
from armd_scale.generation.generate import generate, generate_from_specs, infill
from armd_scale.generation.result import GenerationOutput, Sample, entropy_bits
from armd_scale.generation.sampling import Sampling
from armd_scale.generation.speculative import SpeculativeStats
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
    "generate",
    "generate_from_specs",
    "infill",
    "infill_spec",
]
