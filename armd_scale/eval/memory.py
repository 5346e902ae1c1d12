"""What scoring windows needs in memory, checked before anything of that size exists."""

from armd_scale.model.armd_model import ArmdModel
from armd_scale.order.policies import OrderPolicy
from armd_scale.parallel.memory import require_memory

# Nats and number of targets, in float64.
_BYTES_PER_RESULT = 16
# A row is in memory at least as the input of a layer, its norm, its queries and its output.
_VECTORS_PER_ROW = 4


def require_memory_to_score(
    network: ArmdModel, order: OrderPolicy, *, seq_length: int, micro_batch: int, num_results: int
) -> None:
    """Check that a forward pass, and the results of all of them, fit into memory.

    Args:
        network: the model.
        order: left to right needs no mask.
        seq_length: targets per window.
        micro_batch: windows per forward pass.
        num_results: windows times order draws.

    Raises:
        ArmdError: they do not.
    """
    weights = next(network.parameters())
    rows = 2 * seq_length * micro_batch
    num_bytes = rows * network.model.hidden * _VECTORS_PER_ROW * weights.element_size()
    if not (order.is_left_to_right or weights.is_cuda):  # kernels for CUDA need no dense mask
        # An entry for each row and each of its keys, as a boolean and as a float for the kernel.
        num_bytes += rows * seq_length * (1 + weights.element_size())
    require_memory(
        num_bytes,
        f"a forward pass of {micro_batch:,} windows of {seq_length:,} targets",
        advice="use a smaller --seq-length or --micro-batch",
        device=weights.device,
    )
    require_memory(
        num_results * _BYTES_PER_RESULT,
        f"the results of {num_results:,} windows",
        advice="use smaller --samples or --orders-per-sample",
    )
