"""What a generation request needs in memory, checked before anything of that size exists."""

from collections.abc import Sequence

import numpy as np

from armd_scale.errors import GenerationError
from armd_scale.generation.strategy import GenerationSpec
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.memory import require_memory

# A spec has three arrays of a text, and the decode state about twelve more, of 4 or 8 bytes each.
BYTES_PER_POSITION = 120
# A text also has some objects and a row of everything.
BYTES_PER_TEXT = 2000
_ADVICE = "ask for fewer or shorter texts"


def require_memory_for_texts(num_texts: int, num_tokens: int) -> None:
    """Check that texts fit into memory, before their arrays are built.

    Raises:
        GenerationError: they do not.
    """
    require_memory(
        num_texts * (BYTES_PER_TEXT + num_tokens * BYTES_PER_POSITION),
        f"{num_texts:,} texts of {num_tokens:,} tokens",
        advice=_ADVICE,
        error_class=GenerationError,
    )


def require_memory_to_decode(network: ArmdModel, specs: Sequence[GenerationSpec]) -> None:
    """Check that the cache of keys and values and the mask of the first round fit into memory.

    Raises:
        GenerationError: they do not.
    """
    longest = max(len(spec.tokens) for spec in specs)
    first = next(network.parameters())
    cache = len(specs) * (longest + 1) * _cache_bytes_per_position(network)
    # The first round feeds all known tokens at once, in both streams; its mask has an entry for
    # each of these rows and each of their keys, as a boolean and as a float for the kernel.
    known = max(int(np.count_nonzero(spec.known)) for spec in specs)
    mask = len(specs) * 2 * known * known * (1 + first.element_size())
    require_memory(
        cache + mask,
        f"decoding {len(specs):,} texts of {longest:,} tokens, {known:,} of them given,",
        advice=_ADVICE,
        device=first.device,
        error_class=GenerationError,
    )


def _cache_bytes_per_position(network: ArmdModel) -> int:
    """Keys and values of one position in all layers of this rank."""
    model = network.model
    width = model.kv_heads * model.head_dim // network.groups.tp.size()
    return 2 * model.layers * width * next(network.parameters()).element_size()
