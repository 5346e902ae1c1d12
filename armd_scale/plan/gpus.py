"""Peak figures of GPUs, and the assumptions of an estimate about how much of them training gets.

Peaks are from NVIDIA's data sheets (A100 80GB SXM, H100 SXM, H200 SXM, HGX B200, L40S): dense,
without sparsity; link bandwidth in one direction, half of what the sheets give for both. Memory is
what the driver leaves free.
"""

from dataclasses import dataclass

from armd_scale.config.resolve import ResolvedRecipe

GPUS_PER_NODE = 8

EFFICIENCY = 0.5
"""Fraction of the peak FLOPs at which a GPU computes, with elementwise work and kernel launches
between matrix products, without communication and pipeline bubbles. End to end, Megatron-LM reports
41 to 48 % on H100 (its README) and 44 to 57 % on A100 (arXiv 2205.05198, table 5), Llama 3 38 to
43 % on H100 (arXiv 2407.21783, table 4)."""
LINK_EFFICIENCY = 0.7
"""Fraction of a link's bandwidth that collectives reach."""

LAUNCH_SECONDS = 1e-3
"""Minimum time of one layer's forward and backward pass: the host launches about a hundred kernels,
about 10 microseconds each in PyTorch's eager mode. It dominates for small micro-batches."""

CONTEXT_BYTES = 2 << 30
"""CUDA context, workspaces of libraries, and NCCL's buffers."""
FRAGMENTATION = 0.05
"""Memory that the allocator reserves and cannot use, as a fraction of what it hands out."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak figures of one kind of GPU and of its links."""

    name: str
    memory_gib: float
    bf16_flops: float
    """Per second."""
    fp32_flops: float
    """Per second, without TF32."""
    memory_bytes_per_second: float
    node_bytes_per_second: float
    """To GPUs of the same node."""
    network_bytes_per_second: float
    """To GPUs of other nodes, assuming one network card per GPU."""

    def peak(self, recipe: ResolvedRecipe) -> float:
        """Return the peak FLOPs per second in the recipe's precision."""
        return self.bf16_flops if recipe.train.precision == "bf16" else self.fp32_flops

    def link(self, num_ranks: int) -> float:
        """Return the bytes per second that a rank sends within `num_ranks` consecutive ranks."""
        # A ring is as slow as its slowest link, so one network hop sets the pace.
        is_one_node = num_ranks <= GPUS_PER_NODE
        return LINK_EFFICIENCY * (
            self.node_bytes_per_second if is_one_node else self.network_bytes_per_second
        )


_COLUMNS = (
    "name",
    "memory_gib",
    "bf16_flops",
    "fp32_flops",
    "memory_bytes_per_second",
    "node_bytes_per_second",
    "network_bytes_per_second",
)
GPUS = {
    str(row[0]): Gpu(**dict(zip(_COLUMNS, row, strict=True)))  # pyright: ignore[reportArgumentType]
    for row in (
        ("a100", 79.0, 312e12, 19.5e12, 2.0e12, 300e9, 25e9),
        ("h100", 79.0, 989e12, 67e12, 3.35e12, 450e9, 50e9),
        ("h200", 139.0, 989e12, 67e12, 4.8e12, 450e9, 50e9),
        ("b200", 178.0, 2250e12, 75e12, 8.0e12, 900e9, 50e9),
        ("l40s", 44.0, 362e12, 91.6e12, 0.864e12, 32e9, 25e9),
    )
}
