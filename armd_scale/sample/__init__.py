"""Generation of text: what is asked when, an exact cache, and how tokens are drawn.

made = generate(network, [prompt], num_tokens=256, streams=4, sampling=Sampling(top_p=0.9))
"""

from armd_scale.sample.choose import Sampling
from armd_scale.sample.decode import Generation, Sample, complete, entropy_bits, generate
from armd_scale.sample.plan import Outline, continuation

__all__ = [
    "Generation",
    "Outline",
    "Sample",
    "Sampling",
    "complete",
    "continuation",
    "entropy_bits",
    "generate",
]
