"""ARMD language models at scale: pretraining, conversion, decoding and evaluation.

The names in `__all__` are the public API. Each is imported at its first use, so that
`import armd_scale` stays fast: torch, megatron-core and DeepSpeed take seconds to import.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armd_scale.checkpoint.pretrained import load_model
    from armd_scale.config.load import load_recipe
    from armd_scale.config.schema import Recipe
    from armd_scale.eval.score import score
    from armd_scale.generation.api import generate, infill
    from armd_scale.generation.sampling import Sampling
    from armd_scale.generation.strategy import Strategy
    from armd_scale.train.trainer import Trainer

__all__ = [
    "Recipe",
    "Sampling",
    "Strategy",
    "Trainer",
    "generate",
    "infill",
    "load_model",
    "load_recipe",
    "score",
]
__version__ = "0.1.0"

# The modules that define the names above. Type checkers read the imports under TYPE_CHECKING, which
# never run; a test keeps the two lists equal.
_MODULES = {
    "Recipe": "armd_scale.config.schema",
    "Sampling": "armd_scale.generation.sampling",
    "Strategy": "armd_scale.generation.strategy",
    "Trainer": "armd_scale.train.trainer",
    "generate": "armd_scale.generation.api",
    "infill": "armd_scale.generation.api",
    "load_model": "armd_scale.checkpoint.pretrained",
    "load_recipe": "armd_scale.config.load",
    "score": "armd_scale.eval.score",
}

# megatron-core warns at import about each CUDA extension that is missing; all of them are optional.
warnings.filterwarnings("ignore", module=r"megatron\.")


def __getattr__(name: str) -> Any:
    """Import a name of the public API at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'armd_scale' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    # Stored as a plain attribute, so that later look-ups do not come here again.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
