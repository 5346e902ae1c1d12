"""Generation of text: what is asked when, an exact cache, and how tokens are drawn.

made = generate(network, [prompt], num_tokens=256, strategy=Strategy(streams=4))
"""

from armd_scale.sample.choose import Sampling
from armd_scale.sample.decode import complete, generate, infill
from armd_scale.sample.lossless import Verified
from armd_scale.sample.plan import HOLE, Dynamic, Outline, Strategy, continuation, infilling
from armd_scale.sample.result import Generation, Sample, entropy_bits
from armd_scale.sample.rounds import Landed

__all__ = [
    "HOLE",
    "Dynamic",
    "Generation",
    "Landed",
    "Outline",
    "Sample",
    "Sampling",
    "Strategy",
    "Verified",
    "complete",
    "continuation",
    "entropy_bits",
    "generate",
    "infill",
    "infilling",
]
