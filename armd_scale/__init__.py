"""ARMD language models at scale: pretraining, conversion, decoding and evaluation."""

import warnings

# megatron-core says at import which CUDA extensions it does without; none of them is needed.
warnings.filterwarnings("ignore", module=r"megatron\.")

__version__ = "0.1.0"
